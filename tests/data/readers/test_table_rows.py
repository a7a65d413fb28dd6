"""Quotation marks in tables: a row is never merged into another unheard, and what is left out is said."""

import pytest

from mt2st_fast.data import open_data
from tests.data.readers.opened import message_of

LABELS = ("pos", "neg")


def rows(n, text="film {}", columns="text,label"):
    """(header, rows) of a table in which each line is a row."""
    return columns, [f"{text.format(i)},{LABELS[i % 2]}" for i in range(n)]


def spec(write, header, lines, name="t.csv"):
    return f"csv:{write(**{name: chr(10).join([header, *lines]) + chr(10)}) / name}"


@pytest.mark.parametrize("closed", [3, 4, 9])
@pytest.mark.parametrize("n", [10, 40])
def test_a_mark_that_is_closed_rows_later_is_refused(write, closed, n):
    header, lines = rows(n)
    lines[2] = f'"{lines[2]}'
    lines[closed] = lines[closed].replace(",", '",')
    message = message_of(spec(write, header, lines))
    assert f"t.csv:4: a quoted cell begins in this line and is not closed before line {closed + 2}" in message
    assert "is a row by itself; close the mark, or double it" in message


def test_a_mark_before_labels_that_stand_first_is_refused(write):
    lines = [f"{LABELS[i % 2]},film {i}" for i in range(12)]
    lines[3] = lines[3].replace(",", ',"')
    lines[6] += '"'
    assert "t.csv:5: a quoted cell begins in this line" in message_of(spec(write, "label,text", lines))


def test_a_mark_that_is_never_closed_names_where_it_opens(write):
    header, lines = rows(12)
    lines[3] = f'"{lines[3]}'
    message = message_of(spec(write, header, lines))
    assert "t.csv:5: a quoted cell begins in this line and is malformed up to line 13" in message


def test_a_mark_that_ends_in_another_number_of_cells_names_where_it_opens(write):
    header, lines = rows(12)
    lines[3] = f'"{lines[3]}'
    lines[5] = f'{lines[5]}",x,y'
    message = message_of(spec(write, header, lines))
    assert (
        "t.csv:5: 3 cells, but the header has 2: a quotation mark in this line is not closed before line 7"
        in message
    )


@pytest.mark.parametrize("columns", ["text,label", "label,text"])
def test_cells_over_several_lines_are_read_and_said(write, columns):
    texts = ['"Good, it\'s\nfine, ""really"", x\n\n# no = comment"', "plain", '"One, line"', '"\nTwo\n"'] * 5
    cells = [(text, LABELS[i % 2]) for i, text in enumerate(texts)]
    lines = [",".join(pair if columns == "text,label" else pair[::-1]) for pair in cells]
    splits = open_data(spec(write, columns, lines))
    assert [sum(c.n_units for c in splits.parts.values()), splits.record.files[0].rows] == [20, 20]
    assert splits.notes == (
        "t.csv: 10 rows have quoted cells that span several lines; the first spans lines 2 to 5",
    )


def test_lines_of_a_cell_that_another_row_has_as_text_merge_nothing(write):
    _, lines = rows(12)
    lines[3:3] = ["thanks,pos", '"Hello,\nthanks, all\nthanks,\nbye",neg']
    assert open_data(spec(write, "text,label", lines)).record.files[0].rows == 14


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_comments_are_left_out_and_said(write, name):
    sign = "\t" if name == "t.tsv" else ","
    lines = [f"# {i} is a text{sign}{LABELS[i % 2]}" for i in range(12)]
    lines[4:4] = ["# domain = news", "", "   ", "#split=a"]
    splits = open_data(spec(write, f"# lang = en\n\n# by hand\ntext{sign}label", lines, name))
    assert splits.record.files[0].rows == 12
    assert f"{name}: 4 lines left out: comments (#); the first is line 1" in splits.notes


def test_marks_returns_and_nul_are_no_part_of_cells(write):
    header, lines = rows(12)
    content = "\ufeff" + header + "\r" + "\r".join(lines[:6]) + "\r\n\ufeff" + "\r\r\n".join(lines[6:])
    path = write(**{"t.csv": content.replace("film 3", "film\x003")}) / "t.csv"
    splits = open_data(f"csv:{path}")
    assert splits.tasks == ("label",)
    assert splits.train.column("label").class_names == ("neg", "pos")
    assert "\ufeff" not in "".join(splits.vocabulary.words)
    assert splits.notes == (
        "t.csv: NUL characters read as spaces: 1, the first on line 5",
        "t.csv: lines that end in a lone carriage return, where others end in a line feed: 6, the first is line 1",
    )


def test_a_header_in_the_middle_is_left_out_and_said(write):
    header, lines = rows(12)
    splits = open_data(spec(write, header, [*lines, "\ufeff" + header, *lines]))
    assert splits.record.files[0].rows == 24
    assert splits.train.column("label").class_names == ("neg", "pos")
    assert splits.notes == (
        "t.csv: 1 line left out: repetitions of the header, as in concatenated files; the first is line 14",
    )


def test_quotation_marks_between_tabs_are_signs_and_are_said(write):
    lines = [f"film {i}\t{LABELS[i % 2]}" for i in range(12)]
    lines[2] = '"a ""good"" film"\tpos'
    lines[4] = 'it is 5" wide\tneg'
    splits = open_data(spec(write, "text\tlabel", lines, "t.tsv"))
    assert splits.notes == (
        "t.tsv: cells in quotation marks, which are kept as text because the file is tab-separated: on 1 line, the "
        "first is line 4",
    )
    lines[5] = '"over\nlines"\tpos'
    message = message_of(spec(write, "text\tlabel", lines, "t.tsv"))
    assert "t.tsv:7: 1 cell, but the header has 2; add or remove cells; in a tab-separated file" in message

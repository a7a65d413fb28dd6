"""Everyday tables: which column is what, what is left out, and the lines that say so."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast.data import open_data
from tests.data.readers.opened import labels, message_of, words


def rows(header, row, n=40):
    return header + "\n" + "".join(row(i) + "\n" for i in range(n))


def label(i):
    return "pos" if i % 2 else "neg"


def one(write, text, name="t.csv"):
    return f"csv:{write(**{name: text}) / name}"


def test_1_and_1_point_0_are_one_class(write):
    folder = write(
        **{
            "train.csv": rows("text,label", lambda i: f"film,{i % 2}"),
            "dev.csv": rows("text,label", lambda i: f"film,{'' if i == 3 else f'{i % 2}.0'}"),
            "test.csv": rows("text,label", lambda i: f"film,{i % 2}.0"),
        }
    )
    splits = open_data(f"csv:{folder}")
    assert splits.train.column("label").class_names == ("0", "1")
    assert labels(splits, "label", "dev")[:4] == ["0", "1", "0", None]
    [note] = splits.notes
    assert note.startswith(
        "label: treated as one class, because the whole numbers are equal: 0.0 and 0, 1.0 and 1"
    )
    assert "79 cells" in note


def test_classes_that_training_never_saw_are_said(write):
    folder = write(
        **{
            "train.csv": rows("text,label", lambda i: f"film,{label(i)}"),
            "dev.csv": rows("text,label", lambda i: f"film,{'meh' if i < 3 else 'pos'}"),
        }
    )
    assert open_data(f"csv:{folder}").notes == (
        "label: classes that do not occur in training, so they cannot be learned, in 3 dev rows: meh",
    )


def test_columns_are_found_by_name_in_any_case_and_order(write):
    folder = write(
        **{
            "train.csv": rows(
                "id,Text,Label,lang", lambda i: f"{i},film {i},{label(i)},{'de' if i % 3 else 'en'}"
            ),
            "test.csv": rows("LABEL,extra,TEXT", lambda i: f"{label(i)},x,other {i}"),
        }
    )
    splits = open_data(f"csv:{folder}", main="label")
    assert splits.tasks == ("Label", "lang")
    assert words(splits, "test")[:2] == ["other", "0"]
    assert labels(splits, "Label", "test")[:2] == ["neg", "pos"]
    assert set(labels(splits, "lang", "test")) == {None}
    assert splits.notes == (
        "column 'id' has 40 classes, so it is not used as an auxiliary task",
        "test.csv: left out because the training file has no such column: extra",
        "test.csv: matched to the training file's columns ignoring case: TEXT, LABEL",
        "test.csv: has no column lang, so it has no labels for this task",
    )


def test_a_part_without_the_main_task_is_refused(write):
    folder = write(
        **{
            "train.csv": rows("text,label", lambda i: f"film,{label(i)}"),
            "test.csv": rows("id,text", lambda i: f"{i},film"),
        }
    )
    assert "test.csv: has no column 'label', which is the main task in the training file" in (
        message_of(f"csv:{folder}")
    )


@pytest.mark.parametrize(
    ("header", "settings", "message"),
    [
        (
            "text,sentiment",
            {"main": "sentimnet"},
            "no task 'sentimnet'; available: sentiment (did you mean 'sentiment'?)",
        ),
        ("text,mood", {"auxiliary": ["Moood"]}, "no task 'Moood'; available: mood (did you mean 'mood'?)"),
        (
            "body,mood",
            {"text_column": "boddy"},
            "no column 'boddy'; available: body, mood (did you mean 'body'?)",
        ),
        (
            "text,mood",
            {"main": "TEXT"},
            "column 'text' is the text column and cannot be a task; choose the text column with --text-column",
        ),
        ("text,mood,mood", {}, "t.csv:1: duplicate column name 'mood' in the header (columns 2 and 3)"),
        (
            "text,Text,mood",
            {},
            "t.csv:1: text and Text are both columns; choose the text column with --text-column",
        ),
    ],
)
def test_a_column_that_there_is_not_is_named_with_the_nearest(write, header, settings, message):
    text = rows(header, lambda i: ",".join([f"film {i}"] * header.count(",") + [label(i)]))
    assert message in message_of(one(write, text), **settings)


def test_the_main_task_is_the_first_column_that_looks_like_classes(write):
    splits = open_data(one(write, rows("label,text,id", lambda i: f"{label(i)},film,{i}")))
    assert splits.main == "label"
    assert (
        "column 'id' has 40 classes, so the main task is 'label'; use --label-column to choose another one"
        in (splits.notes)
    )


def test_rows_without_anything_are_counted_and_no_documents(write):
    text = rows("text,label", lambda i: f"film,{label(i)}") + ",\n , \n\n\n"
    [file] = open_data(one(write, text)).record.files
    assert (file.rows, file.left_out) == (40, {"blank lines": 2, "rows of empty cells": 2})


def test_a_record_counts_rows_cells_and_columns(write):
    text = rows(
        "Unnamed: 0,text,label,n",
        lambda i: f"{i},{'' if i < 4 else 'film'},{label(i)},{'nan' if i < 6 else i % 3}",
    )
    splits = open_data(one(write, text))
    assert (
        sum(file.rows for file in splits.record.files) == sum(c.n_rows for c in splits.parts.values()) == 40
    )
    found = {c.name: (c.taken_as, c.values, c.empty, c.nan) for c in splits.record.columns}
    assert found == {
        "text": ("text", 1, 4, 0),
        "label": ("main task, classes", 2, 0, 0),
        "n": ("auxiliary task, classes", 4, 0, 6),
    }
    assert splits.record.understood == {
        "text column": "text",
        "between cells": "comma",
        "dev and test": "a tenth of the training text each, the same in every run",
    }
    assert "t.csv: left out because the header has no name for it: column 1" in splits.notes


@pytest.mark.parametrize("values", [("0", "1"), ("True", "False"), ("0.5", "2")])
def test_nan_beside_numbers_and_truths_is_no_label(write, values):
    splits = open_data(
        one(write, rows("text,label", lambda i: f"film,{'NaN' if i % 5 == 0 else values[i % 2]}"))
    )
    assert splits.train.column("label").class_names == tuple(sorted(values))
    assert splits.notes == (
        "column 'label': NaN in 8 cells counts as unlabelled; if it is a class, give it another name",
    )


@pytest.mark.parametrize("mark", ["NA", "N/A", "NULL", "<NA>", "#N/A"])
def test_what_others_write_for_nothing_is_no_number_and_no_class_beside_numbers(write, mark):
    data = one(
        write, rows("text,n", lambda i: f"film,{mark if i % 5 == 0 else 'nan' if i % 5 == 1 else i % 3}")
    )
    told = f"column 'n': {' or '.join(sorted((mark, 'nan')))} in 16 cells counts as unlabelled"
    assert open_data(data).notes == (f"{told}; if it is a class, give it another name",)
    splits = open_data(data, main="n:regression")
    assert splits.notes == (told,)
    assert sum(int(part.column("n").labelled().sum()) for part in splits.parts.values()) == 24


def test_nan_beside_words_is_a_class_and_said(write):
    splits = open_data(one(write, rows("text,label", lambda i: f"film,{['nan', 'deu', 'eng'][i % 3]}")))
    assert splits.train.column("label").class_names == ("deu", "eng", "nan")
    assert splits.notes == (
        "column 'label': nan in 14 cells is treated as a class; empty those cells if they have no label",
    )


def test_a_table_from_excel(write):
    text = "sep=;\r\n" + rows(
        "Text;Label;Note", lambda i: f"film; {i}".join('""') + f";{label(i)};{i % 7},5"
    ).replace("\n", "\r\n")
    splits = open_data(one(write, text), auxiliary=["note:regression"])
    assert splits.record.understood["between cells"] == "semicolon"
    assert splits.main == "Label"
    assert {float(v) for v in splits.train.column("Note").values.ravel()} == {i + 0.5 for i in range(7)}
    assert splits.notes == ("column 'Note': commas are read as decimal points (1,5 is 1.5)",)


@pytest.mark.parametrize("cells", [("1,234", "5"), ("1,5", "1.5"), ("1,5", "x")])
def test_a_comma_that_may_stand_between_thousands_is_refused(write, cells):
    text = rows("text;label;n", lambda i: f"film;{label(i)};{cells[i % 2]}")
    assert "in column 'n' is not a number" in message_of(one(write, text), auxiliary=["n:regression"])


@pytest.mark.parametrize(
    ("cell", "fix"),
    [
        ("6,568", "write 6568 if the comma separates thousands, or 6.568 if it is a decimal comma"),
        ("-6,568,123", "write -6568123"),
        ("6,568.5", "write 6568.5"),
        ("0,568", "write 0.568"),
        ("6.568,5", "regression needs a number, or an empty cell where there is none"),
        ("6 %", "regression needs a number, or an empty cell where there is none"),
    ],
)
def test_the_fix_of_a_number_with_commas_is_no_other_number(write, cell, fix):
    message = message_of(one(write, rows("text;n", lambda i: f"film;{cell}")), main="n:regression")
    assert message.endswith(f"t.csv:2: {cell!r} in column 'n' is not a number; {fix}")


def test_one_value_only_is_said(write):
    splits = open_data(one(write, rows("text,label", lambda i: "film,pos")))
    assert splits.notes == (
        "label: every training label is 'pos', so there is nothing to learn; add rows of other classes or choose "
        "another main task",
    )
    splits = open_data(one(write, rows("text,stars", lambda i: "film,0.1")), main="stars:regression")
    assert splits.notes == (
        "stars: every training label is 0.1, so there is nothing to learn; add rows with other numbers or choose "
        "another main task",
    )


def test_numbers_as_classes_are_said(write):
    splits = open_data(one(write, rows("text,stars", lambda i: f"film,{i * 0.37:.2f}")))
    assert splits.notes[0] == (
        "column 'stars' has 40 classes, all of them numbers; to predict the number itself, use stars:regression"
    )
    splits = open_data(one(write, rows("text,stars", lambda i: f"film,{i / 4}")), main="STARS:regression")
    assert splits.train.column("stars").values.dtype == np.float32
    assert splits.notes == ()


def test_cells_without_text_are_documents_without_words_and_said(write):
    splits = open_data(one(write, rows("text,label", lambda i: f"{'' if i % 4 else 'film'},{label(i)}")))
    assert sum(corpus.n_rows for corpus in splits.parts.values()) == 40
    assert splits.notes == ("column 'text': 30 cells are empty, so 30 documents have no words",)
    nothing = rows("text,label", lambda i: f",{label(i)}")
    assert (
        "t.csv: column 'text' has no words in any row; choose the text column with --text-column"
    ) in message_of(one(write, nothing))


def test_a_test_set_without_labels_is_said(write):
    folder = write(
        **{
            "train.csv": rows("text,label", lambda i: f"film,{label(i)}"),
            "test.csv": rows("text,label", lambda i: "film,"),
        }
    )
    assert open_data(f"csv:{folder}").notes == (
        "label: no test row has a label for the main task, so there is no test result",
    )


def test_auxiliary_tasks_without_anything_to_learn_are_told(write):
    data = one(write, rows("text,label,aux", lambda i: f"film,{label(i)},7"))
    assert open_data(data, auxiliary=["aux"]).notes == (
        "aux: every training label is '7', so there is nothing to learn; add rows of other classes or leave it out",
    )
    assert "aux: every training label is 7.0" in open_data(data, auxiliary=["aux:regression"]).notes[0]
    empty = one(write, rows("text,label,aux", lambda i: f"film,{label(i)},"))
    assert open_data(empty, auxiliary=["aux:regression"]).notes == (
        "aux: no training row has a label, so no step trains it; label some rows or leave it out",
    )
    for kind in ("", ":multilabel"):
        assert "no row has a label for the task 'aux'; label some or leave it out" in message_of(
            empty, auxiliary=[f"aux{kind}"]
        )


def test_labels_that_nothing_separates_are_told(write):
    data = one(write, rows("text,tags", lambda i: f'film,"a, {label(i)}"'))
    assert open_data(data, main="tags:multilabel").notes == (
        "column 'tags': no cell has | or ;, which separate labels, so each cell is one label",
    )
    data = one(write, rows("text,tags", lambda i: f"film,{'a;b' if i % 2 else 'a'}"))
    assert open_data(data, main="tags:multilabel").notes == ()

"""Tables: classes, numbers and sets of labels in columns, and what is wrong named by line."""

import numpy as np
import pytest

from mt2st_fast.data import open_data
from tests.data.readers.opened import TABLE, labels, message_of, words


def test_tables_hold_classes_numbers_and_label_sets(table_folder):
    splits = open_data(
        f"csv:{table_folder}", main="rating:regression", auxiliary=["tags:multilabel", "label"]
    )
    assert splits.tasks == ("rating", "tags", "label")
    assert splits.train.level == "document"
    nan = np.nan
    np.testing.assert_array_equal(splits.train.column("rating").values, [[4.5], [nan], [2], [1]])
    assert splits.train.column("rating").kind == "values"
    assert splits.train.column("tags").class_names == ("a", "b", "c")
    np.testing.assert_array_equal(
        splits.train.column("tags").values, [[1, 1, 0], [0, 1, 1], [nan] * 3, [nan] * 3]
    )
    assert labels(splits, "label") == ["pos", "neg", None, "neg"]
    assert words(splits) == ["good", ",", "it's", "fine", "!", "bad", ".", "so", "so", "x"]
    assert splits.train.bounds.tolist() == [0, 5, 7, 9, 10]


def test_tables_default_to_the_column_after_the_text_and_leave_ids_out(table_folder):
    splits = open_data(f"csv:{table_folder}")
    assert splits.tasks == ("label", "tags")
    assert splits.notes == (
        "column 'id' has 4 classes, so it is not used as an auxiliary task",
        "column 'rating' has 3 classes, so it is not used as an auxiliary task",
        *(
            f"{part}.csv: a row has quoted cells that span several lines; the first spans lines 2 to 3"
            for part in ("train", "dev", "test")
        ),
    )


@pytest.mark.parametrize(
    ("name", "delimiter"), [("x.tsv", "\t"), ("x.csv", ";"), ("x.csv", "\t"), ("x.tsv.gz", "\t")]
)
def test_tables_with_other_delimiters(write, name, delimiter):
    rows = [("sentence", "label"), *((f"a{i}, b", "cd"[i % 2]) for i in range(10))]
    folder = write(**{name: "\n".join(map(delimiter.join, rows))})
    splits = open_data(f"csv:{folder / name}")
    assert (splits.main, splits.train.n_units) == ("label", 8)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (
            "body,label\na,b\n",
            {},
            "x.csv:1: no column is named text, sentence, review, content; choose the text column from",
        ),
        ("text\na\n", {}, "x.csv:1: has no label column besides 'text'"),
        ("text,a,a\nx,1,2\n", {}, "x.csv:1: duplicate column name"),
        ("text,label\n", {}, "x.csv: has a header but no rows"),
        ('text,label\n"a\nb",1\nc\n', {}, "x.csv:4: 1 cell, but the header has 2"),
        ('text,label\n"a"b,1\n', {}, "x.csv:2: cannot parse the row"),
        (TABLE, {"main": "stars"}, "no task 'stars'; available: id, label, rating, tags"),
        (TABLE, {"main": "label:regression"}, "x.csv:3: 'pos' in column 'label' is not a number"),
        (TABLE.replace("4.5", "inf"), {"main": "rating:regression"}, "x.csv:3: 'inf' in column 'rating'"),
    ],
)
def test_tables_name_what_is_wrong(write, text, settings, message):
    assert message in message_of(f"csv:{write(**{'x.csv': text}) / 'x.csv'}", **settings)


def test_tables_of_different_columns_are_named(table_folder, write):
    write(**{"test.csv": "text,other\na,b\n"})
    assert ("test.csv: has no column 'label', which is the main task in the training file") in message_of(
        f"csv:{table_folder}"
    )


def test_sets_of_labels_that_are_read_as_classes_are_told(write):
    """Without the note, a task of three tags silently becomes one of five classes."""
    cells = ["a", "a|b", "b|c", "a|c", "c"]
    folder = write(**{"x.csv": "text,tags\n" + "".join(f"w{i},{cells[i % 5]}\n" for i in range(40))})
    spec = f"csv:{folder / 'x.csv'}"
    told = (
        "column 'tags': each of the 5 different cells is one class, | or ; included; if these signs separate "
    )
    assert f"{told}labels, use tags:multilabel" in open_data(spec).notes
    assert not [note for note in open_data(spec, main="tags:multilabel").notes if note.startswith(told)]


@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_sets_between_commas_are_told(form, write):
    cells = [form.format(cell) for cell in ("a", "a, b", "b, c", "a, c", "c")]
    text = "text,tags\n" + "".join(f'w{i},"{cells[i % 5]}"\n' for i in range(40))
    spec = f"csv:{write(**{'x.csv': text}) / 'x.csv'}"
    fix = "if commas separate labels, write | in their place"
    told = "column 'tags': each of the 5 different cells is one class, commas included; "
    assert f"{told}{fix} and use tags:multilabel" in open_data(spec).notes
    told = "column 'tags': no cell has | or ;, which separate labels, so each cell is one label; "
    assert f"{told}{fix}" in open_data(spec, main="tags:multilabel").notes


@pytest.mark.parametrize("names", [["Bath, UK", "Nice, FR", "Rome"], ["1,5", "2,5", "1,2", "2,1"]])
def test_a_class_with_a_comma_in_its_name_is_no_set(names, write):
    text = "text,y\n" + "".join(f'w{i},"{names[i % len(names)]}"\n' for i in range(40))
    assert not [n for n in open_data(f"csv:{write(**{'x.csv': text}) / 'x.csv'}").notes if "commas" in n]


def test_a_class_with_a_bar_in_its_name_is_no_set(write):
    folder = write(**{"x.csv": "text,y\n" + "".join(f"w{i},{['a|b', 'c', 'd'][i % 3]}\n" for i in range(40))})
    assert not [note for note in open_data(f"csv:{folder / 'x.csv'}").notes if "multilabel" in note]

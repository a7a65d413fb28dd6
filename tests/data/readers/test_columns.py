"""Files of columns between blanks: columns by number and by header, and the malformed line named."""

import pytest

from mt2st_fast.data import open_data
from tests.data.readers.opened import REAL_DATA, labels, message_of, needs_real_data, words


def test_columns_are_named_by_number(write):
    folder = write(**{f"{part}.txt": "a N B\nb V I\n\n\nc N B\n" for part in ("train", "dev", "test")})
    splits = open_data(f"columns:{folder}")
    assert splits.tasks == ("col2", "col1")
    assert labels(splits, "col1") == ["N", "V", "N"]
    assert splits.train.bounds.tolist() == [0, 2, 3]


def test_columns_are_named_by_a_header(write):
    text = "# columns: word pos chunk\n-DOCSTART- -X- O\n\na N B\nb V I\n"
    folder = write(**{f"{part}.txt": text for part in ("train", "dev", "test")})
    splits = open_data(f"columns:{folder}", main="pos")
    assert splits.tasks == ("pos", "chunk")
    assert words(splits) == ["a", "b"]
    assert message_of(f"columns:{folder}", main="col1").endswith("no task 'col1'; it has pos, chunk")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a N\nb\n", "x.txt:2: 1 columns where the lines before have 2"),
        ("a\n", "x.txt:1: a word without a label"),
        ("# columns: w p p\na N N\n", "x.txt:1: a column is named twice"),
        ("\n\n", "x.txt: the file has no words"),
    ],
)
def test_columns_name_the_malformed_line(write, text, message):
    assert message in message_of(f"columns:{write(**{'x.txt': text}) / 'x.txt'}")


@needs_real_data
def test_conll2000_has_its_published_size():
    splits = open_data(f"columns:{REAL_DATA / 'conll2000'}")
    assert splits.train.n_rows + splits.dev.n_rows == 211_727
    assert splits.test.n_rows == 47_377
    assert splits.tasks == ("col2", "col1")

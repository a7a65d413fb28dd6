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
    assert message_of(f"columns:{folder}", main="col1").endswith("no task 'col1'; available: pos, chunk")


def test_blanks_within_cells_between_tabs_are_kept(write):
    text = "New York \tN\tB\n\u3000\tN\t\n10\u00a0000\t N\tI x\n\n" * 4
    splits = open_data(f"columns:{write(**{'x.txt': text}) / 'x.txt'}")
    assert set(splits.vocabulary.words) == {"New York", "\u3000", "10\u00a0000"}
    assert splits.train.targets["col1"].class_names == ("N",)
    assert splits.train.targets["col2"].class_names == ("B", "I x")
    assert splits.notes[:2] == (
        "x.txt: 4 cells are empty and count as unlabelled",
        "x.txt: labels containing a space, because columns are separated by tabs here: on 4 lines, the first is "
        "line 3",
    )
    text = "\u3000 N\n10\u00a0000  N\n\t\u2003 \nb\tV\n\n"
    splits = open_data(f"columns:{write(**{'y.txt': text * 4}) / 'y.txt'}")
    assert set(splits.vocabulary.words) == {"\u3000", "10\u00a0000", "b"}


@pytest.mark.parametrize(
    "comment", ["# domain = news", "#\tdomain = news", "# id 7\tdomain=train", "# by hand", "#split=a", "#"]
)
@pytest.mark.parametrize("sign", [" ", "\t"])
def test_comments_are_no_words_and_are_counted(write, comment, sign):
    sentence = "a _ _ O\nb _ _ B\n\n".replace(" ", sign)
    path = write(**{"x.txt": f"{comment}\n{sentence}" * 6}) / "x.txt"
    splits = open_data(f"columns:{path}")
    assert set(splits.vocabulary.words) == {"a", "b"}
    assert splits.record.files[0].left_out == {"comments": 6}
    assert "x.txt: 6 comment lines (such as # id) left out; the first is line 1" in splits.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a N\nb\n", "x.txt:2: 1 column, but the lines before have 2"),
        ("a\n", "x.txt:1: a word without a label"),
        ("# columns: w p p\na N N\n", "x.txt:1: duplicate column name"),
        ("\n\n", "x.txt: contains no words"),
        (
            "1\ta\tN\n\n# id = 2\n1\ta\tN\n2-3\tbc\t_\n2\tb\tV\n2.1\tx\t_\n",
            "x.txt: the first column counts the words",
        ),
        (
            "0 a N\n1 b V\n",
            "x.txt: the first column counts the words of each sentence, but must have the words",
        ),
    ],
)
def test_columns_name_the_malformed_line(write, text, message):
    assert message in message_of(f"columns:{write(**{'x.txt': text}) / 'x.txt'}")


def test_sentences_of_one_number_are_no_count(write):
    path = write(**{"x.txt": "1 N\n\n" * 9}) / "x.txt"
    assert set(open_data(f"columns:{path}").vocabulary.words) == {"1"}
    text = "1 N\n2 N\n\n2 N\n1 N\n\n" * 9
    assert set(open_data(f"columns:{write(**{'y.txt': text}) / 'y.txt'}").vocabulary.words) == {"1", "2"}


@needs_real_data
def test_conll2000_has_its_published_size():
    splits = open_data(f"columns:{REAL_DATA / 'conll2000'}")
    assert splits.train.n_rows + splits.dev.n_rows == 211_727
    assert splits.test.n_rows == 47_377
    assert splits.tasks == ("col2", "col1")


def test_names_of_columns_may_have_commas_between_them(write):
    text = "# columns: word, pos,chunk\n" + "a N B\n\n" * 9
    assert open_data(f"columns:{write(**{'a.txt': text}) / 'a.txt'}").tasks == ("chunk", "pos")


def test_signs_in_place_of_a_label_are_told(write):
    text = "".join(f"a {'_' if i % 3 else 'N'} {'-' if i % 2 else 'B'}\n\n" for i in range(12))
    notes = open_data(f"columns:{write(**{'a.txt': text}) / 'a.txt'}").notes
    assert [note.partition("; ")[0] for note in notes[:2]] == [
        "a.txt: column 'col1': _ in 8 cells is treated as a class",
        "a.txt: column 'col2': - in 6 cells is treated as a class",
    ]
    assert notes[0].endswith("separate columns by tabs, and leave these cells empty")


def test_columns_know_what_tables_have_in_place_of_a_label(write):
    text = "".join(f"a\t{mark}\n\n" for mark in ("N", "N/A", "NULL", "NaN", "na") * 3)
    notes = open_data(f"columns:{write(**{'a.txt': text}) / 'a.txt'}").notes
    assert notes[:4] == tuple(
        f"a.txt: column 'col1': {mark} in 3 cells is treated as a class; if it stands for no label, leave these cells "
        "empty"
        for mark in ("N/A", "NULL", "NaN", "na")
    )

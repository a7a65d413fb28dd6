"""Tables, columns and treebanks as people have them: read, with a note of what was left out, or refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast.data import open_data
from mt2st_fast.errors import InputError


def table(tmp_path, header, row, name="t.csv", n=40):
    path = tmp_path / name
    path.write_text(header + "\n" + "".join(row(i) + "\n" for i in range(n)))
    return f"csv:{path}"


def label(i):
    return "pos" if i % 2 else "neg"


TABLES = {
    "an index of pandas": (",text,label", lambda i: f"{i},film {i},{label(i)}"),
    "capitals": ("Text,Label", lambda i: f"film {i},{label(i)}"),
    "a last comma": ("text,label,", lambda i: f"film {i},{label(i)},"),
    "a comma in a quoted name": ('text;"label, main"', lambda i: f"film {i};{label(i)}"),
    "a long cell": ("text,label", lambda i: f"{'word ' * (40_000 if i == 3 else 2)},{label(i)}"),
}


@pytest.mark.parametrize("name", TABLES)
def test_everyday_tables_are_read(name, tmp_path):
    splits = open_data(table(tmp_path, *TABLES[name]))
    assert sum(corpus.n_rows for corpus in splits.parts.values()) == 40
    assert splits.train.column(splits.main).class_names == ("neg", "pos")
    left_out = {"an index of pandas": "1", "a last comma": "3"}.get(name)
    notes = [f"t.csv: left out because the header has no name for it: column {left_out}"] if left_out else []
    assert list(splits.notes) == notes


def test_a_text_column_of_another_name_is_asked_for_and_taken(tmp_path):
    spec = table(tmp_path, "v1,v2", lambda i: f"{label(i)},film {i}")
    with pytest.raises(InputError, match="choose the text column from v1, v2 with --text-column"):
        open_data(spec)
    splits = open_data(spec, text_column="v2")
    assert splits.main == "v1"
    with pytest.raises(InputError, match="no column 'v3'; available: v1, v2"):
        open_data(spec, text_column="v3")
    with pytest.raises(InputError, match="--text-column applies to csv:PATH, jsonl:PATH only"):
        open_data("stdlib", text_column="v2")


def test_a_delimiter_can_be_said(tmp_path):
    spec = table(tmp_path, "text|label", lambda i: f"a, b; c {i}|{label(i)}")
    splits = open_data(spec, delimiter="|")
    assert splits.train.column("label").class_names == ("neg", "pos")
    with pytest.raises(InputError, match="--delimiter must be one character or tab"):
        open_data(spec, delimiter="||")


def test_a_quotation_mark_in_a_table_with_tabs_is_a_sign(tmp_path):
    splits = open_data(table(tmp_path, "text\tlabel", lambda i: f'"film {i}\t{label(i)}', "t.tsv"))
    assert sum(corpus.n_rows for corpus in splits.parts.values()) == 40


def test_a_number_that_is_nan_is_missing(tmp_path):
    spec = table(tmp_path, "text,label,stars", lambda i: f"film {i},{label(i)},{'nan' if i % 4 == 0 else i}")
    splits = open_data(spec, auxiliary=["stars:regression"])
    missing = [np.isnan(corpus.column("stars").values).sum() for corpus in splits.parts.values()]
    assert sum(missing) == 10
    with pytest.raises(InputError, match="'inf' in column 'stars' is not a number"):
        open_data(
            table(tmp_path, "text,label,stars", lambda i: f"a,{label(i)},inf"), auxiliary=["stars:regression"]
        )


def test_comments_before_sentences_are_no_words(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text(
        "".join(f"# id 000-{i}\tdomain=train\nwho _ _ O\n# _ _ B\nmoon _ _ I\n\n" for i in range(30))
    )
    splits = open_data(f"columns:{path}")
    assert splits.train.targets["col3"].class_names == ("B", "I", "O")
    assert "#" in splits.vocabulary.words
    assert splits.notes == (
        "train.conll: 30 comment lines (such as # id) left out; the first is line 1",
        *(
            f"{column}: every training label is '_', so there is nothing to learn; add rows of other classes or leave "
            "it out"
            for column in ("col1", "col2")
        ),
    )


WORDS = "".join(
    f"1\tcats{i % 5}\tcat\tNOUN\tNN\t_\t2\tnsubj\t_\t_\n2\tsleep\tsleep\tVERB\tVB\t_\t0\troot\t_\t_\n\n"
    for i in range(40)
)


def test_treebanks_are_read_as_they_are_released(tmp_path):
    def folder(name, **files):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file.replace("__", ".").replace("_", "-")).write_text(text)
        return open_data(f"conllu:{tmp_path / name}")

    beside = {f"xx_{part}__txt": "cats sleep\n" for part in ("train", "dev", "test")}
    parts = {f"xx_{part}__conllu": WORDS for part in ("train", "dev", "test")}
    splits = folder("release", LICENSE__txt="free\n", **parts, **beside)
    assert {part: corpus.n_units for part, corpus in splits.parts.items()} == {
        "train": 40,
        "dev": 40,
        "test": 40,
    }
    splits = folder("only_test", LICENSE__txt="free\n", xx_test__conllu=WORDS)
    assert sum(corpus.n_units for corpus in splits.parts.values()) == 40
    splits = folder("in_parts", xx_train_a__conllu=WORDS, xx_train_b__conllu=WORDS, xx_test__conllu=WORDS)
    assert splits.train.n_units + splits.dev.n_units == 80
    assert splits.notes == ("train was read from xx-train-a.conllu, xx-train-b.conllu",)


def test_a_file_is_of_one_split(tmp_path):
    for name, message in (
        ("train_test", "train_test.conllu: looks like train and test by its name; rename the file"),
        ("extra", "extra.conllu is not named as train, dev or test"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("xx-train", "xx-test", name):
            (folder / f"{file}.conllu").write_text(WORDS)
        with pytest.raises(InputError, match=message):
            open_data(f"conllu:{folder}")
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("train_test", "other"):
        (folder / f"{name}.csv").write_text("text,label\n" + "a,x\nb,y\n" * 9)
    with pytest.raises(InputError, match="looks like train and test"):
        open_data(f"csv:{folder}")


def test_a_word_that_is_a_hash_is_no_comment(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("who O\n\n# text\nis B\n\n" * 20)
    splits = open_data(f"columns:{path}")
    assert splits.train.targets["col1"].class_names == ("B", "O", "text")
    assert splits.notes == ()

"""The files of a reader: compressed ones, which split each is, and what is said of those that cannot be used."""

import os
from pathlib import Path

import pytest

from mt2st_fast.data import open_data
from tests.data.readers.opened import CONLLU, labels, message_of, sentences, words


def test_compressed_files_are_read_too(write):
    folder = write(**{"a-train.conllu.gz": CONLLU, "a-dev.conllu.gz": CONLLU, "a-test.conllu": CONLLU})
    assert [len(words(open_data(f"conllu:{folder}"), part)) for part in ("train", "dev", "test")] == [5, 5, 5]


def test_a_broken_gzip_file_is_named(write):
    folder = write(**{"a.conllu.gz": CONLLU * 50})
    path = folder / "a.conllu.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert "is not a complete gzip file" in message_of(f"conllu:{path}")
    path.write_bytes(b"plain")
    assert "is not a complete gzip file" in message_of(f"conllu:{path}")


def test_one_file_is_split_80_10_10_the_same_way_each_time(write):
    path = write(**{"x.txt": sentences(50)}) / "x.txt"
    splits = [open_data(f"columns:{path}", seed=seed) for seed in (1, 2)]
    assert [corpus.n_units for corpus in splits[0].parts.values()] == [40, 5, 5]
    assert sorted(words(splits[0]) + words(splits[0], "dev") + words(splits[0], "test")) == sorted(
        f"w{i}" for i in range(50)
    )
    for part in splits[0].parts:
        assert words(splits[0], part) == words(splits[1], part)


@pytest.mark.parametrize(("given", "taken"), [("test", "dev"), ("dev", "test")])
def test_a_missing_split_takes_a_tenth_of_the_training_text(write, given, taken):
    folder = write(**{"train.txt": sentences(50), f"{given}.txt": sentences(7)})
    sizes = {part: corpus.n_units for part, corpus in open_data(f"columns:{folder}").parts.items()}
    assert sizes == {"train": 45, given: 7, taken: 5}


def test_split_words_begin_a_word_of_the_name(write):
    folder = write(**{"train.txt": sentences(20), "latest.txt": "x", "valid.txt": sentences(4)})
    assert open_data(f"columns:{folder}").dev.n_units == 4


def test_ambiguous_missing_and_foreign_files_are_named(write, tmp_path):
    message = message_of(f"conllu:{write(**{'README.md': 'x'})}")
    assert "no file in the folder ends in" in message
    assert message.endswith("; it has README.md: rename what is data, or pass one file")
    write(**{"train-a.txt": "x", "train-b.txt": "x"})
    assert "several files look like train (train-a.txt, train-b.txt)" in message_of(f"columns:{tmp_path}")
    (tmp_path / "train-a.txt").unlink()
    (tmp_path / "train-b.txt").rename(tmp_path / "one.txt")
    write(**{"dev.txt": "x"})
    assert "no file has `train` in its name (found dev.txt, one.txt)" in message_of(f"columns:{tmp_path}")


@pytest.mark.parametrize("kind", ["conllu", "columns", "csv", "text"])
def test_missing_empty_and_undecodable_files_are_named(write, kind):
    folder = write(empty="", latin=b"text,a\nx,1\n\xe9,1\n")
    assert "gone: there is no such file" in message_of(f"{kind}:{folder / 'gone'}")
    assert "empty: the file is empty" in message_of(f"{kind}:{folder / 'empty'}")
    if kind in ("csv", "text"):
        assert "latin:3: is not valid UTF-8" in message_of(f"{kind}:{folder / 'latin'}")


def test_too_little_text_to_split_is_named(write):
    path = write(**{"x.txt": sentences(2)}) / "x.txt"
    assert "too few sentences or documents to split (2)" in message_of(f"columns:{path}")


@pytest.mark.parametrize("kind", ["conllu", "columns", "csv", "text"])
def test_a_folder_without_training_text_is_told_what_to_give(write, kind):
    name = {"conllu": "conllu", "csv": "csv"}.get(kind, "txt")
    folder = write(**{f"x-dev.{name}": "x", f"x-test.{name}": "x", "LICENSE": "free"})
    assert message_of(f"{kind}:{folder}") == (
        f"{folder}: no file has `train` in its name (found x-dev.{name}, x-test.{name}); add or rename one, or give "
        f"a single file such as {folder}/x-dev.{name}, which is then split into train, dev and test"
    )


def test_a_test_set_alone_is_split_and_said(write):
    folder = write(**{"xx_pud-ud-test.conllu": f"{CONLLU}\n" * 5, "LICENSE.txt": "free"})
    splits = open_data(f"conllu:{folder}")
    assert sum(corpus.n_units for corpus in splits.parts.values()) == 10
    assert splits.notes[0] == (
        "xx_pud-ud-test.conllu is named like a test file but is the only file, so it is split into train, dev and test"
    )
    [file] = splits.record.files
    assert (file.units, file.rows) == (10, 25)
    assert file.left_out == {"comments": 15, "ranges of words and empty nodes": 10}


def test_hidden_files_are_no_data(write):
    folder = write(**{"a-train.conllu": CONLLU * 2, "._a-train.conllu": "\0\0", ".a-dev.conllu": "x"})
    assert [file.part for file in open_data(f"conllu:{folder}").record.files] == ["train"]


def test_a_folder_of_folders_names_them(write, tmp_path):
    (tmp_path / "UD_English-EWT").mkdir()
    (tmp_path / "UD_English-EWT" / "en-train.conllu").write_text(CONLLU)
    (tmp_path / "empty").mkdir()
    assert message_of(f"conllu:{tmp_path}").endswith(
        "; subfolders contain such files: use one of UD_English-EWT"
    )


def test_files_that_are_no_part_are_told(write):
    table = "text,label\n" + "".join(f"film {i},{'ab'[i % 2]}\n" for i in range(20))
    folder = write(**{"train.csv": table, "latest.csv": table, "notes.txt": "none", "more.csv.gz": ""})
    assert open_data(f"csv:{folder}").notes == (
        "not read, because train, dev or test is not in the name: latest.csv, more.csv.gz",
    )


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="pipes have no names here")
@pytest.mark.parametrize("kind", ["csv", "jsonl", "columns", "conllu"])
def test_every_reader_opens_its_file_once_as_it_may_be_a_pipe(tmp_path, kind):
    """As in csv:<(zcat reviews.csv.gz), where a second look finds nothing."""
    rows = {
        "csv": "# a comment\ntext;label\n" + "".join(f"w{i};{i % 2}\n" for i in range(9)),
        "jsonl": "".join(f'{{"text": "w{i}", "label": "{i % 2}"}}\n' for i in range(9)),
        "columns": sentences(9),
        "conllu": CONLLU * 5,
    }[kind]
    (tmp_path / "file").write_text(rows)
    read_from, write_to = os.pipe()
    os.write(write_to, rows.encode())  # less than a pipe holds
    os.close(write_to)
    piped = open_data(f"{kind}:/dev/fd/{read_from}")
    os.close(read_from)
    kept = open_data(f"{kind}:{tmp_path / 'file'}")
    assert piped.vocabulary.words == kept.vocabulary.words
    assert labels(piped, piped.main) == labels(kept, kept.main)


def test_json_lines_under_the_name_of_a_table_are_told_from_one(write):
    """Its header would be a row, and texts of other lengths have other numbers of cells."""
    folder = write(**{"x.csv": '{"text": "a, b", "label": "c"}\n' * 9})
    assert message_of(f"csv:{folder / 'x.csv'}").endswith(
        f"x.csv:1: is a JSON object and no header; use jsonl:{folder / 'x.csv'}"
    )


def test_standard_input_has_a_name():
    assert "for standard input, use csv:/dev/stdin" in message_of("csv:-")

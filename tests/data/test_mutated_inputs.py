"""Files as they come: whatever was done to them, each is read whole, with every row counted, or refused in one line."""

from __future__ import annotations

import csv
import gzip
import io
import random
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mt2st_fast.data import (
    Corpus,
    Splits,
    TokenStream,
    Vocabulary,
    analogy_batches,
    open_data,
    preparation,
    prepare,
    similarity_batches,
)
from mt2st_fast.data.labelled_text import read_labelled_text
from mt2st_fast.data.text import lines as lines_module
from mt2st_fast.data.text import word_files
from mt2st_fast.data.text.tokenizers import TOKENIZERS
from mt2st_fast.errors import InputError
from mt2st_fast.serving.reading import read_units
from mt2st_fast.words.gensim_options import read_text
from mt2st_fast.words.vectors import WordVectors
from tests.data.mutations import mutated, plain_lines

QUICK, LONG = 30, 420  # inputs for each reader
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}


def word_line(i: int) -> str:
    return f"{i % 7 + 1}\tcats{i % 5}\tcat\tNOUN\tNN\tNumber={'Plur' if i % 2 else 'Sing'}\t0\troot\t_\t_\n"


TREEBANK = "".join(
    f"# sent_id = {u}\n" + "".join(word_line(i) for i in range(n)) + "\n"
    for u, n in enumerate([3, 1, 4, 2, 5])
)
COLUMNS = "# id 1\tdomain = news\n" + "who\t_\tO\nNew York\tN\tB\n\n" * 6
BLANKS = "-DOCSTART- O\n\n" + "who O\nsang O\n\nmoon B\n# O\n\n" * 4
TABLE = "id,text,label\n" + "".join(
    f'{i},"film {i}, a ""good"" one",{"pn"[i % 2]}\n{i}x,plain {i},p\n' for i in range(8)
)
TABS = "text\tlabel\n" + "".join(f'it"s {i}\t{"ab"[i % 2]}\n' for i in range(12))
TEXT = "One line, of words.\n\nAnother one\nThe third é 語\n" * 4
LABELLED = "__label__a x y\n__label__b y é z\n\n__label__a __label__t__u z\n" * 3
VECTORS = "4 3\n" + "".join(f"w{i} {i} 0.5 -1e-3\n" for i in range(4))
GLOVE = VECTORS.partition("\n")[2].replace("w1", "New York")
PAIRS = "word 1\tword 2\tscore\n# a comment\n" + "king\tqueen\t8.5\nking\tman\t5\nking\tunknown\t1\n" * 3
ANALOGIES = ": family\nking queen man woman\nman woman king queen\n: more\nking queen man unknown\n" * 3
KNOWN = Vocabulary(["king", "queen", "man", "woman"], np.array([4, 3, 2, 1]))


def rows_and(splits: Splits, what: Callable[[Corpus], int]) -> tuple[int, int]:
    """(rows or units that the parts have, those that the record says)"""
    return sum(map(what, splits.parts.values())), sum(file.rows for file in splits.record.files)


def of_treebank(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    splits = open_data(f"conllu:{path}")
    said, left_out = rows_and(splits, lambda corpus: corpus.n_rows), splits.record.files[0].left_out
    words = sum(bool(re.match(r" *\d+ *\t", line)) for line in lines)
    yield said, (words, words)
    blank = sum(not line.strip() for line in lines)
    yield words + blank + sum(left_out.values()), len(lines)


def of_columns(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    splits = open_data(f"columns:{path}")
    said, left_out = rows_and(splits, lambda corpus: corpus.n_rows), splits.record.files[0].left_out
    header = lines[0].startswith("# columns:")
    words = sum(bool(line.strip()) for line in lines) - sum(left_out.values()) - header
    yield said, (words, words)
    comments = sum(line.startswith("#") for line in lines)
    yield left_out.get("comments", 0) <= comments, True
    marks = sum(line.split()[:1] == ["-DOCSTART-"] for line in lines)
    yield left_out.get("marks between documents", 0), marks


def of_table(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    splits = open_data(f"csv:{path}")
    said, left_out = rows_and(splits, lambda corpus: corpus.n_units), dict(splits.record.files[0].left_out)
    delimiter = DELIMITERS[splits.record.understood["between cells"]]
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    text = "".join(f"{line}\n" for line in lines)
    records = [
        record
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
        if len(record) > 1 or "".join(record).strip()
    ]
    left_out.pop("blank lines", None)
    rows = len(records) - 1 - sum(left_out.values())
    yield said, (rows, rows)
    over_lines = sum(any("\n" in cell for cell in record) for record in records[1:])
    notes = [note for note in splits.notes if "span several lines" in note]
    yield bool(notes), bool(over_lines)


def of_text(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    splits = open_data(f"text:{path}")
    filled = sum(bool(line.strip()) for line in lines)
    yield sum(corpus.n_units for corpus in splits.parts.values()), filled
    yield splits.record.files[0].units, filled
    yield splits.record.files[0].left_out.get("lines without words", 0), len(lines) - filled


def of_labelled(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    text = read_labelled_text(path)
    words = [line.split() for line in lines if line.strip()]
    yield text.documents.n_units, len(words)
    labels = sum(word.startswith("__label__") for line in words for word in line)
    yield sum(len(each.values) for each in text.labels.values()), labels
    yield len(text.documents.ids), sum(map(len, words)) - labels


def of_corpus_file(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    text = read_text(None, path)
    words = [text.vocabulary.words[i] for i in text.ids]
    yield (
        [words[a:b] for a, b in zip(text.bounds[:-1], text.bounds[1:], strict=True)],
        [line.split() for line in lines],
    )


def of_preparation(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    out = path.parent / "out" / "tokens"
    done = prepare(path, out, min_count=1)
    words = [line.split() for line in lines if line.strip()]
    yield (done.words_read, done.words_kept, done.sentences), (sum(map(len, words)),) * 2 + (len(words),)
    text = TokenStream.open(out)
    found = [text.vocabulary.words[i] for i in text.ids]
    yield [found[a:b] for a, b in zip(text.bounds[:-1], text.bounds[1:], strict=True)], words


def of_vectors(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    read = WordVectors.read(path)
    filled = [line for line in lines if line.strip(" \t")]
    first = lines[0].split()
    header = lines[0].isascii() and len(first) == 2 and all(field.isdigit() for field in first)
    yield len(read), len(filled) - header


def _pairs(lines: list[str]) -> Iterator[list[str]]:
    for line in lines:
        if line.strip() and not line.lstrip().startswith("#"):
            yield [
                f.strip()
                for f in re.split("\t" if "\t" in line else "," if "," in line else r"\s+", line.strip())
            ]


def of_pairs(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    batches = similarity_batches(path, KNOWN)
    known = [fields for fields in _pairs(lines) if all(word.lower() in KNOWN for word in fields[:2])]
    yield len(batches._types), len(known)


def of_analogies(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    batches = analogy_batches(path, KNOWN)
    known = [line for line in lines if line.strip() and all(word.lower() in KNOWN for word in line.split())]
    yield len(batches._types), len(known)


def of_text_to_label(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    chunks = (path.read_bytes()[i : i + 50] for i in range(0, path.stat().st_size, 50))
    units = [unit for block in read_units(chunks, str(path), TOKENIZERS["blanks"], "text") for unit in block]
    yield [unit.lines for unit in units], [[line] for line in lines]


def of_treebank_to_label(path: Path, lines: list[str]) -> Iterator[tuple[object, object]]:
    chunks = (path.read_bytes()[i : i + 50] for i in range(0, path.stat().st_size, 50))
    units = [unit for block in read_units(chunks, str(path), str.split, "conllu") for unit in block]
    yield [line for unit in units for line in unit.lines], [line for line in lines if line.strip()]
    yield sum(len(unit.words) for unit in units), sum(bool(re.match(r" *\d+ *\t", line)) for line in lines)


FORMATS = {
    "conllu": (of_treebank, TREEBANK, ".conllu"),
    "columns": (of_columns, COLUMNS, ".txt"),
    "columns between blanks": (of_columns, BLANKS, ".conll"),
    "csv": (of_table, TABLE, ".csv"),
    "tsv": (of_table, TABS, ".tsv"),
    "text": (of_text, TEXT, ".txt"),
    "train_supervised": (of_labelled, LABELLED, ".txt"),
    "corpus_file": (of_corpus_file, TEXT, ".txt"),
    "prepare": (of_preparation, TEXT, ".txt"),
    "vectors": (of_vectors, VECTORS, ".vec"),
    "glove": (of_vectors, GLOVE, ".txt"),
    "pairs": (of_pairs, PAIRS, ".txt"),
    "analogies": (of_analogies, ANALOGIES, ".txt"),
    "predict": (of_text_to_label, TEXT, ".txt"),
    "predict a treebank": (of_treebank_to_label, TREEBANK, ".conllu"),
}


def check(file_format: str, content: bytes, path: Path) -> None:
    """Read with every row counted as by the plainest means, or refused in one line that names the file."""
    path.write_bytes(content)
    try:
        lines = plain_lines(content)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        lines = None
    refused = None
    try:
        for found, expected in FORMATS[file_format][0](path, lines if lines is not None else []):
            assert lines is not None, "was read, and is no text"
            assert found == expected
    except InputError as error:
        refused = str(error)
    if refused is not None:
        assert len(refused.splitlines()) == 1, repr(refused)
        assert str(path) in refused


def check_many(file_format: str, seeds: range, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "out").mkdir()
    _, content, suffix = FORMATS[file_format]
    for seed in seeds:
        chance = random.Random(f"{file_format} {seed}")
        size = chance.choice([7, 60, 1 << 20])  # blocks, which must not matter
        monkeypatch.setattr(lines_module, "CHUNK_BYTES", size)
        monkeypatch.setattr(word_files, "BLOCK_BYTES", size)
        monkeypatch.setattr(preparation, "BLOCK_BYTES", size)
        changed = mutated(content.encode(), chance)
        name = chance.choice([f"in{suffix}"] * 6 + [f"in{suffix}.gz", f"in{suffix}.GZ"])
        if name.lower().endswith(".gz") and chance.random() < 0.9:
            changed = gzip.compress(changed, mtime=0)
        try:
            check(file_format, changed, folder / name)
        except Exception as error:
            error.add_note(f"seed {seed}, blocks of {size}: {changed!r}")
            raise


@pytest.mark.parametrize("file_format", FORMATS)
def test_as_they_are_they_are_read(file_format, tmp_path):
    (tmp_path / "out").mkdir()
    _, content, suffix = FORMATS[file_format]
    path = tmp_path / f"in{suffix}"
    path.write_text(content, encoding="utf-8")
    assert all(
        found == expected for found, expected in FORMATS[file_format][0](path, plain_lines(content.encode()))
    )


@pytest.mark.parametrize("file_format", FORMATS)
def test_mutated_they_are_read_or_refused(file_format, tmp_path, monkeypatch):
    check_many(file_format, range(QUICK), tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("file_format", FORMATS)
def test_many_mutated_are_read_or_refused(file_format, tmp_path, monkeypatch):
    check_many(file_format, range(QUICK, QUICK + LONG), tmp_path, monkeypatch)

"""Files read by the kernel hold what plain Python finds in them, whatever the bytes and wherever blocks are cut."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mt2st_fast import Word2Vec
from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.labelled_text import read_labelled_text, target_columns
from mt2st_fast.data.line_bags import LineBags
from mt2st_fast.data.text import word_files
from mt2st_fast.data.text.decoding import decode
from mt2st_fast.data.text.word_files import read_lines, read_words
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import END
from mt2st_fast.kernels.text import words as kernel_words

LONG = "ß" * 700
TEXTS = {
    "plain": "__label__a x y\n__label__b y z\n",
    "no final newline": "a __label__x b\n__label__y c",
    "returns": "__label__a x\r\ny\rz\r\n\r\n__label__b\r\r\nw \r",
    "empty lines": "\n\n__label__a x\n\n \t \n__label__a\n\n",
    "labels alone": "__label__a\n__label__a __label__b\n",
    "families": "__label__t__a x __label__u__1 y\n__label__t__b__c __label__z\n__label____ __label__ __label__t__\n",
    "NUL": "__label__a x\0y\n\0\n\0__label__b \0 z",
    "many bytes": "\ufeff__label__ä naïve слово\u3000語\u00a0🙂\n\u2028__label__a \ufeffx\x85y\n",
    "long words": f"__label__{LONG} {LONG}\n{LONG}x __label__a\n",
    "as frequent": "__label__a b c a é z ab a\0b aé 🙂 \uffff\n",
    "white space alone": " ",
    "a line feed": "\n",
    "a return": "\r",
}


@pytest.fixture(params=[(1 << 20, 8 << 20), (16, 40), (3, 17)], ids=str)
def cut(request, monkeypatch) -> None:
    """Pieces and blocks of so many bytes."""
    monkeypatch.setattr(kernel_words, "PIECE_BYTES", (request.param[0], request.param[0]))
    monkeypatch.setattr(word_files, "BLOCK_BYTES", request.param[1])


def lines_of(content: bytes) -> list[list[str]]:
    """The words of a text's lines."""
    lines = decode(content).split("\n")
    return [line.split() for line in (lines[:-1] if content[-1:] in (b"\n", b"\r") else lines)]


def words_of(tokens: Tokens) -> list[list[str]]:
    words = [tokens.vocabulary.words[i] for i in tokens.ids]
    return [words[a:b] for a, b in zip(tokens.bounds[:-1], tokens.bounds[1:], strict=True)]


def check_vocabulary(tokens: Tokens) -> None:
    """Words by falling count, then by name."""
    count_of = Counter(word for line in words_of(tokens) for word in line)
    ordered = sorted(count_of.items(), key=lambda item: (-item[1], item[0]))
    found = zip(tokens.vocabulary.words, tokens.vocabulary.counts.tolist(), strict=True)
    assert list(found) == ordered


def check_labelled(path: Path, content: bytes, prefix: str = "__label__") -> None:
    lines = [line for line in lines_of(content) if line]
    labels = [
        (word.removeprefix(prefix), d)
        for d, line in enumerate(lines)
        for word in line
        if word.startswith(prefix)
    ]
    if not labels:
        with pytest.raises(InputError, match=f"no line has a label; write labels like {prefix}sport"):
            read_labelled_text(path, prefix)
        return
    text = read_labelled_text(path, prefix)
    assert words_of(text.documents) == [
        [word for word in line if not word.startswith(prefix)] for line in lines
    ]
    check_vocabulary(text.documents)
    expected: dict[str, list[tuple[str, int]]] = {}
    for label, d in labels:
        family, two, value = label.partition("__")
        family, value = (family, value) if family and two and value else ("label", label)
        expected.setdefault(family, []).append((value, d))
    assert text.families == tuple(expected)
    for family, found in text.labels.items():
        assert found.names == tuple(sorted({value for value, _ in expected[family]}))
        assert [(found.names[v], d) for v, d in zip(found.values, found.documents, strict=True)] == expected[
            family
        ]
        assert (found.values.dtype, found.documents.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_labelled_text_is_what_stands_in_the_file(name, packed, cut, tmp_path):
    content = TEXTS[name].encode()
    path = tmp_path / ("x.gz" if packed else "x.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    check_labelled(path, content)
    check_labelled(path, content, prefix="")
    read = read_words(path)
    assert [read.words[i] if i != END else "\n" for i in read.numbers] == [
        word for line in lines_of(content) for word in [*line, "\n"]
    ]
    assert read.counts.tolist() == [Counter(read.numbers.tolist())[i] for i in range(len(read.words))]


@pytest.mark.parametrize("name", TEXTS)
def test_lines_are_units(name, cut, tmp_path):
    content = TEXTS[name].encode()
    (tmp_path / "x.txt").write_bytes(content)
    expected = Tokens.of(lines_of(content))
    found = read_lines(tmp_path / "x.txt")
    assert found.vocabulary.words == expected.vocabulary.words
    assert found.vocabulary.counts.tolist() == expected.vocabulary.counts.tolist()
    for one, other in ((found.ids, expected.ids), (found.bounds, expected.bounds)):
        assert one.tolist() == other.tolist()
        assert one.dtype == other.dtype


@pytest.mark.parametrize("seed", range(3))
def test_long_random_text(seed, cut, tmp_path):
    chance = random.Random(seed)
    words = [
        "__label__a",
        "__label__t__b",
        "x",
        "é",
        "語語",
        "🙂",
        "\ufeff",
        "\0",
        "longer-than-eight",
        "longer-than-nine",
    ]
    gaps = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\r",
        "\r\r\n",
        "\n\ufeff",
        "\r\ufeff\ufeff",
        "\t",
        "\u3000",
        "\u2009",
        "\x1c",
        "\0",
    ]
    content = "".join(chance.choice(words) + chance.choice(gaps) for _ in range(2000)).encode()
    (tmp_path / "x.txt").write_bytes(content)
    check_labelled(tmp_path / "x.txt", content)
    found = read_lines(tmp_path / "x.txt")
    assert words_of(found) == lines_of(content)
    check_vocabulary(found)


def test_the_same_label_twice_on_a_line_is_one_class(tmp_path):
    (tmp_path / "x.txt").write_text("__label__a w __label__a\nw __label__b\nw\n")
    column = target_columns(read_labelled_text(tmp_path / "x.txt"))["label"]
    assert (column.kind, column.values.tolist()) == ("classes", [0, 1, -100])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.txt: the file is empty"),
        (
            b"__label__a fine\n" * 300 + b"not \xff utf\n",
            "x.txt:301: is not valid UTF-8; convert the file to UTF-8",
        ),
        (b"\xef\xbb\xbf__label__a\n\xef\xbb\n", "x.txt:2: is not valid UTF-8; convert the file to UTF-8"),
        (b"__label__a cut off \xe2\x82", "x.txt:1: is not valid UTF-8; convert the file to UTF-8"),
        (b"a \xed\xa0\x80 surrogate", "x.txt:1: is not valid UTF-8; convert the file to UTF-8"),
    ],
)
def test_a_labelled_file_that_cannot_be_read_is_one_line(content, message, cut, tmp_path):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_labelled_text(tmp_path / "x.txt")
    assert str(caught.value) == f"{tmp_path}/{message}"


def test_a_word_of_a_million_bytes_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr(word_files, "BLOCK_BYTES", 1000)
    (tmp_path / "x.txt").write_bytes(b"__label__a " + b"x" * 3_000_000)
    with pytest.raises(InputError, match="contains a word longer than a million bytes"):
        read_words(tmp_path / "x.txt")


def test_files_that_are_missing_or_cut_off(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_words(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read"):
        read_words(tmp_path)
    (tmp_path / "x.gz").write_bytes(gzip.compress(random.Random(0).randbytes(500).hex().encode())[:-20])
    with pytest.raises(InputError, match="gzip"):
        read_words(tmp_path / "x.gz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a b\n\xff", "x.txt:2: is not valid UTF-8"),
        (b"\n \n", "the text has no words"),
        (b"", "x.txt: the file is empty"),
    ],
)
def test_a_corpus_file_that_cannot_be_used_is_one_line(content, message, tmp_path):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Word2Vec(corpus_file=tmp_path / "x.txt")
    with pytest.raises(InputError, match="none: there is no such file"):
        Word2Vec(corpus_file=tmp_path / "none")


def test_a_text_is_a_line_whatever_returns_it_has():
    features = BagFeatures(Vocabulary(list("abcd"), [1] * 4), 1, 0)
    ids, bounds = LineBags(features, "__label__")(["a\rb", "c\r", "\r\r", "\ufeffd"])
    assert (ids.tolist(), bounds.tolist()) == ([0, 1, 2, 3], [0, 2, 3, 3, 4])

"""Token files: the documented format, and damage is named."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from mt2st_fast.data import TokenStream, Vocabulary, prepare, stream
from mt2st_fast.errors import InputError
from tests.data.token_files import expected, sentences_of, text_of


def test_a_token_file_has_the_frequent_words_of_every_sentence(corpus: Path, tmp_path: Path) -> None:
    prepare([corpus], tmp_path / "t", min_count=3, lower=True)
    read = TokenStream.open(tmp_path / "t")
    sentences = expected(text_of(corpus).lower(), 3)
    assert sentences_of(read) == sentences
    counts = Counter(chain(*sentences))
    assert read.vocabulary.words == sorted(counts, key=lambda word: (-counts[word], word))
    assert read.vocabulary.counts.tolist() == sorted(counts.values(), reverse=True)
    assert read.ids.dtype == np.int32
    assert read.bounds.dtype == np.int64
    assert "The" not in read.vocabulary
    assert "the" in read.vocabulary


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("b a b\n\nc\n")
    prepare([tmp_path / "x.txt"], tmp_path / "t", min_count=1)
    content = (tmp_path / "t").read_bytes()
    magic, version, checksum, n, m, size, of_header = struct.unpack_from("<8sIIqqqI", content)
    assert (magic, version, n, m) == (b"MT2STTOK", 2, 4, 2)
    assert struct.unpack_from("<4i", content, 64) == (0, 1, 0, 2)
    assert struct.unpack_from("<3q", content, 80) == (0, 3, 4)
    assert json.loads(content[104:]) == {"words": ["b", "a", "c"], "counts": [2, 1, 1]}
    assert (size, checksum) == (len(content) - 104, zlib.crc32(content[64:]))
    assert of_header == zlib.crc32(content[:40])
    assert content[44:64] == bytes(20)


# What cannot be used


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        TokenStream.open(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_files_are_named(corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert "no such file" in refused(path)
    prepare([corpus], path, min_count=1)
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    for content, name in [
        (whole[:-1], "truncated"),
        (whole[: len(whole) // 2], "truncated"),
        (whole + b"x", "truncated"),
        (whole[:40], "not a token file"),
        (b"", "not a token file"),
        (b"plain text of some length " * 10, "not a token file"),
        (whole[:8] + struct.pack("<I", 7) + whole[12:], "version 7"),
        (whole[:16] + struct.pack("<q", -5) + whole[24:], "damaged"),
        (flipped, "damaged"),
    ]:
        path.write_bytes(content)
        assert name in refused(path)


def test_no_byte_may_change_unseen(tmp_path: Path) -> None:
    path = tmp_path / "t"
    (tmp_path / "x.txt").write_text("a b c d e f g h\na c\n" * 40)
    prepare([tmp_path / "x.txt"], path, min_count=1)
    whole, chance = path.read_bytes(), random.Random(3)
    for _ in range(350):
        at, cut = chance.randrange(len(whole)), chance.random() < 0.1
        path.write_bytes(
            whole[:at]
            if cut
            else whole[:at] + bytes([whole[at] ^ 1 << chance.randrange(8)]) + whole[at + 1 :]
        )
        refused(path)
    path.write_bytes(whole)
    assert len(TokenStream.open(path).ids) == 400


@pytest.mark.parametrize(
    ("at", "number", "value"),
    [
        (64 + 8, "<i", 8),
        (64 + 8, "<i", -1),
        (64 + 8, "<i", 2**30),
        (-16, "<q", 2**40),
        (-16, "<q", 0),
        (-8, "<q", 7),
    ],
)
def test_numbers_that_kernels_would_read_by_are_checked_whoever_wrote_them(
    at, number, value, tmp_path: Path
) -> None:
    path = tmp_path / "t"
    (tmp_path / "x.txt").write_text("a b c d\ne f g h\na b\n")
    prepare([tmp_path / "x.txt"], path, min_count=1)
    content = bytearray(path.read_bytes())
    struct.pack_into(number, content, at if at > 0 else 64 + 4 * 10 + 8 * 4 + at, value)
    seal(path, content)
    assert "damaged" in refused(path)


@pytest.mark.parametrize(
    "vocabulary",
    [
        "no JSON", "[]", '{"words": ["a", "b"]}', '{"words": ["a", "b"], "counts": [2]}', '{"words": 3, "counts": [3]}',
        '{"words": ["a", "a"], "counts": [2, 1]}', '{"words": ["a", 5], "counts": [2, 1]}',
        '{"words": ["a", "b"], "counts": [4, -1]}', '{"words": ["a", "b"], "counts": [2.5, 0.5]}',
        '{"words": ["a", "b"], "counts": [2, 2]}',
    ],
)  # fmt: skip
def test_a_vocabulary_that_is_none_is_named(vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "t"
    (tmp_path / "x.txt").write_text("a b a\n")
    prepare([tmp_path / "x.txt"], path, min_count=1)
    content = path.read_bytes()[: 64 + 16 + 16] + vocabulary.encode()
    seal(path, bytearray(content[:32] + struct.pack("<q", len(vocabulary)) + content[40:]))
    assert "damaged" in refused(path)


def seal(path: Path, content: bytearray) -> None:
    """Write a token file with the checksums that belong to its content."""
    struct.pack_into("<I", content, 12, zlib.crc32(content[64:]))
    struct.pack_into("<I", content, 40, zlib.crc32(content[:40]))
    path.write_bytes(content)


def test_write_stream_is_checked(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["a", "b"], [2, 1])
    with pytest.raises(ValueError, match="vocabulary"):
        stream.write_stream(tmp_path / "t", [(np.zeros(3, np.int32), np.array([2]))], vocabulary)
    assert os.listdir(tmp_path) == []

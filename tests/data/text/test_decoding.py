"""The one rule: what a text in bytes says, wherever it is cut, and what is said of it."""

from __future__ import annotations

import gzip
import logging
import random
import time

import pytest

from mt2st_fast.data.text.decoding import Oddities, count_ends, decode, foreign
from mt2st_fast.data.text.lines import TextLines, open_lines
from mt2st_fast.errors import InputError
from tests.data.mutations import plain_lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb", ["a", "b"]),
        ("a\r\nb\rc\r\r\nd\r\r", ["a", "b", "c", "d", ""]),
        ("\r\n\n\r", ["", "", ""]),
        ("\ufeffa \ufeffb\n\ufeff\ufeffc\r\ufeffd", ["a \ufeffb", "c", "d"]),
        ("a\0bc\0", ["a bc "]),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\n", ["a\x0bb\x0cc\x1cd\x85e\u2028f"]),
        ("\ufeff", [""]),
    ],
)
def test_lines(content, lines, caplog):
    for size in (1, 2, 3, 100):
        data = content.encode()
        found = TextLines([data[i : i + size] for i in range(0, len(data), size)], "x")
        assert list(found) == list(enumerate(lines, 1))
        assert plain_lines(data) == lines


def random_content(chance):
    signs = ["a", "b ", "é", "\n", "\r", "\r\n", "\ufeff", "\n\ufeff", "\0", "語"]
    return "".join(chance.choices(signs, k=chance.randrange(300))).encode()


@pytest.mark.parametrize("seed", range(30))
def test_neither_lines_nor_notes_depend_on_cuts(seed, caplog):
    chance = random.Random(seed)
    content = random_content(chance)
    whole = TextLines([content], "x")
    lines = list(whole)
    assert [line for _, line in lines] == plain_lines(content)
    for size in (1, 3, 50):
        pieces = [content[i : i + size] for i in range(0, len(content), size)]
        cut = TextLines(pieces, "x")
        assert list(cut) == lines
        assert cut.notes == whole.notes
        assert count_ends(pieces) == count_ends([content]) == decode(content).count("\n")


def test_what_is_odd_is_counted_with_the_line_of_the_first(caplog):
    text = TextLines([b"a\nb \xef\xbb\xbfc\n\xef\xbb\xbfd\n", b"e\0f\0\r", b"g\r\r\n"], "x.txt")
    with caplog.at_level(logging.WARNING):
        assert len(list(text)) == 5
    assert text.notes == [
        "NUL characters read as spaces: 2, the first on line 4",
        "lines that end in a lone carriage return, where others end in a line feed: 1, the first is line 4",
        "byte order marks kept within lines: 1, the first on line 2; were files joined without a "
        "line feed between them?",
    ]
    assert [record.getMessage() for record in caplog.records] == [f"x.txt: {note}" for note in text.notes]
    quiet = TextLines([b"a\rb\r"], "x.txt")
    assert (len(list(quiet)), quiet.notes) == (2, [])


def test_a_mark_may_be_of_a_word_where_lines_begin_with_one():
    content = "\ufeffa\n\ufeffb\n".encode()
    for size in (1, 4, 100):
        pieces = [content[i : i + size] for i in range(0, len(content), size)]
        assert [line for _, line in TextLines(pieces, "x", tell=False, joined=False)] == ["a", "\ufeffb"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named_with_the_fix(encoding, tmp_path):
    path = tmp_path / "x.txt"
    name = encoding[:6].upper()
    for packed in (False, True):
        content = "ab é\n語\n".encode(encoding)
        path.write_bytes(gzip.compress(content) if packed else content)
        with pytest.raises(InputError) as caught:
            list(open_lines(path))
        assert str(caught.value) == f"{path}: is in {name}, not UTF-8; convert it: iconv -f {name} -t UTF-8"
        with pytest.raises(InputError, match=f"pipe: is in {name}"):
            list(TextLines([content[:1], content[1:3], content[3:]], "pipe"))


def test_packed_text_and_plain_text_are_told_apart():
    assert "gzip -d" in foreign(gzip.compress(b"a")[:16])
    assert "a Parquet file" in foreign(b"PAR1\x15\x04\x15\x10\x15\x14L\x15\x02\x15\0\x12")
    for content in (b"", b"a", b"\0", b"a\0b", b"a b\0c d\0", "語語語".encode(), b"PK", b"\xef\xbb\xbfa"):
        assert foreign(content) is None


def test_packed_files_are_read_whatever_their_name(tmp_path):
    for name in ("x", "x.txt", "x.gz", "x.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(b"a\n") + gzip.compress(b"b\n"))
        assert list(open_lines(tmp_path / name)) == [(1, "a"), (2, "b")]
    (tmp_path / "x.GZ").write_bytes(b"a\n")
    with pytest.raises(InputError, match=r"has the suffix \.gz but is not a complete gzip file; rename it"):
        list(open_lines(tmp_path / "x.GZ"))


def test_a_byte_that_is_not_utf8_is_named_by_its_line():
    with pytest.raises(InputError, match="x:4: is not valid UTF-8; convert the file to UTF-8"):
        list(TextLines([b"a\r\nb\rc\n", b"d\xff\n"], "x"))


def test_returns_alone_take_no_longer_than_others():
    """A rule that looks ahead from each of them would take minutes."""
    content = b"\r" * 1_000_000 + b"x"
    began = time.monotonic()
    assert len(list(TextLines([content], "x"))) == 1_000_001
    oddities = Oddities()
    oddities.look(content, len(content), 1)
    assert time.monotonic() - began < 30

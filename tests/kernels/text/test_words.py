"""Words counted by the kernel are those of str.split, whatever the bytes, the blocks, the pieces and the threads."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch

from mt2st_fast.kernels import END, PADDING, WordCounter, split_lines
from mt2st_fast.kernels.text import words as words_module
from mt2st_fast.kernels.text.reference import ReferenceCounter, reference_split_lines

SPACES = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace())
PIECES = [1, 2, 7, 64, 1 << 20]
TEXTS = {
    "empty": "",
    "a word": "word",
    "line feeds": "\n\n\n",
    "no final newline": "a b\nc",
    "returns": "a\r\nb\rc\r\r\nd \r\n\r\n e\r\r\r f\r\r",
    "returns alone": "\r" * 100,
    "marks of lines": "\ufeffa\n\ufeff\ufeffb\r\ufeff\n\ufeff c \ufeffd\ufeff\0\ufeff\r\n\ufeff",
    "only white space": " \t  ",
    "NUL": "a\0b \0 c\0\nd\0",
    "control characters": "a\x01b \x7f c\x1cd\x1e \x08\n",
    "every white space": "x".join(SPACES),
    "next to white space": "\x84 \x86\u167f\u1681\u1fff\u200b\u200c\u2027\u202a\u2030\u205e\u2060\u2fff\u3001\ufeff",
    "many bytes": "naïve слово 語 🙂 \u00a0🙂🙂 a語\u3000b é",
    "marks in front": "\ufeffa \ufeffa",
    "long words": f"{'a' * 5000} {'é' * 3000} {'a' * 4999}b {'a' * 5000} {'a' * 5001}",
    "lengths around eight": " ".join("abcdefghijklmnopq"[:n] + s for n in range(17) for s in ("", "x", "\u00e9")),
    "the same beginnings": " ".join(f"longbeginning{i % 7}" for i in range(50)),
    "many words": " ".join(f"w{i}" for i in range(12_000)) + "\n" + " ".join(f"w{i}" for i in range(0, 12_000, 5)),
}  # fmt: skip


def padded(content: bytes) -> np.ndarray:
    """A block with room behind, which holds what would go on with a word."""
    return np.frombuffer(content + b"x" * PADDING, np.uint8).copy()


def blocks_of(content: bytes, size: int) -> list[bytes]:
    """Blocks that end behind blanks or line feeds."""
    blocks, rest = [], content
    while (
        len(rest) > size
        and (cut := min((rest.find(c, size) for c in b" \n" if rest.find(c, size) >= 0), default=-1)) >= 0
    ):
        blocks.append(rest[: cut + 1])
        rest = rest[cut + 1 :]
    return [*blocks, rest]


def check(content: bytes, block_bytes: int = 1 << 30) -> None:
    counter, reference = WordCounter(), ReferenceCounter()
    found, begins_line = [], True
    for block in blocks_of(content, block_bytes):
        found.append(counter.add(padded(block), len(block), begins_line))
        begins_line = block.endswith(b"\n")
    expected = reference.add(np.frombuffer(content, np.uint8), len(content))
    assert all(numbers.dtype == np.int32 for numbers in found)
    assert np.concatenate(found).tolist() == expected.tolist()
    assert counter.words() == reference.words()
    assert counter.counts.tolist() == reference.counts.tolist()
    assert len(counter) == len(reference)


@pytest.mark.parametrize("name", TEXTS)
def test_the_words_are_those_of_split(name, monkeypatch):
    content = TEXTS[name].encode()
    for piece_bytes in PIECES if len(content) < 30_000 else PIECES[-2:]:
        monkeypatch.setattr(words_module, "PIECE_BYTES", (piece_bytes, piece_bytes))
        check(content)


def random_text(chance: random.Random, n: int) -> str:
    letters = [
        "a",
        "b",
        "ab",
        "é",
        "語",
        "🙂",
        "\0",
        "\x01",
        "abcdefgh",
        "\ufeff",
        "\n\ufeff",
        "\r",
        "\r\r",
        *SPACES,
        " ",
        " ",
        "\n",
        "\r\n",
    ]
    return "".join(chance.choices(letters, k=n))


@pytest.mark.parametrize("seed", range(4))
def test_neither_blocks_nor_pieces_nor_threads_change_anything(seed, monkeypatch):
    chance, threads = random.Random(seed), torch.get_num_threads()
    content = random_text(chance, 3000).encode()
    try:
        for piece_bytes, block_bytes, n_threads in [(13, 100, 1), (29, 1000, 2), (256, 1 << 20, 4)]:
            torch.set_num_threads(n_threads)
            monkeypatch.setattr(words_module, "PIECE_BYTES", (piece_bytes, piece_bytes))
            check(content, block_bytes)
    finally:
        torch.set_num_threads(threads)


def test_memory_that_was_used_before_is_used_again():
    counter = WordCounter()
    for content in (b"a b c\n", b"c d " * 40_000, b"e\n"):
        counter.add(padded(content), len(content))
    assert counter.words() == ["a", "b", "c", "d", "e"]
    assert counter.counts.tolist() == [1, 1, 40_001, 40_000, 1]


def place_of_error(counter, content: bytes) -> int | None:
    try:
        counter.add(padded(content), len(content))
    except UnicodeDecodeError as error:
        return error.start
    return None


BYTES = [0x00, 0x20, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED,
         0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]  # fmt: skip


def test_what_is_not_utf8_is_refused_where_python_refuses_it():
    """Every border of the table of well-formed bytes, at the beginning, within and at the end of a word."""
    counter = WordCounter()
    for lead in BYTES[10:]:
        for second in BYTES:
            for rest in (b"", b"\x80", b"\x80\x80", b"\xbf\x41", b"\x80\x80\x80"):
                for before, after in ((b"", b""), (b"ab ", b" c"), (b"abcdefghij", b"k")):
                    content = before + bytes([lead, second]) + rest + after
                    assert place_of_error(counter, content) == place_of_error(ReferenceCounter(), content), (
                        content
                    )


@pytest.mark.parametrize("seed", range(3))
def test_the_first_of_several_errors_is_named(seed, monkeypatch):
    monkeypatch.setattr(words_module, "PIECE_BYTES", (50, 50))
    chance = random.Random(seed)
    for _ in range(100):
        content = bytearray(random_text(chance, 200).encode())
        for _ in range(2):
            content[chance.randrange(len(content))] = chance.choice(BYTES)
        assert place_of_error(WordCounter(), bytes(content)) == place_of_error(
            ReferenceCounter(), bytes(content)
        )


def test_nothing_is_taken_of_a_block_that_is_refused():
    counter = WordCounter()
    counter.add(padded(b"a "), 2)
    with pytest.raises(UnicodeDecodeError):
        counter.add(padded(b"b \xff"), 3)
    assert counter.words() == ["a"]
    assert counter.add(padded(b"c a"), 3).tolist() == [1, 0]


@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize("labels", [(), (0,), (1, 3), (0, 1, 2, 3)])
def test_lines_are_split_into_words_and_labels(labels, keep_empty):
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 300):
        numbers = np.append(rng.integers(END, 4, n), END).astype(np.int32) if n else np.empty(0, np.int32)
        id_of = np.array([7, -1, 3, 5], np.int32)
        is_label = np.isin(np.arange(4), labels)
        found = split_lines(numbers.copy(), id_of, is_label, keep_empty=keep_empty)
        assert [part.dtype for part in found] == [np.int32, np.int64, np.int32, np.int64]
        expected = reference_split_lines(numbers, id_of, is_label, keep_empty=keep_empty)
        assert tuple(part.tolist() for part in found) == expected

"""The words of a text file as numbers; its bytes are read in blocks and not kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from mt2st_fast.data.text.decoding import Oddities
from mt2st_fast.data.text.lines import not_utf8, reading_text
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import END, PADDING, WordCounter, split_lines

log = logging.getLogger("mt2st_fast")
BLOCK_BYTES = 4 << 20
_LONGEST_WORD_BYTES = 1 << 20
_LOOKED_AT = 1 << 12  # bytes at the end of a block that are first searched for the end of the last word
_NUL, _LINE_FEED, _RETURN, _SPACE, _TAB = b"\0\n\r \t"


@dataclass(frozen=True, eq=False)
class NumberedWords:
    """A text as numbers int32 (N,) of its V words, with END after every line.

    words and counts int64 (V,) are in order of first appearance.
    """

    numbers: np.ndarray
    words: list[str]
    counts: np.ndarray


def read_words(path: Path) -> NumberedWords:
    """Read the words of a file as `number_blocks` does. Raises InputError for an empty file, too."""
    counter = WordCounter()
    numbers = np.concatenate([part for part, _ in number_blocks(path, counter)])
    return NumberedWords(numbers, counter.words(), counter.counts)


def number_blocks(
    path: Path, counter: WordCounter, *, may_be_empty: bool = False
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield a counter's numbers for the words of a file in blocks, with END after every line, and how far it is read.

    Words are separated by white space, and lines by the rule of decoding.py; logs what is odd. How far: in bytes of the
    file, packed or not. Raises InputError for a file that is missing, not UTF-8 or no text.
    """
    oddities, number, ended = Oddities(), 1, True
    with reading_text(path, may_be_empty) as file:
        on_disk: BinaryIO = getattr(file, "fileobj", file)
        for text, n, held, begins_line in _blocks(file):
            if n > max(BLOCK_BYTES, _LONGEST_WORD_BYTES):
                raise InputError(
                    f"{path}: contains a word longer than a million bytes; is this text with words separated by "
                    "white space?"
                )
            try:
                numbers = counter.add(text, n, begins_line)
            except UnicodeDecodeError as error:
                raise not_utf8(str(path), number, [bytes(held[: error.start])]) from None
            oddities.look(held, n, number, begins_line)
            number += int((numbers == END).sum())
            ended = text[n - 1] in (_LINE_FEED, _RETURN)
            yield numbers, on_disk.tell()
        if not ended:
            yield np.array([END], np.int32), on_disk.tell()
    for note in oddities.notes():
        log.warning("%s: %s", path, note)


def add_lines(counter: WordCounter, texts: Sequence[str]) -> np.ndarray:
    """Return a counter's numbers for the words of texts, one line each without line feeds, with END after each line.

    They are the words that `read_words` finds in a file. Raises InputError for an unpaired surrogate, which UTF-8
    cannot encode.
    """
    if not texts:
        return np.empty(0, np.int32)
    joined = "\n".join(texts)
    if "\r" in joined:
        joined = joined.replace("\r", " ")  # a text is one line
    try:
        content = joined.encode() + bytes(1 + PADDING)
    except UnicodeEncodeError as error:
        raise InputError(
            f"a text contains {error.object[error.start]!r}, a lone surrogate; decode the text with errors='replace'"
        ) from None
    held = np.frombuffer(bytearray(content), np.uint8)
    n = len(held) - PADDING
    held[n - 1] = _LINE_FEED
    return counter.add(held, n)


def read_lines(path: Path) -> Tokens:
    """Read a file with one unit per line; an empty line is an empty unit. Raises InputError as `read_words` does."""
    text = read_words(path)
    vocabulary, id_of = Vocabulary.numbered(text.words, text.counts)
    found = split_lines(text.numbers, id_of, np.zeros(len(id_of), bool), keep_empty=True)
    return Tokens(found.ids, found.bounds, vocabulary)


class _Block(NamedTuple):
    """text[:n] as `WordCounter.add` takes it, the same bytes as `held`, and whether it begins a line."""

    text: np.ndarray
    n: int
    held: bytearray
    begins_line: bool


def _blocks(file: BinaryIO) -> Iterator[_Block]:
    """Yield blocks that all use the same memory."""
    held, n, begins_line = bytearray(BLOCK_BYTES + PADDING), 0, True
    text = np.frombuffer(held, np.uint8)
    while more := cast(Any, file).readinto(text[n:-PADDING]):
        n += more
        if n < len(text) - PADDING:
            continue
        if end := _end_of_last_word(text, n):
            rest, before = text[end:n].copy(), text[end - 1]  # the bytes after a block are overwritten
            yield _Block(text, end, held, begins_line)
            n, begins_line = len(rest), before in (_LINE_FEED, _RETURN)
            text[:n] = rest
        else:
            held = held[:n] + bytearray(n + PADDING)
            text = np.frombuffer(held, np.uint8)
    if n:
        yield _Block(text, n, held, begins_line)


def _end_of_last_word(text: np.ndarray, n: int) -> int:
    """Return the position after the last white space of text[:n], 0 where there is none.

    A return at the end does not count, as a line feed may follow.
    """
    while n and text[n - 1] == _RETURN:
        n -= 1
    looked_at = _LOOKED_AT
    while True:
        first = max(0, n - looked_at)
        tail = text[first:n]
        places = np.flatnonzero(
            (tail == _LINE_FEED) | (tail == _SPACE) | (tail == _TAB) | (tail == _RETURN) | (tail == _NUL)
        )
        if len(places) or not first:
            return first + int(places[-1]) + 1 if len(places) else 0
        looked_at *= 16

"""The words of a whole text file as numbers: its bytes are read in blocks, and nothing of them is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.files import reading
from mt2st_fast.kernels import END, PADDING, WordCounter, split_lines

BLOCK_BYTES = 4 << 20
_LONGEST_WORD_BYTES = 1 << 20
_LOOKED_AT = 1 << 12  # bytes at the end of a block, at first, for the end of its last word
_MARK = "\ufeff".encode()
# A return is not among them: a line feed may follow.
_LINE_FEED, _RETURN, _SPACE, _TAB = b"\n\r \t"


@dataclass(frozen=True, eq=False)
class NumberedWords:
    """A text in numbers int32 (N,) of its V words, with END behind every line.

    words and counts int64 (V,) are those of the words, in the order of their first appearance.
    """

    numbers: np.ndarray
    words: list[str]
    counts: np.ndarray


def read_words(path: Path) -> NumberedWords:
    """The words of a file, .gz too, between white space, which NUL is, too. A UTF-8 mark at the start is dropped.

    Raises InputError for a file that is missing, empty, not UTF-8 or no text.
    """
    counter = WordCounter(nul_is_blank=True)
    parts: list[np.ndarray] = []
    with reading(path) as file:
        if not path.stat().st_size:
            raise InputError(f"{path}: the file is empty")
        for text, n in _blocks(file):
            if n > max(BLOCK_BYTES, _LONGEST_WORD_BYTES):
                raise InputError(
                    f"{path}: has a word of more than a million bytes; is it text with white space between words?"
                )
            begin = len(_MARK) if not parts and text[: min(n, len(_MARK))].tobytes() == _MARK else 0
            try:
                parts.append(counter.add(text[begin:], n - begin))
            except UnicodeDecodeError as error:
                before = sum(int((part == END).sum()) for part in parts)
                line = 1 + before + int((text[: begin + error.start] == _LINE_FEED).sum())
                raise InputError(f"{path}:{line}: is not UTF-8; convert the file to UTF-8") from None
    parts.append(np.array([END], np.int32))
    return NumberedWords(np.concatenate(parts), counter.words(), counter.counts)


def words_of(texts: Sequence[str]) -> NumberedWords:
    """The words of texts, a line each and without line feeds, as `read_words` finds them in a file.

    Raises InputError for half of a surrogate pair, which UTF-8 does not have.
    """
    try:
        content = np.frombuffer("".join(f"{text}\n" for text in texts).encode(), np.uint8)
    except UnicodeEncodeError as error:
        raise InputError(
            f"a text holds {error.object[error.start]!r}, half of a character; decode it with errors='replace'"
        ) from None
    counter = WordCounter(nul_is_blank=True)
    numbers = counter.add(np.append(content, np.zeros(PADDING, np.uint8)), len(content))
    return NumberedWords(numbers, counter.words(), counter.counts)


def read_lines(file: BinaryIO) -> Tokens:
    """A unit a line, also an empty one, as if the file were opened as text; words between white space.

    Raises UnicodeDecodeError where it is not UTF-8.
    """
    counter = WordCounter(any_newline=True)
    parts, ended = [np.empty(0, np.int32)], True
    for text, n in _blocks(file):
        ended = text[n - 1] in (_LINE_FEED, _RETURN)
        parts.append(counter.add(text, n))
    if not ended:
        parts.append(np.array([END], np.int32))
    vocabulary, id_of = Vocabulary.numbered(counter.words(), counter.counts)
    ids, bounds, *_ = split_lines(np.concatenate(parts), id_of, np.zeros(len(id_of), bool), keep_empty=True)
    return Tokens(ids, bounds, vocabulary)


def _blocks(file: BinaryIO) -> Iterator[tuple[np.ndarray, int]]:
    """(text, n): blocks text[:n] as `WordCounter.add` takes them, all in the same memory."""
    text, n = np.empty(BLOCK_BYTES + PADDING, np.uint8), 0
    while more := cast(Any, file).readinto(text[n:-PADDING]):
        n += more
        if n < len(text) - PADDING:
            continue
        if end := _end_of_last_word(text, n):
            rest = text[end:n].copy()  # what is behind a block is overwritten
            yield text, end
            n = len(rest)
            text[:n] = rest
        else:
            text = np.concatenate([text[:n], np.empty(n + PADDING, np.uint8)])
    if n:
        yield text, n


def _end_of_last_word(text: np.ndarray, n: int) -> int:
    """The place behind the last white space of text[:n], 0 where there is none."""
    looked_at = _LOOKED_AT
    while True:
        first = max(0, n - looked_at)
        tail = text[first:n]
        places = np.flatnonzero((tail == _LINE_FEED) | (tail == _SPACE) | (tail == _TAB))
        if len(places) or not first:
            return first + int(places[-1]) + 1 if len(places) else 0
        looked_at *= 16

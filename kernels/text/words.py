"""The words of a text that arrives in blocks: their numbers, their letters and their counts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .layout import (
    BLANK,
    COUNT,
    IN_WORD,
    LENGTH,
    LINE_FEED,
    N_LETTERS,
    N_NUMBERS,
    N_WORDS,
    NOT_UTF8,
    PADDING,
    RETURN,
    WHERE,
    make_scratch,
    make_table,
)

PIECE_BYTES = (1 << 18, 1 << 20)  # least and most that a thread reads at a time
_BLANKS = b"\0\t\x0b\x0c\x1c\x1d\x1e\x1f "  # white space for str.split below 128, and NUL
_FIRST_WORDS, _FIRST_LETTERS = 1 << 12, 1 << 15


class WordCounter:
    """Number the words between white space (that of `str.split`, and NUL) in the order of their first appearance.

    A line ends with a line feed, optionally preceded by returns, or with a return alone. A byte order mark (U+FEFF) at
    the start of a line is not part of it. Results depend neither on the number of threads nor on where blocks end.
    """

    def __init__(self) -> None:
        from ..machine.team import thread_count
        from .on_numba import scan

        self._kernels, self._thread_count = scan, thread_count
        self._kinds = np.full(256, IN_WORD, np.uint8)
        self._kinds[list(_BLANKS)] = BLANK
        self._kinds[ord("\n")] = LINE_FEED
        self._kinds[ord("\r")] = RETURN
        self._n_words = 0
        self._table = make_table(_FIRST_WORDS, _FIRST_LETTERS)
        self._scratch = make_scratch(0, 1)

    def __len__(self) -> int:
        return self._n_words

    def add(self, text: np.ndarray, n: int, begins_line: bool = True) -> np.ndarray:
        """Return the numbers, int32, of the words of a block text[:n] in their order, with END at every line end.

        text: uint8, at least n + PADDING bytes; bytes past n are overwritten. A block must end after ASCII white
        space (but not between a return and what follows it), or where the text ends.
        begins_line: whether the block begins at the start of a line.

        Raises UnicodeDecodeError, with the position in the block, if it is not UTF-8; then nothing of the block is
        counted.
        """
        text[n : n + PADDING] = ord(" ")
        piece_bytes = min(max(PIECE_BYTES[0], -(-n // self._thread_count())), PIECE_BYTES[1])
        n_pieces = max(1, -(-n // piece_bytes))
        if len(self._scratch.numbers) < n or len(self._scratch.tallies) < n_pieces:
            self._scratch = make_scratch(n, n_pieces)
        scratch = self._scratch._replace(tallies=self._scratch.tallies[:n_pieces])
        self._kernels.scan(text, n, begins_line, piece_bytes, self._kinds, scratch)
        tallies = scratch.tallies
        for place in tallies[tallies[:, NOT_UTF8] >= 0, NOT_UTF8].tolist():
            raise UnicodeDecodeError("utf-8", text[:n].tobytes(), place, place + 1, "invalid bytes")
        self._make_room(int(tallies[:, N_WORDS].sum()), int(tallies[:, N_LETTERS].sum()))
        ends = np.cumsum(tallies[:, N_NUMBERS])
        numbers = np.empty(ends[-1], np.int32)
        begins = ends - tallies[:, N_NUMBERS]
        self._n_words = self._kernels.take_in(text, scratch, begins, self._table, self._n_words, numbers)
        return numbers

    def words(self, first: int = 0) -> list[str]:
        """Return the words from number `first` on, in the order of their numbers."""
        if first >= self._n_words:
            return []
        letters = self._table.letters[self._table.words[first, WHERE] : self._n_letters - 1]
        return letters.tobytes().decode("utf-8").split("\n")

    @property
    def counts(self) -> np.ndarray:
        """Return how often each word was read, int64 (words,)."""
        return self._table.words[: self._n_words, COUNT].copy()

    @property
    def _n_letters(self) -> int:
        if not self._n_words:
            return 0
        last = self._table.words[self._n_words - 1]
        return int(last[WHERE] + last[LENGTH]) + 1

    def _make_room(self, more_words: int, more_letters: int) -> None:
        table, n_words, n_letters = self._table, self._n_words, self._n_letters
        wanted, wanted_letters = n_words + more_words, n_letters + more_letters
        if len(table.words) >= wanted and len(table.letters) >= wanted_letters + PADDING:
            return
        self._table = make_table(2 * wanted, 2 * wanted_letters)
        self._table.words[:n_words] = table.words[:n_words]
        self._table.letters[:n_letters] = table.letters[:n_letters]
        self._kernels.place_all(self._table.slots, len(self._table.slots), self._table.words, n_words)


class LineWords(NamedTuple):
    """Words and labels of U lines: line u has ids[bounds[u]:bounds[u + 1]]; label m is labels[m], in line lines[m]."""

    ids: np.ndarray  # int32
    bounds: np.ndarray  # int64 (U + 1,)
    labels: np.ndarray  # int32 (M,)
    lines: np.ndarray  # int64 (M,)


def split_lines(
    numbers: np.ndarray, id_of: np.ndarray, is_label: np.ndarray, *, keep_empty: bool = False
) -> LineWords:
    """Return the words and labels of the U lines that have any; keep_empty: of all lines.

    numbers: int32 (N,), word numbers with END after each line; the ids overwrite them. id_of: int32 (V,), is_label:
    bool (V,), by number.
    """
    from .on_numba import lines as kernels

    return LineWords(*kernels.split_lines(numbers, id_of, is_label, keep_empty))

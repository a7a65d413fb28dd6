"""Memory layout for counting words, and the classes of bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

END = -1
"""Stands for the end of a line among the numbers of words, which are 0 and more."""

# Classes of bytes below 128.
IN_WORD, BLANK, LINE_FEED, RETURN = range(4)

# Columns of a piece's tally: its first byte, its counts of numbers, of distinct words and of their letters with a line
# feed after each word, and the position of a byte that is not UTF-8, or -1.
BEGIN, N_NUMBERS, N_WORDS, N_LETTERS, NOT_UTF8, N_TALLIES = range(6)
# Columns of a word: its first eight bytes, its position among the letters, its length, its count, and its hash.
HEAD, WHERE, LENGTH, COUNT, CODE, N_COLUMNS = range(6)

PADDING = 8  # bytes past the end of a block, or of letters, that a kernel may read


class Table(NamedTuple):
    """All words so far."""

    slots: np.ndarray  # int32, the length is a power of two: a word's number + 1, or 0
    words: np.ndarray  # int64 (words, N_COLUMNS)
    letters: np.ndarray  # uint8: all words one after the other, a line feed after each


class Scratch(NamedTuple):
    """What pieces of N bytes of text store.

    A piece that begins at byte b has its part at the offset given with each array.
    """

    tallies: np.ndarray  # int64 (pieces, N_TALLIES)
    numbers: np.ndarray  # int32 (N,), from b: the words by the piece's own numbers, END at ends of lines
    words: np.ndarray  # int64 (N / 2 + pieces, N_COLUMNS), from b / 2 + piece
    common: np.ndarray  # int32, same length: the common numbers of these words
    slots: np.ndarray  # int32 (2 N + 2 pieces,), from 2 b + 2 piece


def make_table(n_words: int, n_letters: int) -> Table:
    """Make an empty table, with room for n_words words of n_letters letters in total, including line feeds."""
    return Table(
        np.zeros(1 << (2 * n_words - 1).bit_length(), np.int32),
        np.empty((n_words, N_COLUMNS), np.int64),
        np.empty(n_letters + PADDING, np.uint8),
    )


def make_scratch(n_bytes: int, n_pieces: int) -> Scratch:
    """Allocate for blocks of this many bytes. Most of it is never touched, as few texts consist of one-letter words."""
    n_words = n_bytes // 2 + n_pieces + 1
    return Scratch(
        np.empty((n_pieces, N_TALLIES), np.int64),
        np.empty(n_bytes, np.int32),
        np.empty((n_words, N_COLUMNS), np.int64),
        np.empty(n_words, np.int32),
        np.empty(2 * (n_bytes + n_pieces), np.int32),
    )

"""What lies where in the memory that words are counted in, and what a byte is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

END = -1
"""Stands for the end of a line among the numbers of words, which are 0 and more."""

# What a byte below 128 is.
IN_WORD, BLANK, LINE_FEED, RETURN = range(4)

# Columns of a piece's tally: its first byte, how many numbers, different words and letters it has, with a line feed
# behind each of these words, and the byte that is not UTF-8, or -1.
BEGIN, N_NUMBERS, N_WORDS, N_LETTERS, NOT_UTF8, N_TALLIES = range(6)
# Columns of a word: its first eight bytes, its place among letters, its length, how often it was seen, and its hash.
HEAD, WHERE, LENGTH, COUNT, CODE, N_COLUMNS = range(6)

PADDING = 8  # bytes behind the end of a block, or of letters, that a kernel may read


class Table(NamedTuple):
    """All words so far."""

    slots: np.ndarray  # int32, a power of two of them: a word's number + 1, or 0
    words: np.ndarray  # int64 (words, N_COLUMNS)
    letters: np.ndarray  # uint8: one word after the other, a line feed behind each


class Scratch(NamedTuple):
    """What pieces of N bytes of text make of it; a piece that begins at byte b has its part from where b says."""

    tallies: np.ndarray  # int64 (pieces, N_TALLIES)
    numbers: np.ndarray  # int32 (N,), from b: the piece's own numbers of its words, END at ends of lines
    words: np.ndarray  # int64 (N / 2 + pieces, N_COLUMNS), from b / 2 + piece
    common: np.ndarray  # int32, as many: the common numbers of these words
    slots: np.ndarray  # int32 (2 N + 2 pieces,), from 2 b + 2 piece


def make_table(n_words: int, n_letters: int) -> Table:
    """Empty, with room for n_words of n_letters, the line feeds among them."""
    return Table(
        np.zeros(1 << (2 * n_words - 1).bit_length(), np.int32),
        np.empty((n_words, N_COLUMNS), np.int64),
        np.empty(n_letters + PADDING, np.uint8),
    )


def make_scratch(n_bytes: int, n_pieces: int) -> Scratch:
    """For blocks of so many bytes. Most of it is never touched, as few texts are of words of one letter."""
    n_words = n_bytes // 2 + n_pieces + 1
    return Scratch(
        np.empty((n_pieces, N_TALLIES), np.int64),
        np.empty(n_bytes, np.int32),
        np.empty((n_words, N_COLUMNS), np.int64),
        np.empty(n_words, np.int32),
        np.empty(2 * (n_bytes + n_pieces), np.int32),
    )

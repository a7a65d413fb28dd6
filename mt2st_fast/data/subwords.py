"""The embedding rows of every word type: its own or the shared <unk> row, and hashed parts of the word."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

PADDING_ROW = 0


@dataclass(frozen=True)
class HashedParts:
    """Which parts of a word are hashed, and into how many rows; see `subword_rows`."""

    buckets: int
    max_prefix: int
    max_suffix: int
    shape: bool
    min_n: int
    max_n: int

    def buckets_of(self, word: str) -> list[int]:
        """Return the bucket of each part of a word."""
        return [stable_hash(part) % self.buckets for part in self._names(word)] if self.buckets else []

    def _names(self, word: str) -> list[str]:
        """Return the names of the parts; only the shape depends on case, so `The` and `the` share their affixes."""
        lower = word.lower()
        parts = [f"p{lower[:n]}" for n in range(1, min(self.max_prefix, len(lower)) + 1)]
        parts += [f"s{lower[-n:]}" for n in range(1, min(self.max_suffix, len(lower)) + 1)]
        if self.shape:
            parts.append(f"h{word_shape(word)}")
        if self.max_n >= self.min_n:
            marked = f"<{lower}>"
            parts += [
                f"n{marked[i : i + n]}"
                for n in range(self.min_n, self.max_n + 1)
                for i in range(len(marked) - n + 1)
            ]
        return parts


@dataclass(frozen=True, eq=False)
class SubwordTable:
    """The embedding rows of every type.

    `rows` is int32 (T, M): the row ids of type t, filled up with `padding_row`. The embedding table has `num_rows`
    rows: padding, one per frequent type, <unk> (`unk_row`), then the hashed buckets.
    """

    rows: np.ndarray
    num_rows: int
    unk_row: int
    parts: HashedParts
    padding_row: int = PADDING_ROW

    def rows_of_unknown(self, word: str) -> list[int]:
        """Return the rows of a word outside the vocabulary: <unk> and its hashed parts."""
        return [self.unk_row, *(self.unk_row + 1 + bucket for bucket in self.parts.buckets_of(word))]


def subword_rows(
    vocabulary_words: Sequence[str],
    counts: np.ndarray,
    *,
    min_count: int = 2,
    buckets: int = 20_000,
    max_prefix: int = 3,
    max_suffix: int = 4,
    shape: bool = True,
    min_n: int = 3,
    max_n: int = 0,
) -> SubwordTable:
    """Assign each of T types its embedding rows.

    A type seen at least `min_count` times in training has its own row, the others share <unk>. Every type adds hashed
    rows of its prefixes (1 to `max_prefix` characters), suffixes (1 to `max_suffix`), its shape, and its character
    n-grams of `min_n` to `max_n` characters (off while `max_n` < `min_n`; 3 to 5 is usual). `buckets=0` leaves out all
    hashed rows.
    """
    if min(min_count, buckets) < 0 or len(vocabulary_words) != len(counts):
        raise ValueError(
            "min_count and buckets must not be negative, and counts must have one entry per word"
        )
    has_row = np.asarray(counts) >= min_count
    unk_row = 1 + int(has_row.sum())
    parts = HashedParts(buckets, max_prefix, max_suffix, shape, min_n, max_n)
    hashed = [parts.buckets_of(word) for word in vocabulary_words]
    rows = np.full((len(vocabulary_words), 1 + max(map(len, hashed), default=0)), PADDING_ROW, dtype=np.int32)
    rows[:, 0] = np.where(has_row, np.cumsum(has_row), unk_row)
    for type_rows, type_buckets in zip(rows[:, 1:], hashed, strict=True):
        type_rows[: len(type_buckets)] = type_buckets
        type_rows[: len(type_buckets)] += unk_row + 1
    return SubwordTable(rows, unk_row + 1 + buckets, unk_row, parts)


def word_shape(word: str) -> str:
    """Return the pattern of capitals (X), small letters (x), digits (d) and other characters; a run counts once."""
    return "".join(sign for sign, _ in groupby(map(_sign, word)))


def _sign(character: str) -> str:
    if character.isalpha():
        return "X" if character.isupper() else "x"
    return "d" if character.isdigit() else character


def stable_hash(part: str) -> int:
    """Return CRC-32 which, unlike hash(), is the same in every process, so that a saved table fits a later run."""
    return zlib.crc32(part.encode("utf-8", "surrogatepass"))

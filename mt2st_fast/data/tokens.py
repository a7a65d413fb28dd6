"""Text as numbers: the words of its sentences or documents as ids of a vocabulary."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Self

import numpy as np

from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError

MISSING_WORD = -1  # the id of a word that is not in the vocabulary
_BLOCK = 1 << 20  # numbers of a mapped file that are checked in one block


@dataclass(frozen=True, eq=False)
class Tokens:
    """T tokens in U units (sentences or documents): unit u is ids[bounds[u]:bounds[u + 1]].

        ids         int32 (T,), of the vocabulary's words; MISSING_WORD for a word outside it
        bounds      int64 (U + 1,), from 0 to T, never decreasing
        vocabulary  the V words

    Raises ValueError for arrays that violate this, as kernels rely on these numbers.
    """

    ids: np.ndarray
    bounds: np.ndarray
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype != np.int32:
            raise ValueError(f"ids must be int32 (T,), not {self.ids.dtype} {self.ids.shape}")
        check_bounds("bounds", self.bounds, len(self.ids))
        V = len(self.vocabulary)
        for first in range(0, len(self.ids), _BLOCK):
            block = self.ids[first : first + _BLOCK]
            if block.min() < MISSING_WORD or block.max() >= V:
                raise ValueError(f"an id is outside the vocabulary of {V} words")

    @property
    def n_units(self) -> int:
        """U, the number of sentences or documents."""
        return len(self.bounds) - 1

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], vocabulary: Vocabulary | None = None) -> Self:
        """Make tokens from lists of words, read once; the vocabulary is by default that of their words.

        Raises InputError for a sentence that is a string, and for a word that is no string.
        """
        number_of: dict[str, int] = defaultdict(count().__next__)
        numbers, ends = array("i"), array("q", [0])
        for words in sentences:
            if isinstance(words, str):
                raise InputError("a sentence must be a list of words, not a string; split it")
            numbers.extend(map(number_of.__getitem__, words))
            ends.append(len(numbers))
        for word in number_of:
            if not isinstance(word, str):
                raise InputError(f"a word must be a string, not {word!r}")
        return cls.numbered(list(number_of), np.asarray(numbers), np.asarray(ends), vocabulary)

    @classmethod
    def numbered(
        cls,
        words: Sequence[str],
        numbers: np.ndarray,
        bounds: np.ndarray,
        vocabulary: Vocabulary | None = None,
    ) -> Self:
        """Make tokens from numbers (T,) of different words, which may be in any order."""
        if vocabulary is None:
            vocabulary, id_of = Vocabulary.numbered(words, np.bincount(numbers, minlength=len(words)))
        else:
            id_of = vocabulary.lookup(words)
        # The number of a missing word, -1, selects the last entry.
        return cls(np.append(id_of, np.int32(MISSING_WORD))[numbers], bounds, vocabulary)

    def in_vocabulary(self, vocabulary: Vocabulary) -> Tokens:
        """Return the same text in ids of another vocabulary; ids that are the same stay mapped where they are."""
        own, others = self.vocabulary.words, vocabulary.words
        if others[: len(own)] == own:
            return Tokens(self.ids, self.bounds, vocabulary)
        if own[: len(others)] == others:
            return Tokens(
                np.where(self.ids < len(others), self.ids, np.int32(MISSING_WORD)), self.bounds, vocabulary
            )
        return Tokens.numbered(own, self.ids, self.bounds, vocabulary)


def check_bounds(name: str, bounds: np.ndarray, end: int) -> None:
    """Raise ValueError unless bounds are int64 (n + 1,), rising from 0 to `end`."""
    if bounds.ndim != 1 or bounds.dtype != np.int64 or not len(bounds):
        raise ValueError(f"{name} must be int64 (n + 1,), not {bounds.dtype} {bounds.shape}")
    # Adjacent blocks share a bound.
    blocks = (bounds[first : first + _BLOCK + 1] for first in range(0, len(bounds) - 1, _BLOCK))
    if bounds[0] != 0 or bounds[-1] != end or any((np.diff(block) < 0).any() for block in blocks):
        raise ValueError(f"{name} must rise from 0 to {end}")


def bounds_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return bounds int64 (n + 1,) of n pieces of the given lengths."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds

"""Words of any text as types of an encoder: those of its vocabulary, and others, made of hashed parts, as they come."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import torch

from mt2st_fast.data.subwords import SubwordTable
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.model.encoders import NO_ROW, BagEncoder, WindowEncoder

_UNKNOWN = -1
NEW_TYPES = 1 << 14  # words that are no types, of which the rows are remembered


class OpenVocabulary:
    """The types of an encoder, and room for words that are none: they get numbers as they are met.

    `encoder` shares all parameters with the one that is given and knows the rows of those words, too. Numbers hold
    until the next words are asked for, which may take the place of others. Raises ValueError for an encoder of other
    types, without hashed parts, or not on a CPU.
    """

    def __init__(
        self, vocabulary: Vocabulary, table: SubwordTable, encoder: WindowEncoder | BagEncoder
    ) -> None:
        rows = encoder.rows_of_type
        if rows is None or len(rows) != len(vocabulary) + 1 or rows.device.type != "cpu":
            raise ValueError(f"the encoder must have {len(vocabulary):,} types made of rows, on a CPU")
        self._vocabulary, self._table = vocabulary, table
        self.times_forgotten = 0  # since when a number may be another word's
        self.encoder = copy.copy(encoder)
        self.encoder._buffers = dict(encoder._buffers)
        self._take(rows[:-1].cpu().numpy(), rows.shape[1], NEW_TYPES)

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """(n,) int32 of n words. Raises TypeError for a word that is no string."""
        if len(words) > self._room:
            self._take(self._rows[: len(self._vocabulary)], self._rows.shape[1], len(words))
        found = self._found(words)
        unknown = np.flatnonzero(found == _UNKNOWN)
        if len(unknown):
            missing = dict.fromkeys(words[place] for place in unknown.tolist())
            for word in missing:  # what is known is a string
                if not isinstance(word, str):
                    raise TypeError(f"a word is a string, not {word!r}")
            if len(self._id_of) + len(missing) >= len(self._rows):
                self._forget()
                return self.ids(words)
            if not self._add({word: self._table.rows_of_unknown(word) for word in missing}):
                return self.ids(words)
            found = self._found(words)
        return found

    def _found(self, words: Sequence[str]) -> np.ndarray:
        """The numbers that words have by now."""
        return np.fromiter(map(self._id_of.get, words, repeat(_UNKNOWN)), np.int32, len(words))

    def _take(self, of_types: np.ndarray, M: int, room: int) -> None:
        """Make a place for the rows (T, <= M) of the types and for those of so many other words."""
        self._room = room
        T = len(self._vocabulary)
        self._rows = np.full((T + room + 1, M), NO_ROW, np.int32)  # the last is of no type
        self._rows[:T, : of_types.shape[1]] = of_types
        self.encoder._buffers["rows_of_type"] = torch.from_numpy(self._rows)
        self.encoder.num_types = len(self._rows) - 1
        self._forget()

    def _forget(self) -> None:
        """All words that are no types."""
        self.times_forgotten += 1
        self._id_of = dict(zip(self._vocabulary.words, range(len(self._vocabulary)), strict=True))

    def _add(self, rows_of: dict[str, list[int]]) -> bool:
        """Number words and note their rows; False where rows had to become longer, and all were forgotten."""
        M = max(map(len, rows_of.values()))
        if self._rows.shape[1] < M:
            self._take(self._rows[: len(self._vocabulary)], M, self._room)
            return False
        for word, rows in rows_of.items():
            i = self._id_of[word] = len(self._id_of)
            self._rows[i] = NO_ROW
            self._rows[i, : len(rows)] = rows
        return True

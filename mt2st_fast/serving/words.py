"""Words of any text as types of an encoder: those of its vocabulary, and others, made of hashed parts on demand."""

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
NEW_TYPES = 1 << 14  # number of words outside the vocabulary whose rows are cached


class OpenVocabulary:
    """The types of an encoder, and room for other words, which get numbers when they first occur.

    `encoder` shares all parameters with the given one and also knows the rows of those words. Numbers are valid until
    the next call of `ids`, which may reassign them. Raises ValueError for an encoder of other types, without hashed
    parts, or not on a CPU.
    """

    def __init__(
        self, vocabulary: Vocabulary, table: SubwordTable, encoder: WindowEncoder | BagEncoder
    ) -> None:
        rows = encoder.rows_of_type
        if rows is None or len(rows) != len(vocabulary) + 1 or rows.device.type != "cpu":
            raise ValueError(
                f"the encoder must be on a CPU and have {len(vocabulary):,} types that are made of rows"
            )
        self._vocabulary, self._table = vocabulary, table
        self.times_forgotten = 0  # each time, numbers may be reassigned to other words
        self.encoder = copy.copy(encoder)
        self.encoder._buffers = dict(encoder._buffers)
        self._take(rows[:-1].cpu().numpy(), rows.shape[1], NEW_TYPES)

    def ids(self, words: Sequence[str]) -> np.ndarray:
        """Return int32 numbers (n,) of n words. Raises TypeError for a word that is no string."""
        if len(words) > self._room:
            self._take(self._rows[: len(self._vocabulary)], self._rows.shape[1], len(words))
        found = self._found(words)
        unknown = np.flatnonzero(found == _UNKNOWN)
        if len(unknown):
            missing = dict.fromkeys(words[place] for place in unknown.tolist())
            for word in missing:  # known words are strings
                if not isinstance(word, str):
                    raise TypeError(f"a word must be a string, not {word!r}")
            if len(self._id_of) + len(missing) >= len(self._rows):
                self._forget()
                return self.ids(words)
            if not self._add({word: self._table.rows_of_unknown(word) for word in missing}):
                return self.ids(words)
            found = self._found(words)
        return found

    def _found(self, words: Sequence[str]) -> np.ndarray:
        """Return the current numbers of words, _UNKNOWN for those without one."""
        return np.fromiter(map(self._id_of.get, words, repeat(_UNKNOWN)), np.int32, len(words))

    def _take(self, of_types: np.ndarray, M: int, room: int) -> None:
        """Allocate the rows (T, <= M) of the types and those of `room` other words."""
        self._room = room
        T = len(self._vocabulary)
        self._rows = np.full((T + room + 1, M), NO_ROW, np.int32)  # the last row belongs to no type
        self._rows[:T, : of_types.shape[1]] = of_types
        self.encoder._buffers["rows_of_type"] = torch.from_numpy(self._rows)
        self.encoder.num_types = len(self._rows) - 1
        self._forget()

    def _forget(self) -> None:
        """Forget all words outside the vocabulary."""
        self.times_forgotten += 1
        self._id_of = dict(zip(self._vocabulary.words, range(len(self._vocabulary)), strict=True))

    def _add(self, rows_of: dict[str, list[int]]) -> bool:
        """Number words and store their rows; False if rows had to become longer, whereby all other words were
        forgotten.
        """
        M = max(map(len, rows_of.values()))
        if self._rows.shape[1] < M:
            self._take(self._rows[: len(self._vocabulary)], M, self._room)
            return False
        for word, rows in rows_of.items():
            i = self._id_of[word] = len(self._id_of)
            self._rows[i] = NO_ROW
            self._rows[i, : len(rows)] = rows
        return True

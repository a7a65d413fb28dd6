"""Vectors of any string: those of word types, and for other words the mean of their hashed subwords."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mt2st_fast.data import SubwordTable, Vocabulary
from mt2st_fast.model.encoders import NO_ROW, BagEncoder, WindowEncoder


class SubwordVectors:
    """The vectors that an encoder over hashed subwords has learned, for any word, in its vocabulary or not.

        table = subword_rows(vocabulary.words, vocabulary.counts)
        encoder = BagEncoder(len(vocabulary), 64, rows_of_type=torch.from_numpy(table.rows), num_rows=table.num_rows)
        ...                                                    # train
        SubwordVectors(vocabulary, table, encoder).vector("unseenword")

    Every call reads the encoder, so that vectors follow its training. Raises ValueError if vocabulary, table and
    encoder do not belong together.
    """

    def __init__(
        self, vocabulary: Vocabulary, table: SubwordTable, encoder: WindowEncoder | BagEncoder
    ) -> None:
        if len(vocabulary) != len(table.rows):
            raise ValueError(
                f"the vocabulary has {len(vocabulary):,} types, but the subwords were made for {len(table.rows):,}"
            )
        if len(encoder.table) != table.num_rows:
            raise ValueError(
                f"the encoder's table has {len(encoder.table):,} rows, but the subwords need {table.num_rows:,}"
            )
        self.vocabulary, self.table, self.encoder = vocabulary, table, encoder

    def vector(self, word: str) -> np.ndarray:
        """Return the (D,) float32 vector of any string."""
        return self.vectors([word])[0]

    @torch.no_grad()
    def vectors(self, words: Sequence[str]) -> np.ndarray:
        """(n, D) float32 vectors of n strings: the encoder's for word types, else the mean of <unk> and subwords."""
        of_words = [self._rows(word) for word in words]
        rows = np.full((len(words), max(map(len, of_words), default=0)), NO_ROW, np.int32)
        for padded, of_word in zip(rows, of_words, strict=True):
            padded[: len(of_word)] = of_word
        means = self.encoder.mean_of_rows(torch.from_numpy(rows).to(self.encoder.table.device))
        return means.float().cpu().numpy()

    def _rows(self, word: str) -> Sequence[int] | np.ndarray:
        known = self.vocabulary.get(word, -1)
        if known < 0:
            return self.table.rows_of_unknown(word)
        rows = self.table.rows[known]
        return rows[rows != self.table.padding_row]

"""What training has to know of a Word2Vec: how it learns, and the tables that are moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mt2st_fast.kernels.context.workspace import WordRows


@dataclass(frozen=True)
class LearningOptions:
    """How a Word2Vec learns from a text, when training begins; Word2Vec documents the options under the same names."""

    vector_size: int
    window: int
    sample: float
    workers: int
    sg: int
    hs: int
    negative: int
    ns_exponent: float
    cbow_mean: int
    max_n: int
    sorted_vocab: int
    shrink_windows: bool

    @property
    def mode(self) -> str:
        """ "skipgram" or "cbow"."""
        return "skipgram" if self.sg else "cbow"


@dataclass(frozen=True)
class LearnedTables:
    """The tables of V words, which training moves in place.

    counts: int64 (V,). input_rows, output_vectors and node_vectors: as in WordTables. subwords: the input rows of each
    word, if they are several. locks: factors (V,) for the changes of vectors, or (0,) where nothing is locked.
    """

    counts: np.ndarray
    input_rows: np.ndarray
    output_vectors: np.ndarray | None
    node_vectors: np.ndarray | None
    subwords: WordRows | None
    locks: np.ndarray

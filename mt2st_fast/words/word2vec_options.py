"""How a Word2Vec learns: what its tables and their training have to know of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LearningOptions:
    """How a Word2Vec learns from a text; Word2Vec documents the options under the same names."""

    vector_size: int
    window: int
    sample: float
    seed: int
    workers: int
    sg: int
    hs: int
    negative: int
    ns_exponent: float
    cbow_mean: int
    min_n: int
    max_n: int
    bucket: int
    sorted_vocab: int
    shrink_windows: bool

    @property
    def mode(self) -> str:
        """ "skipgram" or "cbow"."""
        return "skipgram" if self.sg else "cbow"

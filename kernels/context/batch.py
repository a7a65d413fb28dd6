"""Batches of context prediction, drawn as in word2vec.

A batch holds what was drawn: kept words, their windows, and negatives that a tile of positions shares. A `LocalBatch`
is the same, numbered by the batch's own distinct words. It is made on a CPU, since their number depends on data (on a
GPU that would mean waiting for the device), and can be moved to any device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MODES = ("skipgram", "cbow")
TILE = 16  # positions that share their negatives
LEAST_SHARED = 8
SPLIT_WORDS = 1024  # words of a batch; below it, a second thread costs more than it saves


class WordSampler(NamedTuple):
    """The probabilities with which words are kept, and drawn as negatives; made by `word_sampler`."""

    keep: np.ndarray  # uint32 (V,): probability times 2^32
    accept: np.ndarray  # uint32 (V,) and alias int32 (V,): Walker's table
    alias: np.ndarray


class ContextBatch(NamedTuple):
    """N kept words in tiles of TILE: the window of position i is words[low[i]:high[i]] without i itself."""

    words: np.ndarray  # int32 (N,)
    low: np.ndarray  # int32 (N,)
    high: np.ndarray  # int32 (N,)
    drawn: np.ndarray  # int32 (tiles, M)
    mode: str  # "skipgram" or "cbow"
    window: int
    negatives: float  # per pair

    @property
    def pairs(self) -> int:
        """Number of positive pairs: (word, neighbour) in skip-gram, words with a neighbour in CBOW."""
        around = self.high - self.low - 1
        return int((np.minimum(around, 1) if self.mode == "cbow" else around).sum())


class LocalBatch(NamedTuple):
    """N kept words in tiles of TILE, as in a ContextBatch, but word u stands for the type types[u]."""

    types: Tensor  # int64 (U,); the first n_kept have windows, the others are drawn only
    n_kept: int
    words: Tensor  # int32 (N,), each of the first n_kept at least once
    low: Tensor  # int32 (N,)
    high: Tensor  # int32 (N,)
    drawn: Tensor  # int32 (tiles, M)
    per_pair: Tensor  # float32 (): 1 over the positive pairs
    mode: str
    window: int
    negatives: float

    def drawn_batch(self) -> ContextBatch:
        """Convert a batch on a CPU to the form that the Numba kernel takes."""
        words, low, high, drawn = (t.numpy() for t in (self.words, self.low, self.high, self.drawn))
        return ContextBatch(words, low, high, drawn, self.mode, self.window, self.negatives)


def word_sampler(counts: np.ndarray, sample: float = 1e-3, power: float = 0.75) -> WordSampler:
    """Make word2vec's subsampling (sample = 0: none) and negative distribution for words with counts (V,)."""
    from .on_numba.draw import alias_table

    V = len(counts)
    keep = kept_shares(counts, sample)
    shares = counts.astype(np.float64) ** power
    accept, alias = np.empty(V, np.uint32), np.empty(V, np.int32)
    alias_table(shares / shares.sum(), accept, alias)
    return WordSampler(np.minimum(keep * 2.0**32, 2.0**32 - 1).astype(np.uint32), accept, alias)


def kept_shares(counts: np.ndarray, sample: float) -> np.ndarray:
    """Return the share of each word's occurrences that is kept, (V,); 1 or above: all.

    sample: 0 keeps everything; below 1 it is word2vec's fraction of all words; from 1 on it is gensim's count up to
    which a word is fully kept.
    """
    if sample <= 0:
        return np.ones(len(counts))
    threshold = sample * counts.sum() if sample < 1 else sample * (3 + np.sqrt(5)) / 2
    counts = np.maximum(counts, 1)  # a word that does not occur in the text is never looked up
    kept: np.ndarray = (np.sqrt(counts / threshold) + 1) * (threshold / counts)
    return kept


def stream_key(seed: int, epoch: int) -> Any:
    """Return the key of an epoch's draws."""
    from .on_numba.draw import hashed

    return np.uint64(hashed(np.uint64(seed), np.uint64(epoch)))


def draw_batch(
    tokens: np.ndarray,
    bounds: np.ndarray,
    first: int,
    last: int,
    sampler: WordSampler,
    key: Any,
    *,
    mode: str = "skipgram",
    window: int = 5,
    negatives: float = 5,
    shared: int = 16,
) -> ContextBatch:
    """Draw the batch of tokens[first:last]: int32, negative = not in the vocabulary; sentence u begins at bounds[u].

    Raises ValueError for an unknown mode or a `shared` (M) that is not a multiple of 8.
    """
    from .on_numba.draw import draw_negatives, draw_positions

    check_options(mode, window, negatives, shared)
    words, low, high = (np.empty(max(0, last - first), np.int32) for _ in range(3))
    n = draw_positions(tokens, bounds, first, last, sampler.keep, key, (window, True), words, low, high)
    drawn = np.empty((-(-n // TILE), shared), np.int32)
    draw_negatives(key, first, sampler.accept, sampler.alias, drawn.reshape(-1), drawn.size)
    return ContextBatch(words[:n], low[:n], high[:n], drawn, mode, window, negatives)


def check_options(mode: str, window: int, negatives: float, shared: int) -> None:
    """Raise ValueError for options that the kernel does not support."""
    if mode not in MODES:
        raise ValueError(f"the mode of context prediction must be skipgram or cbow, not {mode!r}")
    if window < 1 or negatives <= 0:
        raise ValueError(f"window ({window}) and negatives ({negatives}) must be positive")
    if shared < LEAST_SHARED or shared % LEAST_SHARED:
        raise ValueError(f"shared negatives must come in multiples of {LEAST_SHARED}, not {shared}")


def local_words(batch: ContextBatch) -> LocalBatch:
    """Renumber the batch by its own distinct words."""
    from .on_numba.local import number_words

    words, drawn = np.empty_like(batch.words), np.empty_like(batch.drawn)
    types, n_kept = number_words(batch.words, batch.drawn.reshape(-1), words, drawn.reshape(-1))
    return LocalBatch(
        torch.from_numpy(types),
        n_kept,
        torch.from_numpy(words),
        torch.from_numpy(batch.low),
        torch.from_numpy(batch.high),
        torch.from_numpy(drawn),
        torch.tensor(1 / max(1, batch.pairs), dtype=torch.float32, device="cpu"),
        batch.mode,
        batch.window,
        batch.negatives,
    )

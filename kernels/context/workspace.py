"""The memory that training of context prediction works in, made once and used in every round."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .batch import TILE


class Workspace(NamedTuple):
    """Memory of P shards of N words; rows are what they touch."""

    slot_of: np.ndarray  # (P, V): the row of a word among those of the shard, -1 between calls
    words: np.ndarray  # (P, N) kept words, their rows, and where their windows begin and end
    slots: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drawn: np.ndarray  # (P, tiles * M): negatives, then their rows
    rows: np.ndarray  # (P, U): the words of the rows
    visits: np.ndarray  # (P, U): how often each comes
    counts: np.ndarray  # (P, 2): rows of the input and of the output table; the first of rows
    mark: np.ndarray  # (P, U): the last tile that drew the row
    factors: np.ndarray  # (V,): what the changes of a row are multiplied with, 0 between calls
    x: np.ndarray  # (P, U, ld): copies of the rows, or their changes
    y: np.ndarray
    tile_rows: np.ndarray  # of one tile: see on_numba/tile.py
    band: np.ndarray
    z: np.ndarray
    share: np.ndarray
    h_t: np.ndarray


class Stream(NamedTuple):
    """A text and the key of an epoch's draws."""

    tokens: np.ndarray  # int32 (T,), negative = not in the vocabulary
    bounds: np.ndarray  # int64: sentence u begins at bounds[u]
    key: np.uint64


class Steps(NamedTuple):
    """How training steps, as numbers; see ContextOptions."""

    mode: int
    window: int
    negatives: float
    shrink: bool  # windows are drawn from 1 to `window`
    mean: bool  # CBOW: of a window, not its sum
    spread: bool  # CBOW: word2vec's own step
    pull: float
    shard_words: int


class Tables(NamedTuple):
    """What is trained, float32: inputs (V, D), or (R, D) with subwords, and outputs (V, D).

    locks (V,) are what the changes of input rows are multiplied with at the end of a round; empty for 1.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    locks: np.ndarray


class WordRows(NamedTuple):
    """The rows of an input table whose mean is word v: ids[bounds[v]:bounds[v + 1]], one at least."""

    ids: np.ndarray  # int32
    bounds: np.ndarray  # int64 (V + 1,)


class SubwordWorkspace(NamedTuple):
    """What training with subwords needs beside a Workspace: P shards of N words that have U rows in all."""

    slot_of: np.ndarray  # (P, R): the number of a row among those of the shard, -1 between calls
    begins: np.ndarray  # (P, N + 1): where in slots the rows of each of the shard's words begin
    slots: np.ndarray  # (P, .)
    rows: np.ndarray  # (P, U)
    visits: np.ndarray  # (P, U): how often a word of the row comes
    counts: np.ndarray  # (P,): rows
    factors: np.ndarray  # (R,): as in Workspace
    x: np.ndarray  # (P, U, ld): copies of the rows, or their changes
    vectors: np.ndarray  # (P, TILE + 2 window, ld): those of a tile's positions, and how they change
    changes: np.ndarray
    x_slots: np.ndarray  # (N,): where in them a position stands


class SubwordParts(NamedTuple):
    """What the kernels are given more with subwords than without."""

    of_words: WordRows
    w: SubwordWorkspace


def make_workspace(V: int, D: int, shards: int, shard_words: int, window: int, shared: int) -> Workspace:
    """Memory for training or for gradients; nothing in it needs to be set between calls."""
    from ..machine.simd import WIDTH

    P, N, M = shards, shard_words, shared
    ld = -(-D // WIDTH) * WIDTH
    n_drawn = -(-N // TILE) * M
    n_inputs, n_outputs = min(N, V), min(N + n_drawn, V)
    ldb = -(-(TILE + 2 * window) // WIDTH) * WIDTH

    def integers(*shape: int) -> np.ndarray:
        return np.empty(shape, np.int32)

    def floats(*shape: int) -> np.ndarray:
        return np.empty(shape, np.float32)

    return Workspace(
        slot_of=np.full((P, V), -1, np.int32),
        words=integers(P, N),
        slots=integers(P, N),
        low=integers(P, N),
        high=integers(P, N),
        drawn=integers(P, n_drawn),
        rows=integers(P, n_outputs),
        visits=integers(P, n_outputs),
        counts=np.zeros((P, 2), np.int64),
        mark=integers(P, n_outputs),
        factors=np.zeros(V, np.float32),
        x=floats(P, n_inputs, ld),
        y=floats(P, n_outputs, ld),
        tile_rows=floats(P, 3 * TILE + 2 * M + 2 * window, ld),
        band=floats(P, TILE + 1, ldb),
        z=floats(P, M, TILE),
        share=floats(P, M, TILE),
        h_t=floats(P, ld, TILE),
    )


def make_subword_workspace(
    R: int, subwords: WordRows, D: int, shards: int, shard_words: int, window: int
) -> SubwordWorkspace:
    """Memory for training with subwords; of x only what a shard uses is ever touched."""
    from ..machine.simd import WIDTH

    P, N = shards, shard_words
    ld, span = -(-D // WIDTH) * WIDTH, TILE + 2 * window
    sizes = np.sort(np.diff(subwords.bounds))
    n_slots = int(sizes[-N:].sum())
    n_rows = min(n_slots, R)
    return SubwordWorkspace(
        slot_of=np.full((P, R), -1, np.int32),
        begins=np.empty((P, N + 1), np.int64),
        slots=np.empty((P, n_slots), np.int32),
        rows=np.empty((P, n_rows), np.int32),
        visits=np.empty((P, n_rows), np.int32),
        counts=np.zeros(P, np.int64),
        factors=np.zeros(R, np.float32),
        x=np.empty((P, n_rows, ld), np.float32),
        vectors=np.empty((P, span, ld), np.float32),
        changes=np.empty((P, span, ld), np.float32),
        x_slots=np.arange(N) % span,
    )

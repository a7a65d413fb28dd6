"""The memory that training of context prediction works in, made once and used in every round."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .batch import TILE


class Workspace(NamedTuple):
    """Memory for P shards of N words; "rows" are the table rows that they touch."""

    slot_of: np.ndarray  # (P, V): the local row of a word in the shard, -1 between calls
    words: np.ndarray  # (P, N) kept words, their local rows, and where their windows begin and end
    slots: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drawn: np.ndarray  # (P, tiles * M): negatives, then their local rows
    rows: np.ndarray  # (P, U): the word of each local row
    visits: np.ndarray  # (P, U): how often each occurs
    counts: np.ndarray  # (P, 2): rows of the input table (the first of rows), and of the output table
    mark: np.ndarray  # (P, U): the last tile that drew the row
    factors: np.ndarray  # (V,): factors for the changes of a row, 0 between calls
    x: np.ndarray  # (P, U, ld): copies of the rows, or their changes
    y: np.ndarray
    tile_rows: np.ndarray  # scratch of one tile: see on_numba/tile.py
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
    """The training options as numbers; see ContextOptions."""

    mode: int
    window: int
    negatives: float
    shrink: bool  # windows are drawn from 1 to `window`
    mean: bool  # CBOW: mean of a window, not its sum
    spread: bool  # CBOW: word2vec's own step
    pull: float
    shard_words: int


class Tables(NamedTuple):
    """The trained float32 tables: inputs (V, D), or (R, D) with subwords, and outputs (V, D).

    locks (V,): factors for the changes of input rows at the end of a round; empty means 1.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    locks: np.ndarray


class WordRows(NamedTuple):
    """The rows of an input table whose mean is the vector of word v: ids[bounds[v]:bounds[v + 1]], at least one."""

    ids: np.ndarray  # int32
    bounds: np.ndarray  # int64 (V + 1,)


class SubwordWorkspace(NamedTuple):
    """Memory that training with subwords needs besides a Workspace: P shards of N words that have U rows in all."""

    slot_of: np.ndarray  # (P, R): the local index of a row in the shard, -1 between calls
    begins: np.ndarray  # (P, N + 1): where the rows of each of the shard's words begin in slots
    slots: np.ndarray  # (P, .)
    rows: np.ndarray  # (P, U)
    visits: np.ndarray  # (P, U): how often a word of the row occurs
    counts: np.ndarray  # (P,): number of rows
    factors: np.ndarray  # (R,): as in Workspace
    x: np.ndarray  # (P, U, ld): copies of the rows, or their changes
    vectors: np.ndarray  # (P, TILE + 2 window, ld): vectors of a tile's positions, and their changes
    changes: np.ndarray
    x_slots: np.ndarray  # (N,): a position's index in them


class SubwordParts(NamedTuple):
    """Additional arguments of the kernels with subwords."""

    of_words: WordRows
    w: SubwordWorkspace


def make_workspace(V: int, D: int, shards: int, shard_words: int, window: int, shared: int) -> Workspace:
    """Allocate memory for training or for gradients; nothing in it needs to be reset between calls."""
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
    """Allocate memory for training with subwords; only the part of x that a shard uses is ever touched."""
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

"""The memory that training of context prediction works in, made once and used in every round.

Float arrays begin on a cache line, and their rows are whole vectors: otherwise every access to a vector would be to two
lines.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .batch import TILE

FLOAT_BYTES, LINE = 4, 16  # a cache line is 16 float32


class ShardRows(NamedTuple):
    """The rows of a table (V, .) that each of P shards touches in a round, in order of appearance: its local rows."""

    counts: np.ndarray  # (P,): how many there are
    slot_of: np.ndarray  # (P, V): the local row of a row, -1 for none; kept until the shard's next round
    rows: np.ndarray  # (P, U): the row of each local row
    visits: np.ndarray  # (P, U): how often each occurs
    # (P, U): the local rows by part of the table, ascending in each: those of part k are by_part[ends[k]:ends[k + 1]]
    by_part: np.ndarray
    ends: np.ndarray  # (P, P + 1)


class Workspace(NamedTuple):
    """Memory for P shards of N words."""

    touched: ShardRows  # of the output table; the first n_inputs of them also of the input table
    n_inputs: np.ndarray  # (P,)
    words: np.ndarray  # (P, N) kept words, their local rows, and where their windows begin and end
    slots: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drawn: np.ndarray  # (P, tiles * M): negatives, then their local rows
    mark: np.ndarray  # (P, U): the last tile that drew the row
    x: np.ndarray  # (P, U, ld): a shard's copies of the rows
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


class Rates(NamedTuple):
    """A learning rate that falls by the word: from `first`, by `fall` for every word of the epoch, down to `least`."""

    first: float
    fall: float
    least: float


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

    touched: ShardRows  # of the input table; a visit is one of a row's words
    begins: np.ndarray  # (P, N + 1): where the rows of each of the shard's words begin in slots
    slots: np.ndarray  # (P, .)
    x: np.ndarray  # (P, U, ld): a shard's copies of the rows
    vectors: np.ndarray  # (P, TILE + 2 window, ld): vectors of a tile's positions, and their changes
    changes: np.ndarray
    x_slots: np.ndarray  # (N,): a position's index in them


class SubwordParts(NamedTuple):
    """Additional arguments of the kernels with subwords."""

    of_words: WordRows
    w: SubwordWorkspace


def floats(*shape: int) -> np.ndarray:
    """Allocate float32 that begin on a cache line, uninitialized. What is never touched takes no memory."""
    n = math.prod(shape)
    whole = np.empty(n + LINE, np.float32)
    first = -(whole.ctypes.data // FLOAT_BYTES) % LINE
    return whole[first : first + n].reshape(shape)


def integers(*shape: int) -> np.ndarray:
    """Allocate int32, uninitialized."""
    return np.empty(shape, np.int32)


def make_shard_rows(V: int, shards: int, most: int) -> ShardRows:
    """Allocate for up to `most` rows a shard, of a table of V rows."""
    return ShardRows(
        counts=np.zeros(shards, np.int64),
        slot_of=np.full((shards, V), -1, np.int32),
        rows=integers(shards, most),
        visits=integers(shards, most),
        by_part=integers(shards, most),
        ends=np.zeros((shards, shards + 1), np.int64),
    )


def make_workspace(V: int, D: int, shards: int, shard_words: int, window: int, shared: int) -> Workspace:
    """Allocate memory for training or for gradients; nothing in it needs to be reset between calls."""
    from ..machine.simd import WIDTH

    P, N, M = shards, shard_words, shared
    ld = -(-D // WIDTH) * WIDTH
    n_drawn = -(-N // TILE) * M
    n_inputs, n_outputs = min(N, V), min(N + n_drawn, V)
    ldb = -(-(TILE + 2 * window) // WIDTH) * WIDTH
    return Workspace(
        touched=make_shard_rows(V, P, n_outputs),
        n_inputs=np.zeros(P, np.int64),
        words=integers(P, N),
        slots=integers(P, N),
        low=integers(P, N),
        high=integers(P, N),
        drawn=integers(P, n_drawn),
        mark=integers(P, n_outputs),
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
        touched=make_shard_rows(R, P, n_rows),
        begins=np.empty((P, N + 1), np.int64),
        slots=integers(P, n_slots),
        x=floats(P, n_rows, ld),
        vectors=floats(P, span, ld),
        changes=floats(P, span, ld),
        x_slots=(np.arange(N) % span).astype(np.int32),
    )

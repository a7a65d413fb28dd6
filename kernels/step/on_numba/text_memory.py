"""The memory that a step on the words of a text works in, made once for a model and used in every step."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ...heads.on_numba.stages import LINE, SKEW
from ...machine.gemm import BLOCK_ROWS, PANEL
from ...machine.simd import FLOAT_BYTES, WIDTH
from ..model import EVERYTHING
from ..text_model import HEAD_BIAS, HIDDEN_BIAS, TextStepModel
from .text_hidden import MOST_TYPES_A_WINDOW
from .text_index import BatchIndex, new_index

TILE_ROWS = 48  # per tile: a thread's share then fits half of a 1 MiB cache
HALVES = 2  # of the rows, over each of which the gradients of weights are summed first

GROWTH = 1.25


class Table(NamedTuple):
    """The table (V, D), the index of its rule in a step, the rule's state, and the rows of the types.

    Addresses are of float32.
    """

    address: int
    D: int
    per_row: np.ndarray
    first: int
    second: int
    rows_of_type: np.ndarray
    rule: int
    steps: int  # the address of the number of steps it has taken; 0: not counted
    d_rows: int  # where gradients of rows are stored, in the order of BatchIndex.rows; 0: rows are updated
    frozen: np.ndarray  # (V,) 1 for a frozen row; (0,): none is


class Buffers(NamedTuple):
    """What a step stores between its rounds, for N rows of W vectors, H hidden outputs and S outputs of heads.

    Without a hidden layer, a and x are the same array.
    """

    vectors: np.ndarray  # (U, D) of the types, with room for a block of rows after them
    d_vectors: np.ndarray  # (U, D)
    projected: np.ndarray  # (MOST_TYPES_A_WINDOW * N, W, ldp) of the types, if windows are sums of those
    x: np.ndarray  # (N, ldx) windows or bags, after dropout
    d_x: np.ndarray  # N times W * D, one after another, then D for every vector from elsewhere
    a: np.ndarray  # (N, lda) hidden outputs
    d_a: np.ndarray  # (N, lda), before the ReLU
    z: np.ndarray  # (tiles, S, ldz) gradients of the logits, transposed
    forward: np.ndarray  # the hidden weight, packed by panels of H
    backward: np.ndarray  # packed by panels of W * D
    losses: np.ndarray  # (tiles, K) float64
    correct: np.ndarray  # (tiles, K) int64
    d_head_bias: np.ndarray  # (tiles, S)
    d_hidden_bias: np.ndarray  # (tiles, H)
    sums: np.ndarray  # (HALVES, pieces, floats) gradients of the pieces of weights over each half of the rows
    # An empty array, for helpers with an optional argument: an empty global would be another type, compiled apart.
    no_scales: np.ndarray  # (0,) float32
    all_rows: np.ndarray  # (0,) int64


class Memory(NamedTuple):
    """A model's buffers, for up to n_rows rows with n_positions words, and the addresses of its parameters."""

    n_rows: int
    n_positions: int
    batch: BatchIndex
    buffers: Buffers
    table: Table
    weights: np.ndarray  # (K,) addresses of the heads' weights
    biases: np.ndarray  # (K,) addresses of their biases, 0 without one
    d_rows: np.ndarray  # (R, D) gradients of rows; (0, D) if rows are updated


def memory_of(model: TextStepModel, N: int, n_positions: int) -> Memory:
    """Return the model's memory, reallocated if a batch is larger than all before it."""
    held: Memory | None = model.memory
    if held is None or held.n_rows < N or held.n_positions < n_positions:
        if (
            held is not None
        ):  # bags differ in length between batches: some slack, or it would be reallocated again and again
            N, n_positions = max(N, held.n_rows), max(int(GROWTH * n_positions), held.n_positions)
        index, buffers = new_index(model, n_positions), _new_buffers(model, N, n_positions)
        D = model.table.parameter.shape[1]
        d_rows = np.empty((len(index.rows) if model.gathers_rows else 0, D), np.float32)
        held = model.memory = Memory(
            N, n_positions, index, buffers, _table(model, d_rows), *_addresses(model), d_rows
        )
    return held


def _table(model: TextStepModel, d_rows: np.ndarray) -> Table:
    table, state = model.table.parameter, model.table.state
    per_row = np.zeros(0, np.float32) if state.per_row is None else state.per_row.numpy()
    first, second = (0 if part is None else part.data_ptr() for part in state[1:])
    D = table.shape[1]
    return Table(
        table.data_ptr(), D, per_row, first, second, model.rows_of_type, model.table.rule,
        0 if model.table_steps is None else model.table_steps.data_ptr(),
        d_rows.ctypes.data if model.gathers_rows else 0, model.frozen_rows,
    )  # fmt: skip


def _addresses(model: TextStepModel) -> tuple[np.ndarray, np.ndarray]:
    """Return the addresses (K,) of the heads' weights, and of their biases."""
    weights, biases = (
        np.array([0 if part is None else part.parameter.data_ptr() for part in parts], np.int64)
        for parts in zip(*model.heads, strict=True)
    )
    return weights, biases


def _new_buffers(model: TextStepModel, N: int, n_positions: int) -> Buffers:
    H, F, has_hidden = model.n_features, model.n_window, model.hidden is not None
    D, K, S = model.table.parameter.shape[1], len(model.layout), sum(spec.size for spec in model.layout.heads)
    U = min(n_positions, len(model.rows_of_type))
    pieces = model.moving(EVERYTHING).pieces
    n_tiles, ldx, lda = -(-N // TILE_ROWS), _up(F, PANEL) + SKEW, _up(H, PANEL) + SKEW
    padded = n_tiles * TILE_ROWS

    def floats(*shape: int) -> np.ndarray:
        """Zeros whose first number begins a cache line."""
        n = math.prod(shape)
        whole = np.zeros(n + LINE, np.float32)
        first = -(whole.ctypes.data // FLOAT_BYTES) % LINE
        return whole[first : first + n].reshape(shape)

    n_projected = most_projected(N) + BLOCK_ROWS if has_hidden else 0
    x = floats(padded, ldx)
    return Buffers(
        vectors=floats(U + BLOCK_ROWS, D),
        projected=floats(n_projected, model.pooled.width, _up(H, PANEL)),
        d_vectors=floats(U, D),
        x=x,
        d_x=floats(N * F + n_positions * D),
        a=floats(padded, lda) if has_hidden else x,
        d_a=floats(padded, lda),
        z=floats(n_tiles, _up(S, PANEL) + PANEL, _up(TILE_ROWS, WIDTH) + SKEW),
        forward=floats(-(-H // PANEL) if has_hidden else 0, F * PANEL),
        backward=floats(-(-F // PANEL) * H * PANEL if has_hidden else 0),
        losses=np.zeros((n_tiles, K)),
        correct=np.zeros((n_tiles, K), np.int64),
        d_head_bias=floats(n_tiles, S),
        d_hidden_bias=floats(n_tiles, H),
        sums=floats(HALVES, len(pieces), max(map(_floats_of, pieces), default=0)),
        no_scales=floats(0),
        all_rows=np.zeros(0, np.int64),
    )


def most_projected(N: int) -> int:
    """Return the largest number of types of N windows for which types are projected."""
    return int(MOST_TYPES_A_WINDOW * N)


def _floats_of(piece: np.void) -> int:
    """Return how many numbers the gradient of a piece of a weight takes, with what the kernels write past its edges.

    0 for a bias, which is a single piece, however long: its sums over tiles are stored elsewhere.
    """
    if piece["of"] in (HIDDEN_BIAS, HEAD_BIAS):
        return 0
    return _up(int(piece["rows"]), BLOCK_ROWS) * (_up(int(piece["columns"]), PANEL) + SKEW)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step

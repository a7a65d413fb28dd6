"""The memory that a step on the words of a text works in, made once for a model and used in every step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...heads.on_numba.stages import SKEW
from ...machine.gemm import BLOCK_ROWS, PANEL
from ...machine.held import (
    Bytes1,
    Floats1,
    Floats2,
    Floats3,
    Held,
    Ints1,
    ShortInts2,
    reader,
)
from ..model import EVERYTHING
from ..text_model import TextStepModel
from .dense_memory import LAYER, DenseBuffers, dense_buffers, floats, parameter_address, up
from .task_memory import TaskMemory, task_memory
from .text_hidden import MOST_TYPES_A_WINDOW
from .text_index import BatchIndex, new_index

TILE_ROWS = 48  # per tile: a thread's share then fits half of a 1 MiB cache

GROWTH = 1.25


class Table(NamedTuple):
    """The table (V, D), the index of its rule in a step, the rule's state, and the rows of the types.

    Addresses are of float32.
    """

    address: int
    D: int
    per_row: Floats1
    first: int
    second: int
    rows_of_type: ShortInts2
    rule: int
    steps: int  # the address of the number of steps it has taken; 0: not counted
    d_rows: int  # where gradients of rows are stored, in the order of BatchIndex.rows; 0: rows are updated
    room: Ints1  # (2,) where they are stored instead, if they are at most so many numbers; set before a step
    frozen: Bytes1  # (V,) 1 for a frozen row; (0,): none is


class Buffers(NamedTuple):
    """What a step stores between its rounds, for N rows of W vectors, H hidden outputs and S outputs of heads.

    Without a hidden layer, a and x are the same array.
    """

    vectors: Floats2  # (U, D) of the types, with room for a block of rows after them
    d_vectors: Floats2  # (U, D)
    projected: Floats3  # (MOST_TYPES_A_WINDOW * N, W, ldp) of the types, if windows are sums of those
    x: Floats2  # (N, ldx) windows or bags, after dropout
    d_x: Floats1  # N times W * D, one after another, then D for every vector from elsewhere
    a: Floats2  # (N, lda) hidden outputs
    d_a: Floats2  # (N, lda), before the ReLU
    forward: Floats2  # the hidden weight, packed by panels of H
    backward: Floats1  # packed by panels of W * D
    d_hidden_bias: Floats2  # (tiles, H)
    # An empty array, for helpers with an optional argument: an empty global would be another type, compiled apart.
    no_scales: Floats1  # (0,)
    dense: DenseBuffers


class StepMemory(NamedTuple):
    """All that a step reads and writes and that lies at the same place in every step."""

    width: int  # W
    hidden: Floats2  # (H, W D) the weight of the hidden layer; (0, W D) without one
    hidden_bias: int  # its address, 0 without one
    table: Table
    tasks: TaskMemory
    batch: BatchIndex
    buffers: Buffers


read_memory = reader(StepMemory)


class Memory(NamedTuple):
    """A model's memory for up to n_rows rows with n_positions words."""

    n_rows: int
    n_positions: int
    held: Held[StepMemory]
    d_rows: np.ndarray  # (R, D) gradients of rows; (0, D) if rows are updated

    @property
    def batch(self) -> BatchIndex:
        """The words of the last batch."""
        return self.held.value.batch

    @property
    def buffers(self) -> Buffers:
        """What the last step stored between its rounds."""
        return self.held.value.buffers


def memory_of(model: TextStepModel, N: int, n_positions: int) -> Memory:
    """Return the model's memory, reallocated if a batch is larger than all before it."""
    held: Memory | None = model.memory
    if held is None or held.n_rows < N or held.n_positions < n_positions:
        if held is not None:
            # Bags differ in length between batches: some slack, or it would be reallocated again and again.
            N, n_positions = max(N, held.n_rows), max(int(GROWTH * n_positions), held.n_positions)
        held = model.memory = _new_memory(model, N, n_positions)
    return held


def _new_memory(model: TextStepModel, N: int, n_positions: int) -> Memory:
    index, buffers = new_index(model, n_positions), _new_buffers(model, N, n_positions)
    D = model.table.parameter.shape[1]
    d_rows = np.empty((len(index.rows) if model.gathers_rows else 0, D), np.float32)
    weight, bias = model.hidden or (None, None)
    memory = StepMemory(
        model.pooled.width,
        np.zeros((0, model.n_window), np.float32) if weight is None else weight.parameter.numpy(),
        parameter_address(bias),
        _table(model, d_rows),
        task_memory(model.layout),
        index,
        buffers,
    )
    return Memory(N, n_positions, Held(memory), d_rows)


def _table(model: TextStepModel, d_rows: np.ndarray) -> Table:
    table, state = model.table.parameter, model.table.state
    per_row = np.zeros(0, np.float32) if state.per_row is None else state.per_row.numpy()
    first, second = (0 if part is None else part.data_ptr() for part in state[1:])
    D = table.shape[1]
    return Table(
        table.data_ptr(), D, per_row, first, second, model.rows_of_type, model.table.rule,
        0 if model.table_steps is None else model.table_steps.data_ptr(),
        d_rows.ctypes.data if model.gathers_rows else 0, np.zeros(2, np.int64), model.frozen_rows,
    )  # fmt: skip


def _new_buffers(model: TextStepModel, N: int, n_positions: int) -> Buffers:
    H, F, has_hidden = model.n_features, model.n_window, model.hidden is not None
    D = model.table.parameter.shape[1]
    U = min(n_positions, len(model.rows_of_type))
    n_tiles, ldx, lda = -(-N // TILE_ROWS), up(F, PANEL) + SKEW, up(H, PANEL) + SKEW
    padded = n_tiles * TILE_ROWS

    n_projected = most_projected(N) + BLOCK_ROWS if has_hidden else 0
    x, d_a = floats(padded, ldx), floats(padded, lda)
    a, d_hidden_bias = floats(padded, lda) if has_hidden else x, floats(n_tiles, H)
    layers = np.zeros(int(has_hidden), LAYER)
    for layer in layers:
        layer["rows"], layer["columns"], layer["ld_inputs"], layer["ld"] = H, F, ldx, lda
        layer["inputs"], layer["d_outputs"], layer["d_bias"] = (
            each.ctypes.data for each in (x, d_a, d_hidden_bias)
        )
    pieces = model.moving(EVERYTHING).dense.pieces
    return Buffers(
        vectors=floats(U + BLOCK_ROWS, D),
        projected=floats(n_projected, model.pooled.width, up(H, PANEL)),
        d_vectors=floats(U, D),
        x=x,
        d_x=floats(N * F + n_positions * D),
        a=a,
        d_a=d_a,
        forward=floats(-(-H // PANEL) if has_hidden else 0, F * PANEL),
        backward=floats(-(-F // PANEL) * H * PANEL if has_hidden else 0),
        d_hidden_bias=d_hidden_bias,
        no_scales=floats(0),
        dense=dense_buffers(
            layers, model.heads, model.layout, pieces, (a.ctypes.data, lda, H), n_tiles, TILE_ROWS
        ),
    )


def most_projected(N: int) -> int:
    """Return the largest number of types of N windows for which types are projected."""
    return int(MOST_TYPES_A_WINDOW * N)

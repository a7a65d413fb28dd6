"""The memory that a step on a stack of layers works in, made once for a model and used in every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Annotated, NamedTuple

import numpy as np

from ...heads.on_numba.stages import SKEW
from ...machine.gemm import PANEL
from ...machine.held import Held, reader
from ...machine.simd import WIDTH
from ..activations import ALWAYS, MOST_OPTIONS, NAMES
from ..model import EVERYTHING
from ..stack_model import Layer, StackModel
from .batch_norm_memory import batch_norm_records
from .dense_memory import LAYER, DenseBuffers, dense_buffers, floats, parameter_address, up
from .embedding_memory import EMBEDDING, EmbeddingMemory
from .norm_memory import norm_records
from .task_memory import TaskMemory, task_memory

MOST_TILE_ROWS = 64
# A tile for each of this many threads, if there are rows for it.
TILES, ROWS_FOR_ALL, ROWS_FOR_TWO = 4, 128, 32

# Panels of a layer's weight that are packed at once, for the forward or the backward pass.
PACK = np.dtype([("layer", np.int64), ("backward", np.int64), ("first", np.int64), ("last", np.int64)])
PACKED_FLOATS = 1 << 14  # at most, if that is more than a panel
# Of a model, for every piece of packing: what a thread packs, another one has to fetch, so that sharing costs, too.
FLOATS_A_PIECE = 1 << 16


class StepMemory(NamedTuple):
    """All that a step of any stack reads and writes and that lies at the same place in every step."""

    tasks: TaskMemory
    embedding: Annotated[np.ndarray, EMBEDDING, 1]  # (1,)
    packs: Annotated[np.ndarray, PACK, 1]
    pack_pieces: int
    dense: DenseBuffers


read_memory = reader(StepMemory)


class Memory(NamedTuple):
    """A model's memory, for up to so many rows and tiles; arrays: those that records have addresses of."""

    n_rows: int
    n_tiles: int
    held: Held[StepMemory]
    embedding: EmbeddingMemory
    norms: np.ndarray | None  # (layers,), see norm_memory.py
    batch_norms: np.ndarray | None  # (layers,), see batch_norm_memory.py
    options: np.ndarray | None  # (layers, 2) of activations; None if all are among those of every stack
    arrays: list[np.ndarray]

    @property
    def dense(self) -> DenseBuffers:
        """Buffers of layers and heads."""
        return self.held.value.dense


@lru_cache
def tile_rows_of(N: int) -> int:
    """Return the rows of a tile: this depends only on N, so that results do not depend on the number of threads."""
    n_tiles = up(-(-N // MOST_TILE_ROWS), TILES if N >= ROWS_FOR_ALL else 2 if N >= ROWS_FOR_TWO else 1)
    return up(max(1, -(-N // max(1, n_tiles))), WIDTH)


def memory_of(model: StackModel, N: int) -> Memory:
    """Return the model's memory, reallocated if a batch is larger than all before it."""
    held: Memory | None = model.memory
    n_tiles = -(-N // tile_rows_of(N))
    if held is None or held.n_rows < N or held.n_tiles < n_tiles:
        if held is not None:
            N, n_tiles = max(N, held.n_rows), max(n_tiles, held.n_tiles)
        held = model.memory = _new_memory(model, N, n_tiles)
    return held


def _new_memory(model: StackModel, N: int, n_tiles: int) -> Memory:
    arrays: list[np.ndarray] = []

    def make(*shape: int, value: float = 0) -> int:
        arrays.append(floats(*shape))
        arrays[-1][:] = value
        return int(arrays[-1].ctypes.data)

    padded = up(N, WIDTH) + MOST_TILE_ROWS
    layers = np.zeros(len(model.layers), LAYER)
    ld = up(model.n_inputs, PANEL) + SKEW
    inputs = x = make(padded, ld)
    d_x = make(padded, ld) if model.moving(EVERYTHING).reach > len(model.layers) else 0
    embedding = EmbeddingMemory(model.embedding, x, ld, model.n_inputs, d_x)
    for record, layer in zip(layers, model.layers, strict=True):
        _lay_out(record, layer, (inputs, ld, d_x), padded, n_tiles, make)
        inputs, ld, d_x = (int(record[name]) for name in ("outputs", "ld", "d_outputs"))
    norms, batch_norms = (
        records(model.layers, layers, padded, n_tiles, make) for records in (norm_records, batch_norm_records)
    )
    pieces = model.moving(EVERYTHING).dense.pieces
    dense = dense_buffers(
        layers, model.heads, model.layout, pieces, (inputs, ld, model.n_features), n_tiles, MOST_TILE_ROWS
    )
    n_floats = sum(layer.weight.parameter.numel() for layer in model.layers if layer.weight is not None)
    memory = StepMemory(
        task_memory(model.layout), embedding.record, _packs(model), max(1, n_floats // FLOATS_A_PIECE), dense
    )
    return Memory(N, n_tiles, Held(memory), embedding, norms, batch_norms, _options(model.layers), arrays)


def _options(layers: Sequence[Layer]) -> np.ndarray | None:
    if all(layer.activation in ALWAYS for layer in layers):
        return None
    options = np.zeros((len(layers), MOST_OPTIONS), np.float32)
    for row, layer in zip(options, layers, strict=True):
        row[: len(layer.numbers)] = layer.numbers
    return options


def _lay_out(
    record: np.void,
    layer: Layer,
    before: tuple[int, int, int],
    padded: int,
    n_tiles: int,
    make: Callable[..., int],
) -> None:
    """Fill in a record of LAYER; before: its inputs, their row stride, and the gradients of them, 0 for none."""
    H, F = layer.shape
    record["weight"], record["bias"] = map(parameter_address, layer.linear)
    record["rows"], record["columns"], record["activation"] = H, F, NAMES.index(layer.activation)
    record["inputs"], record["ld_inputs"], d_inputs = before
    ld = up(H, PANEL) + SKEW
    record["outputs"], record["ld"] = make(padded, ld), ld
    # Without a product, the gradients of outputs become those of inputs where they are.
    in_place = layer.weight is None and d_inputs
    record["d_outputs"] = d_inputs if in_place else make(padded, ld)
    record["slopes"] = 0 if layer.activation == "relu" else make(padded, ld)
    record["d_bias"], record["padded_bias"] = make(n_tiles, H), make(up(H, WIDTH))
    if layer.weight is not None:
        record["forward"] = make(-(-H // PANEL), F * PANEL)
        record["backward"] = make(-(-F // PANEL), H * PANEL)


def _packs(model: StackModel) -> np.ndarray:
    """Return what is packed before a step; for the backward pass only layers with a layer or a table before them."""
    found = []
    for index, layer in enumerate(model.layers):
        if layer.weight is None:
            continue
        H, F = layer.shape
        for backward, panels, floats_each in ((0, -(-H // PANEL), F * PANEL), (1, -(-F // PANEL), H * PANEL)):
            at_once = max(1, PACKED_FLOATS // floats_each)
            if index or not backward or model.embedding is not None:
                found += [
                    (index, backward, first, min(panels, first + at_once))
                    for first in range(0, panels, at_once)
                ]
    return np.array(found, PACK)

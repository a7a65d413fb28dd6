"""A recurrent layer on a CPU, forward and backward: tiles of rows, which a cell takes through all steps.

A cell (`gru.py`, `lstm.py`) is two functions of one row of one step: what becomes of its gates, and their gradients.
Cells that have no memory beside their state pass 0 for the addresses of cells.

Arrays: T steps, N rows, H numbers of a state and of a cell, which are whole vectors, G gates.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from ...heads.on_numba.stages import SKEW, multiply_panels, round_up, scratch
from ...machine.elementary import ZERO
from ...machine.gemm import BLOCK_ROWS, PANEL
from ...machine.jit import address_of, helper, inlined, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, load, splat, store
from ...machine.team import in_parallel
from .rows import add_step, add_tiles, bias_of, load_tile, pack_gates, pack_states, tile_rows_of


# Kernels are called with plain tuples: to take named ones apart takes longer than a step of a small batch.
class Sizes(NamedTuple):
    """G gates, T steps, N rows, H numbers of a state; whether the cell has a memory beside its state."""

    G: int
    T: int
    N: int
    H: int
    has_cells: int


class Forward(NamedTuple):
    """The arguments of `forward_layer`: addresses of float32."""

    gates: int  # (T, N, G H), the products with the inputs, which the gates replace
    first_states: int  # (N, H), or 0 for zeros
    first_cells: int
    weight: int  # (G H, H)
    bias: int  # (G H,), or 0
    extra: int  # (T, N, H), written: the cells, or what else the way back takes
    outputs: int  # (T, N, H), written: the states
    kept: int  # (T, N, H), written: the states again


class Backward(NamedTuple):
    """The arguments of `backward_layer`: addresses of float32, and strides of d_outputs in bytes."""

    gates: int  # as `forward_layer` has left them
    extra: int
    memories: int  # (T, N, H): the cells, or the states of cells without a memory
    first_memories: int  # (N, H), or 0 for zeros
    weight: int
    d_outputs: int  # (T, N, H), or 0
    of_step: int
    of_row: int
    d_last: int  # (N, H), or 0
    d_last_cell: int
    d_gates: int  # (T, N, 4 H), written: the gradients of everything before the nonlinearities
    d_first: int  # (N, H), written unless 0
    d_first_cells: int
    d_bias: int  # (4 H,), written: the sums of d_gates over steps and rows


@helper
def _forward_rows(cell_forward, state, cell, product, first, rows, sizes, given, panels, bias):
    """Take rows first.. through all steps. state, cell (rows, ld) and product (rows, ld of G gates) are scratch."""
    H, N = sizes.H, sizes.N
    h, c, g, b = address_of(state), address_of(cell), address_of(product), address_of(bias)
    lds, ldc, ldg = state.shape[1], cell.shape[1], product.shape[1]
    padded, row_bytes, panels_at = round_up(rows, BLOCK_ROWS), FLOAT_BYTES * H, address_of(panels)
    load_tile(given.first_states, first, rows, H, state)
    if sizes.has_cells:
        load_tile(given.first_cells, first, rows, H, cell)
    for t in range(sizes.T):
        multiply_panels(h, lds, padded, H, panels_at, H * PANEL, sizes.G * H, g, ldg)
        for i in range(rows):
            at = row_bytes * (t * N + first + i)
            cell_forward(
                row_bytes, given.gates + sizes.G * at, g + FLOAT_BYTES * i * ldg, b, c + FLOAT_BYTES * i * ldc,
                given.extra + at, h + FLOAT_BYTES * i * lds, given.outputs + at, given.kept + at,
            )  # fmt: skip


@helper
def _forward_tile(tile, rows_a_tile, cell_forward, sizes, given, panels, bias):
    first = tile * rows_a_tile
    rows = min(rows_a_tile, sizes.N - first)
    padded = round_up(rows, BLOCK_ROWS)
    state, product = scratch(padded, sizes.H + SKEW), scratch(padded, sizes.G * sizes.H + SKEW)
    cell = scratch(padded, sizes.H + SKEW) if sizes.has_cells else state
    _forward_rows(cell_forward, state, cell, product, first, rows, sizes, given, panels, bias)


@inlined
def forward_layer(team, cell_forward, sizes_of, arguments):
    """Compute all states from the products with the inputs; for numbers as in Sizes and Forward.

    cell_forward(row_bytes, x, w, b, memory, extra, state, output, kept): a row of a step. Addresses: x (G H,), the
    products with its inputs, which the gates replace; w (G H,), those with its state; b (G H,), the bias; memory (H,),
    its cell, or else its state, which changes; extra (H,), written; and its new state is written to the last three.
    """
    sizes, given = Sizes(*sizes_of), Forward(*arguments)
    n_gates, rows_a_tile = sizes.G * sizes.H, tile_rows_of(sizes.N)
    panels = pack_gates(numba.carray(pointer_to_float32(given.weight), (n_gates, sizes.H)))
    bias = bias_of(given.bias, n_gates)
    in_parallel(
        team,
        -(-sizes.N // rows_a_tile),
        _forward_tile,
        (rows_a_tile, cell_forward, sizes, given, panels, bias),
    )


@helper
def _backward_rows(cell_backward, carried, product, d, of_step_g, sums, first, rows, sizes, given, panels):
    """Take rows first.. back through all steps; sums (4 H,): of the gradients of the gates.

    carried, product (rows, ld), d (rows, ld of G gates) and of_step_g (4 H,) are scratch.
    """
    G, N, H = sizes.G, sizes.N, sizes.H
    back, p, own, total = address_of(carried), address_of(product), address_of(d), address_of(of_step_g)
    ldc, ldp, ldd = carried.shape[1], product.shape[1], d.shape[1]
    padded, row_bytes, panels_at = round_up(rows, BLOCK_ROWS), FLOAT_BYTES * H, address_of(panels)
    load_tile(given.d_last, first, rows, H, product)
    load_tile(given.d_last_cell, first, rows, H, carried)
    for i in range(padded):
        for at in range(0, G * row_bytes, FLOAT_BYTES * WIDTH):
            store(splat(ZERO), own + FLOAT_BYTES * i * ldd + at)
    for g in range(4 * H):
        sums[g] = ZERO
        of_step_g[g] = ZERO
    for t in range(sizes.T - 1, -1, -1):
        for i in range(rows):
            row = t * N + first + i
            at = row_bytes * row
            earlier = given.memories + row_bytes * (row - N)
            if t == 0:
                earlier = (
                    given.first_memories + row_bytes * (first + i) if given.first_memories else np.int64(0)
                )
            d_output = np.int64(0)
            if given.d_outputs:
                d_output = given.d_outputs + given.of_step * t + given.of_row * (first + i)
            cell_backward(
                row_bytes, given.gates + G * at, given.extra + at, earlier, d_output, p + FLOAT_BYTES * i * ldp,
                back + FLOAT_BYTES * i * ldc, own + FLOAT_BYTES * i * ldd, given.d_gates + 4 * at, total,
            )  # fmt: skip
        add_step(of_step_g, sums)
        if t > 0 or given.d_first:
            multiply_panels(own, ldd, padded, G * H, panels_at, G * H * PANEL, H, p, ldp)
    for i in range(rows):
        for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
            to, of_cell = row_bytes * (first + i) + at, load(back + FLOAT_BYTES * i * ldc + at)
            if given.d_first:
                of_state = load(p + FLOAT_BYTES * i * ldp + at)
                store(of_state if sizes.has_cells else of_state + of_cell, given.d_first + to)
            if given.d_first_cells:
                store(of_cell, given.d_first_cells + to)


@helper
def _backward_tile(tile, rows_a_tile, cell_backward, sizes, given, panels, sums_tg):
    first, H = tile * rows_a_tile, sizes.H
    rows = min(rows_a_tile, sizes.N - first)
    padded = round_up(rows, BLOCK_ROWS)
    carried, product, d = (
        scratch(padded, H + SKEW),
        scratch(padded, H + SKEW),
        scratch(padded, sizes.G * H + SKEW),
    )
    of_step_g = np.empty(4 * H, np.float32)
    _backward_rows(
        cell_backward, carried, product, d, of_step_g, sums_tg[tile], first, rows, sizes, given, panels
    )


@inlined
def backward_layer(team, cell_backward, sizes_of, arguments):
    """Compute the gradients of everything before the nonlinearities, from those of the states and the last cells.

    For numbers as in Sizes and Backward.
    cell_backward(row_bytes, gates, extra, earlier, d_output, d_state, carried, d, d_gates, sums): a row of a step.
    Addresses: gates (G H,) and extra (H,) of the way forward; earlier (H,), its memory one step before, or 0 for zeros;
    d_output (H,), or 0; d_state (H,), the gradient of its state by the products of the next step; carried (H,), that of
    its memory otherwise, which the one of the step before replaces. Written: d (G H,), of what the state was multiplied
    for; d_gates (4 H,), of all; and what sums (4 H,) has is increased by them.
    """
    sizes, given = Sizes(*sizes_of), Backward(*arguments)
    n_gates, rows_a_tile = sizes.G * sizes.H, tile_rows_of(sizes.N)
    n_tiles = -(-sizes.N // rows_a_tile)
    panels = pack_states(numba.carray(pointer_to_float32(given.weight), (n_gates, sizes.H)))
    sums_tg = np.empty((n_tiles, 4 * sizes.H), np.float32)
    in_parallel(team, n_tiles, _backward_tile, (rows_a_tile, cell_backward, sizes, given, panels, sums_tg))
    add_tiles(sums_tg, numba.carray(pointer_to_float32(given.d_bias), (4 * sizes.H,)))

"""The steps of an LSTM on a CPU, forward and backward, on tiles of rows.

i = sigmoid(x_i + W_i h + b_i), f = sigmoid(...), g = tanh(...), o = sigmoid(...), c' = f c + i g, h' = o tanh(c'); x
are the products with the inputs, with their bias.

Arrays: T steps, N rows, H numbers of a state and of a cell, which are whole vectors.
"""

from __future__ import annotations

import numba
import numpy as np

from ...heads.on_numba.stages import SKEW, multiply_panels, round_up, scratch
from ...machine.elementary import ONE, ZERO, tanh32
from ...machine.gemm import BLOCK_ROWS, PANEL
from ...machine.jit import address_of, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, load, splat, store
from ...machine.team import Kernel, in_parallel
from .rows import add_step, add_tiles, bias_of, load_tile, pack_gates, pack_states, sigmoid32, tile_rows_of


@helper
def _forward_rows(
    state, cell, product, first, rows, T, N, H, gates, first_states, first_cells, panels, bias, cells, outputs, kept
):  # fmt: skip
    """Take rows first.. through all steps. state, cell (rows, ld) and product (rows, ld of 4 gates) are scratch."""
    h, c, g = address_of(state), address_of(cell), address_of(product)
    lds, ldg = state.shape[1], product.shape[1]
    padded, row_bytes = round_up(rows, BLOCK_ROWS), FLOAT_BYTES * H
    b, panels_at = address_of(bias), address_of(panels)
    load_tile(first_states, first, rows, H, state)
    load_tile(first_cells, first, rows, H, cell)
    for t in range(T):
        multiply_panels(h, lds, padded, H, panels_at, H * PANEL, 4 * H, g, ldg)
        for i in range(rows):
            row = t * N + first + i
            x, w = gates + 4 * row_bytes * row, g + FLOAT_BYTES * i * ldg
            own, own_cell = h + FLOAT_BYTES * i * lds, c + FLOAT_BYTES * i * lds
            for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
                at_f, at_g, at_o = row_bytes + at, 2 * row_bytes + at, 3 * row_bytes + at
                taken = sigmoid32(load(x + at) + (load(w + at) + load(b + at)))
                held = sigmoid32(load(x + at_f) + (load(w + at_f) + load(b + at_f)))
                fresh = tanh32(load(x + at_g) + (load(w + at_g) + load(b + at_g)))
                shown = sigmoid32(load(x + at_o) + (load(w + at_o) + load(b + at_o)))
                now = held * load(own_cell + at) + taken * fresh
                after = shown * tanh32(now)
                store(taken, x + at)
                store(held, x + at_f)
                store(fresh, x + at_g)
                store(shown, x + at_o)
                store(now, own_cell + at)
                store(now, cells + row_bytes * row + at)
                store(after, own + at)
                store(after, outputs + row_bytes * row + at)
                store(after, kept + row_bytes * row + at)


@helper
def _forward_tile(
    tile, rows_a_tile, T, N, H, gates, first_states, first_cells, panels, bias, cells, outputs, kept
):  # fmt: skip
    first = tile * rows_a_tile
    rows = min(rows_a_tile, N - first)
    padded = round_up(rows, BLOCK_ROWS)
    state, cell, product = scratch(padded, H + SKEW), scratch(padded, H + SKEW), scratch(padded, 4 * H + SKEW)
    _forward_rows(
        state, cell, product, first, rows, T, N, H, gates, first_states, first_cells, panels, bias, cells, outputs,
        kept,
    )  # fmt: skip


def _lstm_forward(team, T, N, H, gates, first_states, first_cells, weight, bias, cells, outputs, kept):
    """Compute all states from the products with the inputs.

    Addresses of float32: gates (T, N, 4 H), the products, which i, f, g and o replace; first_states and first_cells
    (N, H), or 0 for zeros; weight (4 H, H), bias (4 H,) or 0; cells, outputs, kept (T, N, H), which are written: the
    cells, and the states twice.
    """
    rows_a_tile = tile_rows_of(N)
    panels = pack_gates(numba.carray(pointer_to_float32(weight), (4 * H, H)))
    bias_g = bias_of(bias, 4 * H)
    in_parallel(team, -(-N // rows_a_tile), _forward_tile, (
        rows_a_tile, T, N, H, gates, first_states, first_cells, panels, bias_g, cells, outputs, kept,
    ))  # fmt: skip


lstm_forward = Kernel(_lstm_forward, beside_torch=True)


@helper
def _backward_rows(
    d_cell, product, d, of_step_g, sums, first, rows, T, N, H, gates, cells, first_cells, panels, d_outputs, of_step,
    of_row, d_last, d_last_cell, d_gates, d_first, d_first_cells,
):  # fmt: skip
    """Take rows first.. back through all steps; sums (4 H,): of the gradients of the gates.

    d_cell, product (rows, ld), d (rows, ld of 4 gates) and of_step_g (4 H,) are scratch.
    """
    back, p, own, total = address_of(d_cell), address_of(product), address_of(d), address_of(of_step_g)
    ldp, ldd = product.shape[1], d.shape[1]
    padded, row_bytes = round_up(rows, BLOCK_ROWS), FLOAT_BYTES * H
    panels_at = address_of(panels)
    load_tile(d_last, first, rows, H, product)
    load_tile(d_last_cell, first, rows, H, d_cell)
    for i in range(padded):
        for at in range(0, 4 * row_bytes, FLOAT_BYTES * WIDTH):
            store(splat(ZERO), own + FLOAT_BYTES * i * ldd + at)
    for g in range(4 * H):
        sums[g] = ZERO
        of_step_g[g] = ZERO
    for t in range(T - 1, -1, -1):
        for i in range(rows):
            row = t * N + first + i
            x, to, here = (
                gates + 4 * row_bytes * row,
                d_gates + 4 * row_bytes * row,
                own + FLOAT_BYTES * i * ldd,
            )
            cell_row, later = cells + row_bytes * row, back + FLOAT_BYTES * i * ldp
            earlier = cells + row_bytes * (row - N)
            if t == 0:
                earlier = first_cells + row_bytes * (first + i) if first_cells else np.int64(0)
            for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
                at_f, at_g, at_o = row_bytes + at, 2 * row_bytes + at, 3 * row_bytes + at
                taken, held, fresh, shown = load(x + at), load(x + at_f), load(x + at_g), load(x + at_o)
                before = splat(ZERO)
                if earlier:
                    before = load(earlier + at)
                d_state = load(p + FLOAT_BYTES * i * ldp + at)
                if d_outputs:
                    d_state = d_state + load(d_outputs + of_step * t + of_row * (first + i) + at)
                out = tanh32(load(cell_row + at))
                d_now = load(later + at) + d_state * shown * (ONE - out * out)
                d_i = d_now * fresh * taken * (ONE - taken)
                d_f = d_now * before * held * (ONE - held)
                d_g = d_now * taken * (ONE - fresh * fresh)
                d_o = d_state * out * shown * (ONE - shown)
                store(d_now * held, later + at)
                store(d_i, here + at)
                store(d_f, here + at_f)
                store(d_g, here + at_g)
                store(d_o, here + at_o)
                store(d_i, to + at)
                store(d_f, to + at_f)
                store(d_g, to + at_g)
                store(d_o, to + at_o)
                store(load(total + at) + d_i, total + at)
                store(load(total + at_f) + d_f, total + at_f)
                store(load(total + at_g) + d_g, total + at_g)
                store(load(total + at_o) + d_o, total + at_o)
        add_step(of_step_g, sums)
        if t > 0 or d_first:
            multiply_panels(own, ldd, padded, 4 * H, panels_at, 4 * H * PANEL, H, p, ldp)
    for i in range(rows):
        for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
            if d_first:
                store(load(p + FLOAT_BYTES * i * ldp + at), d_first + row_bytes * (first + i) + at)
            if d_first_cells:
                store(load(back + FLOAT_BYTES * i * ldp + at), d_first_cells + row_bytes * (first + i) + at)


@helper
def _backward_tile(
    tile, rows_a_tile, T, N, H, gates, cells, first_cells, panels, d_outputs, of_step, of_row, d_last, d_last_cell,
    d_gates, d_first, d_first_cells, sums_tg,
):  # fmt: skip
    first = tile * rows_a_tile
    rows = min(rows_a_tile, N - first)
    padded = round_up(rows, BLOCK_ROWS)
    d_cell, product, d = scratch(padded, H + SKEW), scratch(padded, H + SKEW), scratch(padded, 4 * H + SKEW)
    _backward_rows(
        d_cell, product, d, np.empty(4 * H, np.float32), sums_tg[tile], first, rows, T, N, H, gates, cells,
        first_cells, panels, d_outputs, of_step, of_row, d_last, d_last_cell, d_gates, d_first, d_first_cells,
    )  # fmt: skip


def _lstm_backward(
    team, T, N, H, gates, cells, first_cells, weight, d_outputs, of_step, of_row, d_last, d_last_cell, d_gates,
    d_first, d_first_cells, d_bias,
):  # fmt: skip
    """Compute the gradients of everything before the nonlinearities, from those of the states and the last cells.

    As for `_lstm_forward`, and addresses of d_outputs, whose steps and rows are of_step and of_row bytes apart, and
    d_last, d_last_cell (N, H); 0 for none. Written: d_gates (T, N, 4 H); d_first, d_first_cells (N, H) unless they are
    0; and d_bias (4 H,), the sums of d_gates over steps and rows.
    """
    rows_a_tile = tile_rows_of(N)
    n_tiles = -(-N // rows_a_tile)
    panels = pack_states(numba.carray(pointer_to_float32(weight), (4 * H, H)))
    sums_tg = np.empty((n_tiles, 4 * H), np.float32)
    in_parallel(team, n_tiles, _backward_tile, (
        rows_a_tile, T, N, H, gates, cells, first_cells, panels, d_outputs, of_step, of_row, d_last, d_last_cell,
        d_gates, d_first, d_first_cells, sums_tg,
    ))  # fmt: skip
    add_tiles(sums_tg, numba.carray(pointer_to_float32(d_bias), (4 * H,)))


lstm_backward = Kernel(_lstm_backward, beside_torch=True)

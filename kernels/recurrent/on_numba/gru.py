"""The steps of a GRU on a CPU, forward and backward, on tiles of rows.

r = sigmoid(x_r + W_r h + b_r), z = sigmoid(x_z + W_z h + b_z), c = W_n h + b_n, n = tanh(x_n + r c),
h' = n + z (h - n); x are the products with the inputs, with their bias.

Arrays: T steps, N rows, H numbers of a state, which are whole vectors.
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
    state, product, first, rows, T, N, H, gates, first_states, panels, bias, candidates, outputs, kept
):
    """Take rows first.. through all steps. state (rows, ld) and product (rows, ld of 3 gates) are scratch."""
    h, g, lds, ldg = address_of(state), address_of(product), state.shape[1], product.shape[1]
    padded, row_bytes = round_up(rows, BLOCK_ROWS), FLOAT_BYTES * H
    b, panels_at = address_of(bias), address_of(panels)
    load_tile(first_states, first, rows, H, state)
    for t in range(T):
        multiply_panels(h, lds, padded, H, panels_at, H * PANEL, 3 * H, g, ldg)
        for i in range(rows):
            row = t * N + first + i
            x, w, own = gates + 3 * row_bytes * row, g + FLOAT_BYTES * i * ldg, h + FLOAT_BYTES * i * lds
            for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
                at_z, at_n = row_bytes + at, 2 * row_bytes + at
                before = load(own + at)
                r = sigmoid32(load(x + at) + (load(w + at) + load(b + at)))
                z = sigmoid32(load(x + at_z) + (load(w + at_z) + load(b + at_z)))
                c = load(w + at_n) + load(b + at_n)
                n = tanh32(load(x + at_n) + r * c)
                after = n + z * (before - n)
                store(r, x + at)
                store(z, x + at_z)
                store(n, x + at_n)
                store(c, candidates + row_bytes * row + at)
                store(after, own + at)
                store(after, outputs + row_bytes * row + at)
                store(after, kept + row_bytes * row + at)


@helper
def _forward_tile(tile, rows_a_tile, T, N, H, gates, first_states, panels, bias, candidates, outputs, kept):
    first = tile * rows_a_tile
    rows = min(rows_a_tile, N - first)
    padded = round_up(rows, BLOCK_ROWS)
    state, product = scratch(padded, H + SKEW), scratch(padded, 3 * H + SKEW)
    _forward_rows(
        state, product, first, rows, T, N, H, gates, first_states, panels, bias, candidates, outputs, kept
    )


def _gru_forward(team, T, N, H, gates, first_states, weight, bias, candidates, outputs, kept):
    """Compute all states from the products with the inputs.

    Addresses of float32: gates (T, N, 3 H), the products, which r, z and n replace; first_states (N, H), or 0 for
    zeros; weight (3 H, H), bias (3 H,) or 0; candidates, outputs, kept (T, N, H), which are written: c, and the states
    twice.
    """
    rows_a_tile = tile_rows_of(N)
    panels = pack_gates(numba.carray(pointer_to_float32(weight), (3 * H, H)))
    bias_g = bias_of(bias, 3 * H)
    in_parallel(team, -(-N // rows_a_tile), _forward_tile, (
        rows_a_tile, T, N, H, gates, first_states, panels, bias_g, candidates, outputs, kept,
    ))  # fmt: skip


gru_forward = Kernel(_gru_forward, beside_torch=True)


@helper
def _backward_rows(
    carried, product, d, of_step_g, sums, first, rows, T, N, H, gates, candidates, kept, first_states, panels,
    d_outputs, of_step, of_row, d_last, d_gates, d_first,
):  # fmt: skip
    """Take rows first.. back through all steps; sums (4 H,): of the gradients of the gates.

    carried, product (rows, ld), d (rows, ld of 3 gates) and of_step_g (4 H,) are scratch.
    """
    back, p, own, total = address_of(carried), address_of(product), address_of(d), address_of(of_step_g)
    ldc, ldp, ldd = carried.shape[1], product.shape[1], d.shape[1]
    padded, row_bytes = round_up(rows, BLOCK_ROWS), FLOAT_BYTES * H
    panels_at = address_of(panels)
    load_tile(d_last, first, rows, H, carried)
    load_tile(np.int64(0), first, rows, H, product)
    for i in range(padded):
        for at in range(0, 3 * row_bytes, FLOAT_BYTES * WIDTH):
            store(splat(ZERO), own + FLOAT_BYTES * i * ldd + at)
    for g in range(4 * H):
        sums[g] = ZERO
        of_step_g[g] = ZERO
    for t in range(T - 1, -1, -1):
        for i in range(rows):
            row = t * N + first + i
            x, to, here = (
                gates + 3 * row_bytes * row,
                d_gates + 4 * row_bytes * row,
                own + FLOAT_BYTES * i * ldd,
            )
            c_row, later = candidates + row_bytes * row, back + FLOAT_BYTES * i * ldc
            earlier = kept + row_bytes * (row - N)
            if t == 0:
                earlier = first_states + row_bytes * (first + i) if first_states else np.int64(0)
            for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
                at_z, at_n, at_c = row_bytes + at, 2 * row_bytes + at, 3 * row_bytes + at
                r, z, n = load(x + at), load(x + at_z), load(x + at_n)
                before = splat(ZERO)
                if earlier:
                    before = load(earlier + at)
                d_state = load(later + at) + load(p + FLOAT_BYTES * i * ldp + at)
                if d_outputs:
                    d_state = d_state + load(d_outputs + of_step * t + of_row * (first + i) + at)
                d_n = d_state * (ONE - z) * (ONE - n * n)
                d_z = d_state * (before - n) * z * (ONE - z)
                d_c = d_n * r
                d_r = d_n * load(c_row + at) * r * (ONE - r)
                store(d_state * z, later + at)
                store(d_r, here + at)
                store(d_z, here + at_z)
                store(d_c, here + at_n)
                store(d_n, to + at)
                store(d_r, to + at_z)
                store(d_z, to + at_n)
                store(d_c, to + at_c)
                store(load(total + at) + d_n, total + at)
                store(load(total + at_z) + d_r, total + at_z)
                store(load(total + at_n) + d_z, total + at_n)
                store(load(total + at_c) + d_c, total + at_c)
        add_step(of_step_g, sums)
        if t > 0 or d_first:
            multiply_panels(own, ldd, padded, 3 * H, panels_at, 3 * H * PANEL, H, p, ldp)
    if d_first:
        for i in range(rows):
            for at in range(0, row_bytes, FLOAT_BYTES * WIDTH):
                both = load(back + FLOAT_BYTES * i * ldc + at) + load(p + FLOAT_BYTES * i * ldp + at)
                store(both, d_first + row_bytes * (first + i) + at)


@helper
def _backward_tile(
    tile, rows_a_tile, T, N, H, gates, candidates, kept, first_states, panels, d_outputs, of_step, of_row, d_last,
    d_gates, d_first, sums_tg,
):  # fmt: skip
    first = tile * rows_a_tile
    rows = min(rows_a_tile, N - first)
    padded = round_up(rows, BLOCK_ROWS)
    carried, product, d = scratch(padded, H + SKEW), scratch(padded, H + SKEW), scratch(padded, 3 * H + SKEW)
    _backward_rows(
        carried, product, d, np.empty(4 * H, np.float32), sums_tg[tile], first, rows, T, N, H, gates, candidates, kept,
        first_states, panels, d_outputs, of_step, of_row, d_last, d_gates, d_first,
    )  # fmt: skip


def _gru_backward(
    team, T, N, H, gates, candidates, kept, first_states, weight, d_outputs, of_step, of_row, d_last, d_gates, d_first,
    d_bias,
):  # fmt: skip
    """Compute the gradients of everything before the nonlinearities, from those of the states.

    As for `_gru_forward`, and addresses of d_outputs, whose steps and rows are of_step and of_row bytes apart, and
    d_last (N, H); 0 for none. Written: d_gates (T, N, 4 H), of x_n, r, z and c; d_first (N, H) unless it is 0; and
    d_bias (4 H,), the sums of d_gates over steps and rows.
    """
    rows_a_tile = tile_rows_of(N)
    n_tiles = -(-N // rows_a_tile)
    panels = pack_states(numba.carray(pointer_to_float32(weight), (3 * H, H)))
    sums_tg = np.empty((n_tiles, 4 * H), np.float32)
    in_parallel(team, n_tiles, _backward_tile, (
        rows_a_tile, T, N, H, gates, candidates, kept, first_states, panels, d_outputs, of_step, of_row, d_last,
        d_gates, d_first, sums_tg,
    ))  # fmt: skip
    add_tiles(sums_tg, numba.carray(pointer_to_float32(d_bias), (4 * H,)))


gru_backward = Kernel(_gru_backward, beside_torch=True)

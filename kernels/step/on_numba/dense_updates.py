"""From the gradients of outputs to updated parameters of layers and heads, piece by piece."""

from __future__ import annotations

import numba
import numpy as np

from ...bags.on_numba.row_updates import move_row, update_row
from ...bags.on_numba.rules import row_numbers
from ...heads.on_numba.stages import DEPTH, SKEW, ZERO, add_weight_gradient, round_up
from ...machine.gemm import BLOCK_ROWS, PANEL, add_by_column, add_by_column_1
from ...machine.jit import address_of, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH
from ..dense_model import FIRST_VECTOR, HEAD_BIAS, LAYER_BIAS, LAYER_WEIGHT, NORM_WEIGHT
from .dense_memory import HALVES

ONE = np.float32(1)

# --- gradients of weights over each half of the rows --------------------------------------------------------


@helper
def _layer_weight_gradient(layer, begin, n, first, last, gradient):
    """Rows begin..begin + n of the gradient of a layer's weight (., ld), over rows first..last of the batch.

    Writes whole blocks of rows.
    """
    ldg, ldd, ldx, F = gradient.shape[1], layer["ld"], layer["ld_inputs"], layer["columns"]
    for i in range(first, last, DEPTH):
        depth = min(DEPTH, last - i)
        for panel in range(-(-F // PANEL)):
            x = layer["inputs"] + FLOAT_BYTES * (i * ldx + panel * PANEL)
            wide = F - panel * PANEL > WIDTH
            for r in range(0, n, BLOCK_ROWS):
                d = layer["d_outputs"] + FLOAT_BYTES * (i * ldd + begin + r)
                g = address_of(gradient[r]) + FLOAT_BYTES * panel * PANEL
                if wide:
                    add_by_column(d, ldd, x, ldx, g, ldg, depth)
                else:
                    add_by_column_1(d, ldd, x, ldx, g, ldg, depth)


@helper
def _head_weight_gradient(column, n, first, last, tile_rows, dense, gradient):
    """Rows of the heads' weight gradient (., ld), starting at an output of the heads, over rows first..last.

    Writes whole half blocks of rows.
    """
    ldg, ldz = gradient.shape[1], dense.z.shape[2]
    for i in range(first, last, tile_rows):
        z = address_of(dense.z[i // tile_rows]) + FLOAT_BYTES * column * ldz
        rows, a = min(tile_rows, last - i), dense.features + FLOAT_BYTES * i * dense.ld
        add_weight_gradient(z, ldz, a, dense.ld, rows, n, dense.H, address_of(gradient), ldg)


@helper
def _is_vector(piece):
    return piece["of"] >= FIRST_VECTOR


@helper
def _sums_of(piece, sums):
    """The part of sums (floats,) that holds the gradient of a piece of a weight, (rows, ld)."""
    rows, ld = round_up(piece["rows"], BLOCK_ROWS), round_up(piece["columns"], PANEL) + SKEW
    return sums[: rows * ld].reshape((rows, ld))


@helper
def _add_up_weight(piece, first, last, tile_rows, column_of, dense, sums):
    """Sum the gradient of a piece of a weight over rows first..last. column_of (K,): -1 = not computed, which is 0."""
    gradient = _sums_of(piece, sums)
    for r in range(gradient.shape[0]):
        for c in range(gradient.shape[1]):
            gradient[r, c] = ZERO
    if piece["of"] == LAYER_WEIGHT:
        layer = dense.layers[piece["index"]]
        _layer_weight_gradient(layer, piece["begin"], piece["rows"], first, last, gradient)
    elif column_of[piece["index"]] >= 0:
        column = column_of[piece["index"]] + piece["begin"]
        _head_weight_gradient(column, piece["rows"], first, last, tile_rows, dense, gradient)


@helper
def add_up_dense(p, half, pieces, N, tile_rows, column_of, dense):
    """Sum the gradient of piece p, unless it is a vector, over a half of the tiles."""
    if not _is_vector(pieces[p]):
        middle = min(N, -(-N // tile_rows) // HALVES * tile_rows)
        first, last = (0, middle) if half == 0 else (middle, N)
        _add_up_weight(pieces[p], first, last, tile_rows, column_of, dense, dense.sums[half, p])


# --- updates ------------------------------------------------------------------------------------------------


@helper
def _sum_of_tiles(sums, ld, n_tiles, gradient, n):
    """gradient, n numbers = the sum over all tiles of n of their numbers, which are ld apart."""
    values = numba.carray(pointer_to_float32(sums), ((max(1, n_tiles) - 1) * ld + n,))
    for i in range(n):
        total = ZERO
        for tile in range(n_tiles):
            total += values[tile * ld + i]
        gradient[i] = total


@helper
def _gradient_of_vector(piece, column_of, n_tiles, dense, gradient):
    """The gradient of a bias, or of a norm's weight; column_of (K,): -1 = not computed, which is 0."""
    n = piece["rows"] * piece["columns"]
    if piece["of"] != HEAD_BIAS:
        layer = dense.layers[piece["index"]]
        sums = layer["d_norm_weight"] if piece["of"] == NORM_WEIGHT else layer["d_norm_bias"]
        sums = layer["d_bias"] if piece["of"] == LAYER_BIAS else sums
        _sum_of_tiles(sums, n, n_tiles, gradient, n)
    elif column_of[piece["index"]] >= 0:
        d_bias = dense.d_head_bias
        first = address_of(d_bias) + FLOAT_BYTES * column_of[piece["index"]]
        _sum_of_tiles(first, d_bias.shape[1], n_tiles, gradient, n)
    else:
        for i in range(n):
            gradient[i] = ZERO


@helper
def _sum_halves(piece, sums, more):
    """sums += more, for the gradient of a piece of a weight."""
    gradient, other = _sums_of(piece, sums), _sums_of(piece, more)
    for r in range(piece["rows"]):
        for c in range(piece["columns"]):
            gradient[r, c] += other[r, c]


@helper
def sum_of_squares(values):
    """The sum of the squares of float32 values (n,), in float64: a square may be too large for float32."""
    total = 0.0
    for i in range(len(values)):
        total += np.float64(values[i]) * np.float64(values[i])
    return total


@helper
def square_of_piece(p, pieces, column_of, n_tiles, dense):
    """The sum of the squares of the gradient of piece p."""
    piece, total = pieces[p], 0.0
    if _is_vector(piece):
        vector = np.empty(piece["rows"] * piece["columns"], np.float32)
        _gradient_of_vector(piece, column_of, n_tiles, dense, vector)
        return sum_of_squares(vector)
    gradient, other = _sums_of(piece, dense.sums[0, p]), _sums_of(piece, dense.sums[1, p])
    for r in range(piece["rows"]):
        for c in range(piece["columns"]):
            g = np.float64(gradient[r, c] + other[r, c])
            total += g * g
    return total


@helper
def clip_factor(squares, clip_norm):
    """What torch's clip_grad_norm_ scales gradients by; squares: the sums of the squares of their parts."""
    total = 0.0
    for i in range(len(squares)):
        total += squares[i]
    factor = clip_norm / (np.sqrt(total) + 1e-6)
    return ONE if factor > 1.0 else np.float32(factor)  # NaN stays


@helper
def _scale(factor, gradient, R, C, ldg):
    if factor != ONE:
        for r in range(R):
            for c in range(C):
                gradient[r * ldg + c] *= factor


@helper
def _decay(decay, parameter, gradient, R, C, ldg):
    """Decay a parameter (R, C) as a rule does; gradient (R, ldg)."""
    if decay[1] != ZERO:
        for r in range(R):
            for c in range(C):
                gradient[r * ldg + c] += decay[1] * parameter[r * C + c]
    if decay[0] != ONE:
        for i in range(R * C):
            parameter[i] *= decay[0]


@helper
def numbers_of_whole(rule, counts):
    """Return step and scale of a parameter that is treated as one row; counts (1,), its steps before this one."""
    own = np.zeros(1, np.float32)
    if len(counts):
        own[0] = counts[0]
    return row_numbers(rule, ZERO, own, 0)


@helper
def _add_momentum(decay, address, gradient, R, C, ldg):
    """Add a gradient (R, ldg) to the sum of gradients (R, C) at an address, and let it be what momentum makes of it."""
    sums, momentum = numba.carray(pointer_to_float32(address), (R * C,)), decay[2]
    for r in range(R):
        for c in range(C):
            own = gradient[r * ldg + c]
            total = momentum * sums[r * C + c] + own
            sums[r * C + c] = total
            gradient[r * ldg + c] = own + momentum * total if decay[3] != ZERO else total


@helper
def move_piece(piece, rules, decays, factor, gradient, ldg):
    """Update a piece of a dense parameter by its gradient, an array whose rows are so many numbers apart."""
    R, C, rule = piece["rows"], piece["columns"], rules[piece["rule"]]
    parameter = numba.carray(pointer_to_float32(piece["parameter"]), (R * C,))
    _scale(factor, gradient, R, C, ldg)
    _decay(decays[piece["rule"]], parameter, gradient, R, C, ldg)
    if decays[piece["rule"]][2] != ZERO:
        _add_momentum(decays[piece["rule"]], piece["first"], gradient, R, C, ldg)
    counts = numba.carray(pointer_to_float32(piece["per_row"]), (R if piece["per_row"] else 0,))
    start = address_of(gradient)
    if piece["whole"]:
        step, scale = numbers_of_whole(rule, counts)
    for r in range(R):
        at, offset = start + FLOAT_BYTES * r * ldg, FLOAT_BYTES * r * C
        first = piece["first"] + offset if piece["first"] else 0
        second = piece["second"] + offset if piece["second"] else 0
        if piece["whole"]:
            move_row(rule, piece["parameter"] + offset, at, C, first, second, step, scale)
        else:
            # The state is one number per row, at the row's own address.
            update_row(rule, piece["parameter"] + offset, np.int64(0), at, C, counts[r:], first, second)


@helper
def move_dense(p, pieces, rules, decays, factor, column_of, n_tiles, dense):
    """Update piece p; decays (rules, 4): the numbers of a Decay. factor: of all gradients."""
    piece = pieces[p]
    if _is_vector(piece):
        vector = np.empty(piece["rows"] * piece["columns"], np.float32)
        _gradient_of_vector(piece, column_of, n_tiles, dense, vector)
        move_piece(piece, rules, decays, factor, vector, piece["columns"])
    else:
        _sum_halves(piece, dense.sums[0, p], dense.sums[1, p])
        move_piece(piece, rules, decays, factor, dense.sums[0, p], round_up(piece["columns"], PANEL) + SKEW)

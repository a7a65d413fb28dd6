"""The gradients of a convolution whose outputs have few gradients: below a maximum over time, one of each channel.

d_weight[c] = sum of d[b, c, t] x[b, window of t], d_x[b, window of t] = sum of d[b, c, t] weight[c]: each gradient that
is not 0 costs two runs of numbers, and the others nothing. Arrays: see `windows.py`.
"""

from __future__ import annotations

import numba
import numpy as np

from ...machine.elementary import ZERO
from ...machine.jit import address_of, borrower, helper, pointer_to_float32, pointer_to_int32
from ...machine.simd import FLOAT_BYTES, WIDTH, absolute, load, splat, store, sum_of
from ...machine.team import Kernel, in_parallel
from .windows import Sizes, window

# Of one gradient that is not 0 in this many, products of matrices are about as fast.
FEW = 4
CHANNELS = 8  # of a piece of work
INT_BYTES = 4


@helper
def add_run(scale, source, target, n):
    """target (n,) += scale * source, of addresses."""
    factor, whole = splat(scale), n // WIDTH * WIDTH
    for at in range(0, FLOAT_BYTES * whole, FLOAT_BYTES * WIDTH):
        store(load(target + at) + factor * load(source + at), target + at)
    if whole < n:
        _add_rest(scale, source + FLOAT_BYTES * whole, target + FLOAT_BYTES * whole, n - whole)


@helper
def _add_rest(scale, source, target, n):
    x, y = numba.carray(pointer_to_float32(source), (n,)), numba.carray(pointer_to_float32(target), (n,))
    for i in range(n):
        y[i] += scale * x[i]


@helper
def _find(b, sizes, d_outputs, of_row, of_channel, bounds_bc, places_bn):
    """Find the gradients of a sequence that are not 0: places_bn (most,), and bounds_bc (C + 1,), -1 if there are more."""
    T, most, n = sizes.T, places_bn.shape[1], 0
    bounds, places = bounds_bc[b], places_bn[b]
    whole = T // WIDTH * WIDTH
    bounds[0] = 0
    for c in range(sizes.C):
        row = d_outputs + of_row * b + of_channel * c
        d = numba.carray(pointer_to_float32(row), (T,))
        for t in range(0, T, WIDTH):
            if t < whole and sum_of(absolute(load(row + FLOAT_BYTES * t))) == ZERO:
                continue
            for at in range(t, min(T, t + WIDTH)):
                if d[at] != ZERO:
                    if n == most:
                        bounds[sizes.C] = -1
                        return
                    places[n] = at
                    n += 1
        bounds[c + 1] = n


@helper
def _of_inputs(b, sizes, d_outputs, of_row, of_channel, weight, d_inputs, bounds, places):
    """Compute the gradient of a sequence (L, E)."""
    E, L = sizes.E, sizes.L
    to, of_weight = d_inputs + FLOAT_BYTES * b * L * E, FLOAT_BYTES * sizes.K * E
    for at in range(0, L * E // WIDTH * WIDTH, WIDTH):
        store(splat(ZERO), to + FLOAT_BYTES * at)
    rest = numba.carray(pointer_to_float32(to), (L * E,))
    for at in range(L * E // WIDTH * WIDTH, L * E):
        rest[at] = ZERO
    for c in range(sizes.C):
        d = numba.carray(pointer_to_float32(d_outputs + of_row * b + of_channel * c), (sizes.T,))
        for i in range(bounds[c], bounds[c + 1]):
            first, begin, end = window(sizes, places[i])
            source = weight + of_weight * c + FLOAT_BYTES * begin * E
            add_run(d[places[i]], source, to + FLOAT_BYTES * (first + begin) * E, (end - begin) * E)


@helper
def _of_weights(c, sizes, d_outputs, of_row, of_channel, inputs, d_weight, d_bias, bounds_bc, places_bn):
    """Compute the gradient of a channel's weight (K, E), and of its bias."""
    E, n = sizes.E, sizes.K * sizes.E
    to, total = d_weight + FLOAT_BYTES * c * n, ZERO
    own = numba.carray(pointer_to_float32(to), (n,))
    for at in range(n):
        own[at] = ZERO
    for b in range(sizes.B):
        d = numba.carray(pointer_to_float32(d_outputs + of_row * b + of_channel * c), (sizes.T,))
        for i in range(bounds_bc[b, c], bounds_bc[b, c + 1]):
            first, begin, end = window(sizes, places_bn[b, i])
            scale = d[places_bn[b, i]]
            source = inputs + FLOAT_BYTES * (b * sizes.L + first + begin) * E
            add_run(scale, source, to + FLOAT_BYTES * begin * E, (end - begin) * E)
            total += scale
    numba.carray(pointer_to_float32(d_bias), (sizes.C,))[c] = total


@helper
def _piece(
    piece, sizes, d_outputs, of_row, of_channel, inputs, weight, d_inputs, d_weight, d_bias, bounds_bc, places_bn
):
    sequences = sizes.B if d_inputs else 0
    if piece < sequences:
        _of_inputs(
            piece, sizes, d_outputs, of_row, of_channel, weight, d_inputs, bounds_bc[piece], places_bn[piece]
        )
        return
    first = CHANNELS * (piece - sequences)
    for c in range(first, min(sizes.C, first + CHANNELS)):
        _of_weights(c, sizes, d_outputs, of_row, of_channel, inputs, d_weight, d_bias, bounds_bc, places_bn)


def _few_gradients(
    team, sizes_of, d_outputs, of_row, of_channel, inputs, weight, d_inputs, d_weight, d_bias
):
    """Compute the gradients, unless too many of the outputs' are not 0; return whether it has.

    Addresses of float32: d_outputs (B, C, T), of which rows and channels are of_row and of_channel bytes apart; inputs
    (B, L, E), weight (C, K, E). Written: d_inputs (B, L, E), unless it is 0; d_weight (C, K, E) and d_bias (C,),
    unless d_weight is 0.
    """
    sizes = Sizes(*sizes_of)
    bounds_bc = np.empty((sizes.B, sizes.C + 1), np.int32)
    places_bn = np.empty((sizes.B, sizes.C * sizes.T // FEW), np.int32)
    in_parallel(team, sizes.B, _find, (sizes, d_outputs, of_row, of_channel, bounds_bc, places_bn))
    for b in range(sizes.B):
        if bounds_bc[b, sizes.C] < 0:
            return False
    pieces = (sizes.B if d_inputs else 0) + (-(-sizes.C // CHANNELS) if d_weight else 0)
    in_parallel(team, pieces, _piece, (
        sizes, d_outputs, of_row, of_channel, inputs, weight, d_inputs, d_weight, d_bias, bounds_bc, places_bn,
    ))  # fmt: skip
    return True


few_gradients = Kernel(_few_gradients, beside_torch=True)

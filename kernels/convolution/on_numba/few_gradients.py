"""The gradients of a convolution whose outputs have few gradients: below a maximum over time, one of each channel.

d_weight[c] = sum of d[b, c, t] x[b, window of t], d_x[b, window of t] = sum of d[b, c, t] weight[c]: each gradient that
is not 0 costs two runs of numbers, and the others nothing. The channels of a position lie together, so that a window is
a run. All sums have a fixed order.

Arrays: B sequences, L positions of E channels; T outputs of C channels, each of a window of K positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numba

from ...machine.elementary import ZERO
from ...machine.jit import helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, absolute, load, splat, store, sum_of
from ...machine.team import Kernel, in_parallel

CHANNELS = 16  # of a piece of work


# Kernels are called with plain tuples: to take named ones apart takes longer than some of the work.
class Sizes(NamedTuple):
    """The sizes of a convolution, and how many bytes sequences and channels of its outputs' gradient are apart."""

    B: int
    E: int
    L: int
    C: int
    T: int
    K: int
    stride: int
    padding: int
    of_row: int
    of_channel: int


@helper
def _gradients(sizes, d_outputs, b, c):
    """(T,) the gradients of a channel's outputs."""
    return numba.carray(pointer_to_float32(d_outputs + sizes.of_row * b + sizes.of_channel * c), (sizes.T,))


@helper
def _window(sizes, t):
    """Return where the window of output t begins, and from which to which of its K positions the sequence has."""
    first = t * sizes.stride - sizes.padding
    return first, max(0, -first), min(sizes.K, sizes.L - first)


@helper
def _find_in(b, sizes, d_outputs, bounds_bc, places_bn):
    """Find those of a sequence that are not 0; its last bound is -1 if there is no room for them."""
    T, most, n = sizes.T, places_bn.shape[1], 0
    bounds, places = bounds_bc[b], places_bn[b]
    bounds[0] = 0
    for c in range(sizes.C):
        row, d = d_outputs + sizes.of_row * b + sizes.of_channel * c, _gradients(sizes, d_outputs, b, c)
        for t in range(0, T, WIDTH):
            # The last vector of a row may begin before its turn.
            if T >= WIDTH and sum_of(absolute(load(row + FLOAT_BYTES * min(t, T - WIDTH)))) == ZERO:
                continue
            for at in range(t, min(T, t + WIDTH)):
                if d[at] != ZERO:
                    if n == most:
                        bounds[sizes.C] = -1
                        return
                    places[n] = at
                    n += 1
        bounds[c + 1] = n


def _find(team, sizes_of, d_outputs, bounds_bc, places_bn):
    """Find the gradients that are not 0; return whether there is room for them.

    d_outputs: address of float32 (B, C, T). Written: places_bn (B, most), which outputs of a sequence have one, by
    channel; and bounds_bc (B, C + 1), where those of each channel begin and end.
    """
    sizes = Sizes(*sizes_of)
    _find_in(0, sizes, d_outputs, bounds_bc, places_bn)  # most gradients that are not few show it here
    if bounds_bc[0, sizes.C] < 0:
        return False
    in_parallel(team, sizes.B, _find_in, (sizes, d_outputs, bounds_bc, places_bn))
    return bounds_bc[:, sizes.C].min() >= 0


find = Kernel(_find, beside_torch=True)


@helper
def _fill(address, n):
    """address (n,) = 0."""
    whole = n // WIDTH * WIDTH
    for at in range(0, FLOAT_BYTES * whole, FLOAT_BYTES * WIDTH):
        store(splat(ZERO), address + at)
    rest = numba.carray(pointer_to_float32(address), (n,))
    for i in range(whole, n):
        rest[i] = ZERO


@helper
def _add_run(scale, source, target, n):
    """target (n,) += scale * source (n,), of addresses."""
    factor, whole = splat(scale), n // WIDTH * WIDTH
    for at in range(0, FLOAT_BYTES * whole, FLOAT_BYTES * WIDTH):
        store(load(target + at) + factor * load(source + at), target + at)
    if whole < n:
        x, y = numba.carray(pointer_to_float32(source), (n,)), numba.carray(pointer_to_float32(target), (n,))
        for i in range(whole, n):
            y[i] += scale * x[i]


@helper
def _of_inputs(b, sizes, d_outputs, bounds_bc, places_bn, weight, d_inputs):
    """Compute the gradient of a sequence (L, E)."""
    E, L = sizes.E, sizes.L
    own = d_inputs + FLOAT_BYTES * b * L * E
    _fill(own, L * E)
    for c in range(sizes.C):
        d, of_channel = _gradients(sizes, d_outputs, b, c), weight + FLOAT_BYTES * c * sizes.K * E
        for i in range(bounds_bc[b, c], bounds_bc[b, c + 1]):
            t = places_bn[b, i]
            first, begin, end = _window(sizes, t)
            source, target = of_channel + FLOAT_BYTES * begin * E, own + FLOAT_BYTES * (first + begin) * E
            _add_run(d[t], source, target, (end - begin) * E)


@helper
def _of_weights(c, c_end, sizes, d_outputs, bounds_bc, places_bn, inputs, d_weight, d_bias):
    """Compute the gradients of the weights (K, E) of channels c.. to c_end, and of their biases.

    They take turns in every sequence, which stays in cache meanwhile.
    """
    E, K = sizes.E, sizes.K
    total = numba.carray(pointer_to_float32(d_bias), (sizes.C,))
    _fill(d_weight + FLOAT_BYTES * c * K * E, (c_end - c) * K * E)
    total[c:c_end] = ZERO
    for b in range(sizes.B):
        of_row = inputs + FLOAT_BYTES * b * sizes.L * E
        for channel in range(c, c_end):
            d, own = _gradients(sizes, d_outputs, b, channel), d_weight + FLOAT_BYTES * channel * K * E
            for i in range(bounds_bc[b, channel], bounds_bc[b, channel + 1]):
                t = places_bn[b, i]
                first, begin, end = _window(sizes, t)
                source, target = of_row + FLOAT_BYTES * (first + begin) * E, own + FLOAT_BYTES * begin * E
                _add_run(d[t], source, target, (end - begin) * E)
                total[channel] += d[t]


@helper
def _piece(piece, sizes, d_outputs, bounds_bc, places_bn, inputs, weight, d_inputs, d_weight, d_bias):
    sequences = sizes.B if d_inputs else 0
    if piece < sequences:
        _of_inputs(piece, sizes, d_outputs, bounds_bc, places_bn, weight, d_inputs)
        return
    first = CHANNELS * (piece - sequences)
    last = min(sizes.C, first + CHANNELS)
    _of_weights(first, last, sizes, d_outputs, bounds_bc, places_bn, inputs, d_weight, d_bias)


def _few_gradients(
    team, sizes_of, d_outputs, bounds_bc, places_bn, inputs, weight, d_inputs, d_weight, d_bias
):
    """Compute the gradients from what `_find` has found.

    Addresses of float32: d_outputs (B, C, T), inputs (B, L, E), weight (C, K, E). Written: d_inputs (B, L, E) unless it
    is 0; d_weight (C, K, E) and d_bias (C,) unless they are 0.
    """
    sizes = Sizes(*sizes_of)
    pieces = (sizes.B if d_inputs else 0) + (-(-sizes.C // CHANNELS) if d_weight else 0)
    in_parallel(team, pieces, _piece, (
        sizes, d_outputs, bounds_bc, places_bn, inputs, weight, d_inputs, d_weight, d_bias,
    ))  # fmt: skip


few_gradients = Kernel(_few_gradients, beside_torch=True)

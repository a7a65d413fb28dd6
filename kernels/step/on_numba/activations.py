"""Activations of a layer's outputs on a CPU, forward with bias, LayerNorm and dropout, and backward.

ReLU is known from its outputs. For other activations, and for dropout without one, the forward pass stores slopes: the
derivatives of the outputs by what they were before. Rows are processed in whole vectors.
"""

from __future__ import annotations

import numba

from ...heads.on_numba.stages import round_up, scratch
from ...machine.elementary import HALF, ONE, TWO, ZERO, exp32, f32
from ...machine.jit import address_of, elementwise, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, absolute, load, select, splat, store
from ..stack_model import ACTIVATIONS
from .dropout import draw_factors
from .norms import denormalise, normalise

NONE, RELU, TANH, GELU, GELU_TANH = range(len(ACTIVATIONS))

# tanh(x) = x + x^3 P(x^2) for |x| < 0.625 (Moshier's Cephes).
TANH_BOUND = f32(0.625)
T1, T2, T3 = f32(-3.33332819422e-1), f32(1.33314422036e-1), f32(-5.37397155531e-2)
T4, T5 = f32(2.06390887954e-2), f32(-5.70498872745e-3)
# erfc(y) = t exp(-y^2 + P(t)), t = 1 / (1 + y / 2), within 1.2e-7 of itself (Press et al., Numerical Recipes).
ERFC = tuple(
    f32(value)
    for value in (
        -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223,
        0.17087277,
    )
)  # fmt: skip
P0, P1, P2, P3, P4, P5, P6, P7, P8, P9 = ERFC
ROOT_HALF, NORMAL, CUBE = f32(0.707106781), f32(0.398942280), f32(0.044715)
ROOT_2_OVER_PI, THREE = f32(0.797884561), f32(3)


@elementwise
def tanh32(x):
    """tanh(x)."""
    size = absolute(x)
    square = x * x
    small = x + x * square * (T1 + square * (T2 + square * (T3 + square * (T4 + square * T5))))
    left = exp32(size * -TWO)
    large = (ONE - left) / (ONE + left) * select(x < ZERO, -ONE, ONE)
    return select(size < TANH_BOUND, small, large)


@elementwise
def _tanh(x):
    value = tanh32(x)
    return value, ONE - value * value


@elementwise
def _gelu(x):
    t = ONE / (ONE + absolute(x) * (ROOT_HALF * HALF))
    p = P4 + t * (P5 + t * (P6 + t * (P7 + t * (P8 + t * P9))))
    p = P0 + t * (P1 + t * (P2 + t * (P3 + t * p)))
    bell = exp32(x * x * -HALF)
    tail = t * bell * exp32(p) * HALF
    below = select(x > ZERO, ONE - tail, tail)
    return x * below, below + x * bell * NORMAL


@elementwise
def _gelu_by_tanh(x):
    square = x * x
    inner = tanh32(x * ROOT_2_OVER_PI * (ONE + square * CUBE))
    slope = (ONE - inner * inner) * ROOT_2_OVER_PI * (ONE + square * (CUBE * THREE))
    return x * HALF * (ONE + inner), HALF * (ONE + inner) + x * HALF * slope


@elementwise
def _value_and_slope(activation, x):
    if activation == TANH:
        return _tanh(x)
    if activation == GELU:
        return _gelu(x)
    if activation == GELU_TANH:
        return _gelu_by_tanh(x)
    return x, splat(ONE)


@helper
def activate(n, layer, norms, drop, first, rows, factors, words):
    """Outputs of rows first.., from products with the weight: add the bias, normalise, activate, drop.

    n: the layer's number. norms: records of NORM, one a layer; None if no layer has a LayerNorm.
    factors: zeros at first, for at least the layer's outputs in whole vectors; words: scratch of draw_factors.
    """
    H, ld, activation, drops = layer["rows"], layer["ld"], layer["activation"], drop["threshold"] > 0
    added = layer["padded_bias"]
    if norms is not None and norms[n]["here"]:
        added = norms[n]["zeros"]
    n_bytes, factor = FLOAT_BYTES * round_up(H, WIDTH), address_of(factors)
    for i in range(first, first + rows):
        outputs, slopes = (
            layer["outputs"] + FLOAT_BYTES * i * ld,
            layer["slopes"] + FLOAT_BYTES * i * ld,
        )
        if drops:
            draw_factors(factors[:H], H, drop["key"], i, drop["threshold"], drop["kept"], words)
        if norms is not None and norms[n]["here"]:
            normalise(layer, norms[n], i)
        for at in range(0, n_bytes, FLOAT_BYTES * WIDTH):
            x = load(outputs + at) + load(added + at)
            if activation == RELU:
                x = select(splat(ZERO) >= x, ZERO, x)  # NaN stays NaN
                if drops:
                    x = x * load(factor + at)
            elif activation != NONE or drops:
                x, slope = _value_and_slope(activation, x)
                if drops:
                    x, slope = x * load(factor + at), slope * load(factor + at)
                store(slope, slopes + at)
            store(x, outputs + at)


@helper
def deactivate(n, layer, norms, drop, tile, first, rows):
    """Backward through dropout, activation and LayerNorm: the gradients of rows first.., and their sums for a tile."""
    H, ld, activation, drops = layer["rows"], layer["ld"], layer["activation"], drop["threshold"] > 0
    kept = drop["kept"] if drops else ONE
    sums = scratch(1, round_up(H, WIDTH))
    total, n_bytes = address_of(sums), FLOAT_BYTES * round_up(H, WIDTH)
    for at in range(0, n_bytes, FLOAT_BYTES * WIDTH):
        store(splat(ZERO), total + at)
    for i in range(first, first + rows):
        outputs, slopes, gradients = (
            layer["outputs"] + FLOAT_BYTES * i * ld,
            layer["slopes"] + FLOAT_BYTES * i * ld,
            layer["d_outputs"] + FLOAT_BYTES * i * ld,
        )
        for at in range(0, n_bytes, FLOAT_BYTES * WIDTH):
            d = load(gradients + at)
            if activation == RELU:
                d = select(load(outputs + at) > ZERO, d * kept, ZERO)
            elif activation != NONE or drops:
                d = d * load(slopes + at)
            store(d, gradients + at)
            store(load(total + at) + d, total + at)
        if norms is not None and norms[n]["here"]:
            denormalise(layer, norms[n], tile, i, i == first)
    of_added = layer["d_bias"]
    if norms is not None and norms[n]["here"]:
        of_added = layer["d_norm_bias"]
    _copy(sums, of_added + FLOAT_BYTES * tile * H, H)


@helper
def _copy(sums, d_bias, H):
    """d_bias (H,), an address = the first numbers of sums, which is kept alive here."""
    target = numba.carray(pointer_to_float32(d_bias), (H,))
    for h in range(H):
        target[h] = sums[0, h]

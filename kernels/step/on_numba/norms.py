"""LayerNorm or RMSNorm of a row of a layer, forward and backward, while the row is in cache."""

from __future__ import annotations

import numba
import numpy as np

from ...machine.elementary import ONE, ZERO
from ...machine.jit import helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES


@helper
def normalise(layer, norm, i):
    """Outputs of row i before the activation, from the product with the weight, or from the inputs without a weight.

    The mean is that of differences from the first output, and the variance that of differences from the mean: rows far
    from 0 would lose digits in their sum, and in a difference of mean squares.
    """
    H, at = layer["rows"], FLOAT_BYTES * i * layer["ld"]
    source = layer["outputs"] if layer["weight"] != 0 else layer["inputs"]
    x = numba.carray(pointer_to_float32(source + at), (H,))
    y = numba.carray(pointer_to_float32(layer["outputs"] + at), (H,))
    normed = numba.carray(pointer_to_float32(norm["normed"] + at), (H,))
    added = numba.carray(pointer_to_float32(layer["padded_bias"]), (H,))
    weight = numba.carray(pointer_to_float32(norm["weight"]), (H,))
    bias = numba.carray(pointer_to_float32(norm["bias"]), (H,))
    n, total, squares = np.float32(H), ZERO, ZERO
    first = x[0] + added[0] if norm["centred"] else ZERO
    for h in range(H):
        value = x[h] + added[h] - first
        normed[h] = value
        total += value
    mean = total / n if norm["centred"] else ZERO
    for h in range(H):
        value = normed[h] - mean
        squares += value * value
    scale = ONE / np.sqrt(squares / n + norm["eps"])
    for h in range(H):
        value = (normed[h] - mean) * scale
        normed[h] = value
        y[h] = value * weight[h] + bias[h]
    numba.carray(pointer_to_float32(norm["scales"]), (i + 1,))[i] = scale


@helper
def denormalise(layer, norm, tile, i, is_first):
    """Gradients of what row i was before, in place, and of the weight and of the layer's bias, summed over a tile.

    is_first: whether it is the first row of its tile.
    """
    H, at, of_tile = layer["rows"], FLOAT_BYTES * i * layer["ld"], FLOAT_BYTES * tile * layer["rows"]
    d = numba.carray(pointer_to_float32(layer["d_outputs"] + at), (H,))
    normed = numba.carray(pointer_to_float32(norm["normed"] + at), (H,))
    weight = numba.carray(pointer_to_float32(norm["weight"]), (H,))
    d_weight = numba.carray(pointer_to_float32(layer["d_norm_weight"] + of_tile), (H,))
    d_bias = numba.carray(pointer_to_float32(layer["d_bias"] + of_tile), (H,))
    n, of_sum, of_product = np.float32(H), ZERO, ZERO
    if is_first:
        for h in range(H):
            d_weight[h], d_bias[h] = ZERO, ZERO
    for h in range(H):
        value = d[h] * weight[h]
        d_weight[h] += d[h] * normed[h]
        of_sum += value
        of_product += value * normed[h]
    scale = numba.carray(pointer_to_float32(norm["scales"]), (i + 1,))[i]
    of_sum, of_product = of_sum / n if norm["centred"] else ZERO, of_product / n
    for h in range(H):
        value = (d[h] * weight[h] - of_sum - normed[h] * of_product) * scale
        d[h] = value
        d_bias[h] += value

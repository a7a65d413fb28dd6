"""BatchNorm of a layer, forward and backward: over a tile of rows, and between the passes over all tiles.

A tile has the mean of its rows, and the sum of their squared differences from it; those of all tiles are combined in
the order of the tiles, in float64: the same bits on any number of threads, and no digits lost in a difference of mean
squares. The bias of the layer's product is not added where the batch's mean is subtracted: it would only cancel.
"""

from __future__ import annotations

import numba
import numpy as np

from ...heads.on_numba.stages import round_up
from ...machine.elementary import ONE, ZERO
from ...machine.jit import helper, pointer_to_float32, pointer_to_int64
from ...machine.simd import FLOAT_BYTES, WIDTH, load, splat, store

VECTOR_BYTES = FLOAT_BYTES * WIDTH

# --- forward ------------------------------------------------------------------------------------------------


@helper
def _source(layer):
    return layer["outputs"] if layer["weight"] != 0 else layer["inputs"]


@helper
def measure(layer, norm, tile, first, rows):
    """Means and squares of the rows of a tile, of the layer's products, or of its inputs without a weight.

    The means are of differences from the first row, which keep the digits of columns whose mean is far from 0.
    """
    n_bytes, row_bytes = FLOAT_BYTES * round_up(layer["rows"], WIDTH), FLOAT_BYTES * layer["ld"]
    start, n = _source(layer) + row_bytes * first, np.float32(rows)
    for at in range(0, n_bytes, VECTOR_BYTES):
        one, total = load(start + at), splat(ZERO)
        for i in range(1, rows):
            total = total + (load(start + row_bytes * i + at) - one)
        mean, squares = total / n, splat(ZERO)
        for i in range(rows):
            value = (load(start + row_bytes * i + at) - one) - mean
            squares = squares + value * value
        store(mean, norm["means"] + n_bytes * tile + at)
        store(squares, norm["squares"] + n_bytes * tile + at)


@helper
def standardise(layer, norm, i):
    """Outputs of row i before bias and activation."""
    at_row = FLOAT_BYTES * i * layer["ld"]
    source, normed, outputs = _source(layer) + at_row, norm["normed"] + at_row, layer["outputs"] + at_row
    for at in range(0, FLOAT_BYTES * round_up(layer["rows"], WIDTH), VECTOR_BYTES):
        value = (load(source + at) - load(norm["centre"] + at)) - load(norm["centre_rest"] + at)
        value = value * load(norm["scale"] + at)
        store(value, normed + at)
        store(value * load(norm["gain"] + at), outputs + at)


# --- backward -----------------------------------------------------------------------------------------------


@helper
def sum_products(layer, norm, first, rows, sums):
    """sums, an address = the sum over a tile of the gradients of outputs times what they were before the weight."""
    row_bytes = FLOAT_BYTES * layer["ld"]
    gradients, normed = layer["d_outputs"] + row_bytes * first, norm["normed"] + row_bytes * first
    for at in range(0, FLOAT_BYTES * round_up(layer["rows"], WIDTH), VECTOR_BYTES):
        total = splat(ZERO)
        for i in range(rows):
            total = total + load(gradients + row_bytes * i + at) * load(normed + row_bytes * i + at)
        store(total, sums + at)


@helper
def differentiate(layer, norm, first, rows, sums):
    """Gradients of what a tile's rows were before the norm, in place; sums, an address = their sums.

    d_mean and d_product are 0 for running statistics, which do not depend on the rows.
    """
    row_bytes = FLOAT_BYTES * layer["ld"]
    gradients, normed = layer["d_outputs"] + row_bytes * first, norm["normed"] + row_bytes * first
    for at in range(0, FLOAT_BYTES * round_up(layer["rows"], WIDTH), VECTOR_BYTES):
        mean, product, total = load(norm["d_mean"] + at), load(norm["d_product"] + at), splat(ZERO)
        factor = load(norm["scale"] + at) * load(norm["gain"] + at)
        for i in range(rows):
            d = load(gradients + row_bytes * i + at) - mean
            d = (d - load(normed + row_bytes * i + at) * product) * factor
            store(d, gradients + row_bytes * i + at)
            total = total + d
        store(total, sums + at)


# --- between the passes -------------------------------------------------------------------------------------


@helper
def begin_norms(layers, norms):
    """Weights and biases for this step, and the statistics of norms that do not take the batch's."""
    for n in range(len(layers)):
        norm, H = norms[n], layers[n]["rows"]
        if norm["here"] == 0:
            continue
        gain = numba.carray(pointer_to_float32(norm["gain"]), (H,))
        shift = numba.carray(pointer_to_float32(norm["shift"]), (H,))
        weight = numba.carray(pointer_to_float32(norm["weight"]), (H if norm["weight"] else 0,))
        bias = numba.carray(pointer_to_float32(norm["bias"]), (H if norm["bias"] else 0,))
        for h in range(H):
            gain[h] = weight[h] if norm["weight"] else ONE
            shift[h] = bias[h] if norm["bias"] else ZERO
        if norm["of_batch"] == 0:
            _take_running(layers[n], norm, H)


@helper
def _take_running(layer, norm, H):
    scale = numba.carray(pointer_to_float32(norm["scale"]), (H,))
    mean = numba.carray(pointer_to_float32(norm["running_mean"]), (H,))
    variance = numba.carray(pointer_to_float32(norm["running_variance"]), (H,))
    bias = numba.carray(pointer_to_float32(layer["bias"]), (H if layer["bias"] else 0,))
    for h in range(H):
        own = np.float64(mean[h]) - np.float64(bias[h]) if layer["bias"] else np.float64(mean[h])
        _set_centre(norm, h, own)
        scale[h] = 1.0 / np.sqrt(np.float64(variance[h]) + norm["eps"])


@helper
def _set_centre(norm, h, mean):
    """The mean of a column as the sum of two numbers: of one alone, columns far from 0 would lose digits."""
    centre = numba.carray(pointer_to_float32(norm["centre"]), (h + 1,))
    rest = numba.carray(pointer_to_float32(norm["centre_rest"]), (h + 1,))
    centre[h] = mean
    rest[h] = mean - np.float64(centre[h])


@helper
def combine(layer, norm, N, n_tiles, tile_rows, tracks):
    """The statistics of all N rows, from those of the tiles; the running ones follow them if tracks is 1."""
    H = layer["rows"]
    ld = round_up(H, WIDTH)
    means = numba.carray(pointer_to_float32(norm["means"]), (n_tiles, ld))
    squares = numba.carray(pointer_to_float32(norm["squares"]), (n_tiles, ld))
    x = numba.carray(pointer_to_float32(_source(layer)), (N, layer["ld"]))
    scale = numba.carray(pointer_to_float32(norm["scale"]), (H,))
    mean, spread, n = np.zeros(H), np.zeros(H), np.float64(N)
    for tile in range(n_tiles):
        first = tile * tile_rows
        share = np.float64(min(tile_rows, N - first)) / n
        for h in range(H):
            mean[h] += share * (np.float64(x[first, h]) + np.float64(means[tile, h]))
    for tile in range(n_tiles):
        first = tile * tile_rows
        rows = np.float64(min(tile_rows, N - first))
        for h in range(H):
            apart = np.float64(x[first, h]) + np.float64(means[tile, h]) - mean[h]
            spread[h] += np.float64(squares[tile, h]) + rows * apart * apart
    for h in range(H):
        _set_centre(norm, h, mean[h])
        scale[h] = 1.0 / np.sqrt(spread[h] / n + norm["eps"])
    if tracks and norm["running_mean"]:
        _follow(layer, norm, mean, spread, n)


@helper
def _follow(layer, norm, mean, spread, n):
    """Move the running statistics towards those of a batch of n rows."""
    H, share = len(mean), norm["momentum"]
    if norm["batches"]:
        batches = numba.carray(pointer_to_int64(norm["batches"]), (1,))
        batches[0] += 1
        if share < 0.0:
            share = 1.0 / np.float64(batches[0])
    running_mean = numba.carray(pointer_to_float32(norm["running_mean"]), (H,))
    running_variance = numba.carray(pointer_to_float32(norm["running_variance"]), (H,))
    bias = numba.carray(pointer_to_float32(layer["bias"]), (H if layer["bias"] else 0,))
    for h in range(H):
        own = mean[h] + np.float64(bias[h]) if layer["bias"] else mean[h]
        running_mean[h] = share * own + (1.0 - share) * np.float64(running_mean[h])
        running_variance[h] = share * (spread[h] / (n - 1.0)) + (1.0 - share) * np.float64(
            running_variance[h]
        )


@helper
def combine_gradients(layer, norm, N, n_tiles):
    """d_mean and d_product of all N rows, from the sums of the tiles."""
    H = layer["rows"]
    _mean_of_tiles(layer["d_norm_bias"], norm["d_mean"], H, N, n_tiles)
    _mean_of_tiles(layer["d_norm_weight"], norm["d_product"], H, N, n_tiles)


@helper
def _mean_of_tiles(sums, means, H, N, n_tiles):
    of_tiles = numba.carray(pointer_to_float32(sums), (n_tiles, H))
    of_all = numba.carray(pointer_to_float32(means), (H,))
    total = np.zeros(H)
    for tile in range(n_tiles):
        for h in range(H):
            total[h] += np.float64(of_tiles[tile, h])
    for h in range(H):
        of_all[h] = total[h] / np.float64(N)

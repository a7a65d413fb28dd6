"""The tile plan on a CPU: one kernel makes logits, losses and all gradients of a tile of rows while it is in cache.

A thread takes every tile of its range through four stages: logits of all heads, transposed into z (S, rows);
the loss pass, which turns z into its gradient; the tile's share of the weight gradient, summed in the
thread's own (S, D); and the tile's feature gradient, written once. The threads' sums are added in the order
of threads, so the same call gives the same bits.
"""

from __future__ import annotations

import numba
import numpy as np

from .numba_jit import Kernel, helper, pointer_to_float32, pointer_to_int64
from .numba_loss_pass import FLOAT_BYTES, LANES, SOFTMAX, elementwise_tile, softmax_tile, two_class_tile
from .numba_gemm import (
    BLOCK_ROWS,
    HALF_ROWS,
    PANEL,
    add_by_row,
    add_by_row_1,
    add_half_by_row,
    add_half_by_row_1,
    copy_floats,
    multiply_by_column,
    multiply_by_column_1,
    multiply_by_row,
    multiply_by_row_1,
    transpose_block,
)
from .numba_simd import WIDTH

LINE = 16  # float32 numbers in a cache line
# A row of scratch is a line longer than a power of two: its columns would fall into the same cache sets.
SKEW = LINE


@helper
def _scratch(rows, columns):
    """(rows, columns) float32, unset, from the start of a cache line on."""
    buffer = np.empty(rows * columns + LINE, np.float32)
    first = -(buffer.ctypes.data // FLOAT_BYTES) % LINE
    return buffer[first : first + rows * columns].reshape((rows, columns))


@helper
def _round_up(n, step):
    return -(-n // step) * step


@helper
def _pack_for_logits(weight, D, heads, columns):
    """The heads' rows of weight (S, D) as panels of PANEL outputs, (panels * D, PANEL), zero behind S."""
    S = columns[-1]
    n_panels = -(-S // PANEL)
    packed = _scratch(n_panels * D, PANEL)
    packed[(n_panels - 1) * D :] = 0.0
    for k in range(len(heads)):
        for c in range(heads[k]["size"]):
            panel, lane = divmod(columns[k] + c, PANEL)
            row = (heads[k]["offset"] + c) * D
            for d in range(D):
                packed[panel * D + d, lane] = weight[row + d]
    return packed


@helper
def _pack_for_features(weight, D, heads, columns):
    """The heads' rows of weight (S, D) as panels of PANEL features, (panels * S, PANEL), zero behind D."""
    S = columns[-1]
    n_panels = -(-D // PANEL)
    packed = _scratch(n_panels * S, PANEL)
    packed[(n_panels - 1) * S :] = 0.0
    for k in range(len(heads)):
        for c in range(heads[k]["size"]):
            s = columns[k] + c
            row = (heads[k]["offset"] + c) * D
            for panel in range(n_panels):
                for d in range(min(PANEL, D - panel * PANEL)):
                    packed[panel * S + s, d] = weight[row + panel * PANEL + d]
    return packed


@helper
def _load_tile(h, features, D, row_ids, first, rows):
    """Rows of features, those of row_ids if there are any, into h (tile rows, ld), zero behind D and rows."""
    source, target = features.ctypes.data, h.ctypes.data
    for i in range(rows):
        row = row_ids[first + i] if len(row_ids) else first + i
        copy_floats(source + FLOAT_BYTES * row * D, target + FLOAT_BYTES * i * h.shape[1], D)
    for i in range(rows, _round_up(rows, WIDTH)):
        h[i, :] = 0.0


@helper
def _logits(h, ldh, rows, D, S, weight_panels, product, z, ldz):
    """z (S, rows) = W h^T: blocks of WIDTH rows are multiplied row-major and transposed on their way."""
    ldp = PANEL
    for panel in range(-(-S // PANEL)):
        b = weight_panels + FLOAT_BYTES * panel * D * PANEL
        wide = S - panel * PANEL > WIDTH
        for i in range(0, rows, WIDTH):
            for j in range(0, WIDTH, BLOCK_ROWS):
                a = h + FLOAT_BYTES * (i + j) * ldh
                c = product + FLOAT_BYTES * j * ldp
                if wide:
                    multiply_by_row(a, ldh, b, PANEL, c, ldp, D)
                else:
                    multiply_by_row_1(a, ldh, b, PANEL, c, ldp, D)
            target = z + FLOAT_BYTES * (panel * PANEL * ldz + i)
            transpose_block(product, ldp, target, ldz)
            if wide:
                transpose_block(product + FLOAT_BYTES * WIDTH, ldp, target + FLOAT_BYTES * WIDTH * ldz, ldz)


@helper
def _add_weight_gradient(z, ldz, h, ldh, rows, S, D, d_weight, ldw):
    """d_weight (S, D) += z h."""
    for d in range(0, D, PANEL):
        wide = D - d > WIDTH
        b = h + FLOAT_BYTES * d
        s = 0
        while s < S:
            a = z + FLOAT_BYTES * s * ldz
            c = d_weight + FLOAT_BYTES * (s * ldw + d)
            if S - s > HALF_ROWS:
                if wide:
                    add_by_row(a, ldz, b, ldh, c, ldw, rows)
                else:
                    add_by_row_1(a, ldz, b, ldh, c, ldw, rows)
                s += BLOCK_ROWS
            else:
                if wide:
                    add_half_by_row(a, ldz, b, ldh, c, ldw, rows)
                else:
                    add_half_by_row_1(a, ldz, b, ldh, c, ldw, rows)
                s += HALF_ROWS


@helper
def _feature_gradient(z, ldz, rows, S, D, weight_panels, d_features, ldf):
    """d_features (rows, D) = z^T W; writes whole blocks of rows and vectors of columns."""
    for panel in range(-(-D // PANEL)):
        b = weight_panels + FLOAT_BYTES * panel * S * PANEL
        wide = D - panel * PANEL > WIDTH
        for i in range(0, rows, BLOCK_ROWS):
            a = z + FLOAT_BYTES * i
            c = d_features + FLOAT_BYTES * (i * ldf + panel * PANEL)
            if wide:
                multiply_by_column(a, ldz, b, PANEL, c, ldf, S)
            else:
                multiply_by_column_1(a, ldz, b, PANEL, c, ldf, S)


@helper
def _store_tile(h, d_features, D, row_ids, first, rows, add):
    """Write h's feature gradients to their rows, or add them."""
    for i in range(rows):
        row = row_ids[first + i] if len(row_ids) else first + i
        if add:
            d_features[row * D : (row + 1) * D] += h[i, :D]
        else:
            target = d_features.ctypes.data + FLOAT_BYTES * row * D
            copy_floats(h.ctypes.data + FLOAT_BYTES * i * h.shape[1], target, D)


@helper
def _classes_of(target, total_rows, row_ids, first, rows, gathered):
    """The tile's class targets (rows,)."""
    y = numba.carray(pointer_to_int64(target), (total_rows,))
    if len(row_ids) == 0:
        return y[first : first + rows]
    for i in range(rows):
        gathered[i] = y[row_ids[first + i]]
    return gathered[:rows]


@helper
def _values_of(target, C, total_rows, row_ids, first, rows):
    """The tile's float targets (rows, C)."""
    y = numba.carray(pointer_to_float32(target), (total_rows, C))
    if len(row_ids) == 0:
        return y[first : first + rows]
    gathered = np.empty((rows, C), np.float32)
    for i in range(rows):
        gathered[i] = y[row_ids[first + i]]
    return gathered


@helper
def _loss_tile(
    z, bias, heads, columns, column_weights, targets, total_rows, row_ids, first, rows, scale, need_gradient,
    loss_k, correct_k, bias_gradient_s, tile_bias_gradient, gathered, lanes,
):  # fmt: skip
    """Turn z (S, rows) into its gradient; add the tile's losses, hits and bias gradient."""
    ldz = z.shape[1]
    for k in range(len(heads)):
        head = heads[k]
        C, a, first_column = head["size"], head["offset"], columns[k]
        z_c = z.ctypes.data + FLOAT_BYTES * first_column * ldz
        bias_c, weights_c = bias[a : a + C], column_weights[a : a + C]
        gradient_c = tile_bias_gradient[:C]
        if head["kind"] == SOFTMAX:
            y = _classes_of(targets[k], total_rows, row_ids, first, rows, gathered)
            if C == 2:
                loss, hits = two_class_tile(
                    z_c, ldz, rows, bias_c, y, head, weights_c, need_gradient, scale[k], gradient_c, lanes
                )
            else:
                loss, hits = softmax_tile(
                    z_c, ldz, C, rows, bias_c, y, head, weights_c, need_gradient, scale[k], gradient_c, lanes
                )
        else:
            values = _values_of(targets[k], C, total_rows, row_ids, first, rows)
            loss, hits = elementwise_tile(
                z_c, ldz, C, rows, bias_c, values, head, weights_c, need_gradient, scale[k], gradient_c, lanes
            )
        loss_k[k] += loss
        correct_k[k] += hits
        for c in range(C):
            bias_gradient_s[first_column + c] += gradient_c[c]


@helper
def _run_split(
    features, D, row_ids, first_row, last_row, total_rows, for_logits, for_features, bias, heads, columns,
    column_weights, targets, scale, tile_rows, need_gradient, d_features, add, d_weight, loss_k, correct_k,
    bias_gradient_s,
):  # fmt: skip
    """Rows first_row..last_row, tile by tile, by one thread."""
    S = columns[-1]
    h = _scratch(_round_up(tile_rows, WIDTH), _round_up(D, WIDTH) + SKEW)
    z = _scratch(_round_up(S, PANEL), _round_up(tile_rows, WIDTH) + SKEW)
    product = _scratch(WIDTH, PANEL)
    ldh, ldz = h.shape[1], z.shape[1]
    h_address, z_address = h.ctypes.data, z.ctypes.data
    lanes = _scratch(LANES, _round_up(tile_rows, WIDTH))
    gathered = np.empty(tile_rows, np.int64)
    tile_bias_gradient = np.zeros(S, np.float32)
    h[:, D:] = 0.0
    for first in range(first_row, last_row, tile_rows):
        rows = min(tile_rows, last_row - first)
        _load_tile(h, features, D, row_ids, first, rows)
        _logits(h_address, ldh, rows, D, S, for_logits.ctypes.data, product.ctypes.data, z_address, ldz)
        _loss_tile(
            z, bias, heads, columns, column_weights, targets, total_rows, row_ids, first, rows, scale,
            need_gradient, loss_k, correct_k, bias_gradient_s, tile_bias_gradient, gathered, lanes,
        )  # fmt: skip
        if len(d_weight):
            _add_weight_gradient(
                z_address, ldz, h_address, ldh, rows, S, D, d_weight.ctypes.data, d_weight.shape[1]
            )
        if len(d_features):
            whole = rows % BLOCK_ROWS == 0 and D % WIDTH == 0 and len(row_ids) == 0 and not add
            if whole:
                target = d_features.ctypes.data + FLOAT_BYTES * first * D
                _feature_gradient(z_address, ldz, rows, S, D, for_features.ctypes.data, target, D)
            else:
                # The features of the tile are used up: their gradient takes their place on its way.
                _feature_gradient(z_address, ldz, rows, S, D, for_features.ctypes.data, h_address, ldh)
                _store_tile(h, d_features, D, row_ids, first, rows, add)


def _tile_pass(
    features, D, row_ids, n_rows, total_rows, weight, bias, heads, column_weights, targets, scale, tile_rows,
    n_splits, need_gradient, d_features, add, d_weight, d_bias,
):  # fmt: skip
    """Losses (K,) summed over the rows, correct (K,); d_features, d_weight and d_bias where not empty.

    features (total_rows * D,) and weight (S * D,) are flat; heads are those to compute, their offsets rows of
    weight. row_ids (n_rows,) are the rows to compute, empty = all. d_features is written, or added to with
    `add`; d_weight (S * D,) and d_bias (S,) are written in the heads' rows.
    """
    K = len(heads)
    columns = np.zeros(K + 1, np.int64)
    for k in range(K):
        columns[k + 1] = columns[k] + heads[k]["size"]
    S = columns[K]
    for_logits = _pack_for_logits(weight, D, heads, columns)
    for_features = _pack_for_features(weight, D, heads, columns) if len(d_features) else for_logits
    loss_pk = np.zeros((n_splits, K))
    correct_pk = np.zeros((n_splits, K), np.int64)
    bias_gradient_ps = np.zeros((n_splits, S), np.float32)
    S_blocks = _round_up(S, BLOCK_ROWS)
    ldw = _round_up(D, WIDTH) + SKEW
    d_weight_ps = _scratch(n_splits * S_blocks if len(d_weight) else 0, ldw)
    n_tiles = -(-n_rows // tile_rows)
    for p in numba.prange(n_splits):
        d_weight_s = d_weight_ps[p * S_blocks : (p + 1) * S_blocks] if len(d_weight) else d_weight_ps
        d_weight_s[:] = 0.0
        _run_split(
            features, D, row_ids, p * n_tiles // n_splits * tile_rows,
            min(n_rows, (p + 1) * n_tiles // n_splits * tile_rows), total_rows, for_logits, for_features, bias, heads,
            columns, column_weights, targets, scale, tile_rows, need_gradient, d_features, add, d_weight_s,
            loss_pk[p], correct_pk[p], bias_gradient_ps[p],
        )  # fmt: skip
    for k in range(K):
        for c in range(heads[k]["size"]):
            row, s = heads[k]["offset"] + c, columns[k] + c
            if len(d_bias):
                d_bias[row] = 0.0
                for p in range(n_splits):
                    d_bias[row] += bias_gradient_ps[p, s]
            if len(d_weight):
                for d in range(D):
                    total = d_weight_ps[s, d]
                    for p in range(1, n_splits):
                        total += d_weight_ps[p * S_blocks + s, d]
                    d_weight[row * D + d] = total
    return loss_pk.sum(axis=0), correct_pk.sum(axis=0)


tile_pass = Kernel(_tile_pass)

"""The stages of a tile on a CPU: load rows into cache, logits, both gradients, store rows.

h (rows, D) holds features; z (S, rows) holds transposed logits, then their gradients. Each stage passes data to the
next in scratch memory with room for whole vectors and blocks, so no stage has a remainder loop. Arguments for that
memory are addresses, with strides in float32 numbers. An address does not keep its array alive: Numba frees an array
after the last use of its name.
"""

from __future__ import annotations

import numba
import numpy as np

from ...machine.gemm import (
    BLOCK_ROWS,
    HALF_ROWS,
    PANEL,
    add_by_column,
    add_by_column_1,
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
from ...machine.jit import helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH

ZERO = np.float32(0)
LINE = 16  # float32 numbers in a cache line
# Longer sums of products are split: parts stay in cache, and short sums lose less to rounding.
DEPTH = 256
OUTPUTS = 64  # rows of the weight gradient that are finished before the next ones begin
# Scratch rows are padded by a line: at a power-of-two stride, columns would map to the same cache sets.
SKEW = LINE


@helper
def scratch(rows, columns):
    """Allocate (rows, columns) float32, uninitialized, aligned to a cache line."""
    buffer = np.empty(rows * columns + LINE, np.float32)
    first = -(buffer.ctypes.data // FLOAT_BYTES) % LINE
    return buffer[first : first + rows * columns].reshape((rows, columns))


@helper
def round_up(n, step):
    return -(-n // step) * step


@helper
def tile_buffers(rows, D, S):
    """Allocate a tile's scratch: (h for its rows, z for its logits, product for the stage `logits`).

    H is zero past D.
    """
    h = scratch(round_up(rows, WIDTH), round_up(D, WIDTH) + SKEW)
    z = scratch(round_up(S, PANEL), round_up(rows, WIDTH) + SKEW)
    h[:, D:] = ZERO
    return h, z, scratch(WIDTH, PANEL)


@helper
def pack_for_logits(weight, first, n_outputs, packed):
    """Pack rows first.. of weight (S, D) as one panel: packed (D * PANEL,), zero past n_outputs."""
    D = weight.shape[1]
    source, target = weight[first].ctypes.data, packed.ctypes.data
    for lane in range(0, PANEL, WIDTH):
        blocked = D // WIDTH * WIDTH if lane + WIDTH <= n_outputs else 0
        for d in range(0, blocked, WIDTH):
            transpose_block(
                source + FLOAT_BYTES * (lane * D + d), D, target + FLOAT_BYTES * (d * PANEL + lane), PANEL
            )
        for c in range(lane, lane + WIDTH):
            for d in range(blocked, D):
                packed[d * PANEL + c] = weight[first + c, d] if c < n_outputs else ZERO


@helper
def pack_for_features(weight, first, n_outputs, packed):
    """Pack rows first.. of weight (S, D) by PANEL features: packed (panels, n_outputs, PANEL), zero past D."""
    floats = n_outputs * PANEL
    for panel in range(-(-weight.shape[1] // PANEL)):
        pack_feature_panel(weight, first, n_outputs, panel, packed[panel * floats : (panel + 1) * floats])


@helper
def pack_feature_panel(weight, first, n_outputs, panel, packed):
    """Pack one panel of PANEL features: packed (n_outputs * PANEL,)."""
    D = weight.shape[1]
    source, target = weight[first].ctypes.data, packed.ctypes.data
    width = min(PANEL, D - panel * PANEL)
    for c in range(n_outputs):
        at = c * PANEL
        copy_floats(source + FLOAT_BYTES * (c * D + panel * PANEL), target + FLOAT_BYTES * at, width)
        for d in range(width, PANEL):
            packed[at + d] = ZERO


@helper
def load_rows(h, features, D, row_ids, first, rows):
    """Load rows of features (those in row_ids, if any) into h (rows, ld); zero up to a whole vector of rows."""
    target = h.ctypes.data
    for i in range(rows):
        row = row_ids[first + i] if len(row_ids) else first + i
        copy_floats(features + FLOAT_BYTES * row * D, target + FLOAT_BYTES * i * h.shape[1], D)
    for i in range(rows, round_up(rows, WIDTH)):
        h[i, :] = 0.0


@helper
def logits(h, ldh, rows, D, S, weight_panels, product, z, ldz):
    """z (S, rows) = W h^T: blocks of WIDTH rows are multiplied row-major, then transposed."""
    ldp = PANEL
    for panel in range(-(-S // PANEL)):
        b = weight_panels + FLOAT_BYTES * panel * D * PANEL
        wide = S - panel * PANEL > WIDTH
        for i in range(0, rows, WIDTH):
            for j in range(0, WIDTH, BLOCK_ROWS):
                a = h + FLOAT_BYTES * (i + j) * ldh
                c = product + FLOAT_BYTES * j * ldp
                depth = min(D, DEPTH)
                if wide:
                    multiply_by_row(a, ldh, b, PANEL, c, ldp, depth)
                else:
                    multiply_by_row_1(a, ldh, b, PANEL, c, ldp, depth)
                for d in range(DEPTH, D, DEPTH):
                    depth = min(D - d, DEPTH)
                    a_d, b_d = a + FLOAT_BYTES * d, b + FLOAT_BYTES * d * PANEL
                    if wide:
                        add_by_row(a_d, ldh, b_d, PANEL, c, ldp, depth)
                    else:
                        add_by_row_1(a_d, ldh, b_d, PANEL, c, ldp, depth)
            target = z + FLOAT_BYTES * (panel * PANEL * ldz + i)
            transpose_block(product, ldp, target, ldz)
            if wide:
                transpose_block(product + FLOAT_BYTES * WIDTH, ldp, target + FLOAT_BYTES * WIDTH * ldz, ldz)


@helper
def multiply_panels(a, lda, rows, depth, panels, panel_floats, n, c, ldc):
    """c (rows, n) = a (rows, depth) times packed column panels (depth, PANEL), which are panel_floats apart.

    Computes whole blocks of rows and whole vectors of columns.
    """
    for panel in range(-(-n // PANEL)):
        wide = n - panel * PANEL > WIDTH
        for k in range(0, depth, DEPTH):
            part = min(DEPTH, depth - k)
            packed = panels + FLOAT_BYTES * (panel * panel_floats + k * PANEL)
            for i in range(0, rows, BLOCK_ROWS):
                a_i = a + FLOAT_BYTES * (i * lda + k)
                c_i = c + FLOAT_BYTES * (i * ldc + panel * PANEL)
                if k == 0:
                    if wide:
                        multiply_by_row(a_i, lda, packed, PANEL, c_i, ldc, part)
                    else:
                        multiply_by_row_1(a_i, lda, packed, PANEL, c_i, ldc, part)
                elif wide:
                    add_by_row(a_i, lda, packed, PANEL, c_i, ldc, part)
                else:
                    add_by_row_1(a_i, lda, packed, PANEL, c_i, ldc, part)


@helper
def add_weight_gradient(z, ldz, h, ldh, rows, S, D, d_weight, ldw):
    """d_weight (S, D) += z h; writes whole half blocks of rows and whole vectors of columns."""
    for first in range(0, S, OUTPUTS):
        last = min(S, first + OUTPUTS)
        for d in range(0, D, PANEL):
            wide = D - d > WIDTH
            b = h + FLOAT_BYTES * d
            s = first
            while s < last:
                a = z + FLOAT_BYTES * s * ldz
                c = d_weight + FLOAT_BYTES * (s * ldw + d)
                if last - s > HALF_ROWS:
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
def feature_gradient(z, ldz, rows, S, D, weight_panels, d_features, ldf, add):
    """d_features (rows, D) = or += z^T W; writes whole blocks of rows and whole vectors of columns."""
    for s in range(0, S, DEPTH):
        depth = min(S - s, DEPTH)
        for panel in range(-(-D // PANEL)):
            b = weight_panels + FLOAT_BYTES * (panel * S + s) * PANEL
            wide = D - panel * PANEL > WIDTH
            for i in range(0, rows, BLOCK_ROWS):
                a = z + FLOAT_BYTES * (s * ldz + i)
                c = d_features + FLOAT_BYTES * (i * ldf + panel * PANEL)
                if s == 0 and not add:
                    if wide:
                        multiply_by_column(a, ldz, b, PANEL, c, ldf, depth)
                    else:
                        multiply_by_column_1(a, ldz, b, PANEL, c, ldf, depth)
                elif wide:
                    add_by_column(a, ldz, b, PANEL, c, ldf, depth)
                else:
                    add_by_column_1(a, ldz, b, PANEL, c, ldf, depth)


@helper
def store_rows(h, d_features, D, row_ids, first, rows, add):
    """Write h's feature gradients to their rows of d_features, or add them."""
    for i in range(rows):
        row = row_ids[first + i] if len(row_ids) else first + i
        target = d_features + FLOAT_BYTES * row * D
        if add:
            gradient = numba.carray(pointer_to_float32(target), (D,))
            gradient += h[i, :D]
        else:
            copy_floats(h.ctypes.data + FLOAT_BYTES * i * h.shape[1], target, D)

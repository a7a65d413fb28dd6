"""Rows of float32 tables on a CPU, in whole vectors: weighted sums, dot products, copies."""

from __future__ import annotations

import numpy as np

from ...machine.gemm import weighted_rows
from ...machine.jit import borrower
from ...machine.simd import FLOAT_BYTES, WIDTH, load, splat, store, sum_of

ZERO = np.float32(0)
# Sums of up to this many vectors stay in registers over all rows.
VECTORS = 8
_combine, _add_combined = weighted_rows(VECTORS, accumulate=False), weighted_rows(VECTORS, accumulate=True)


@borrower
def combine(a, lda, b, ldb, c, width, depth):
    """c (width,) = sum_k a[k lda] b[k]: a weighted sum of rows of b; width is in whole vectors, depth >= 1."""
    for d in range(0, width, VECTORS * WIDTH):
        n = min(VECTORS, (width - d) // WIDTH)
        _combine(a, lda, b + FLOAT_BYTES * d, ldb, c + FLOAT_BYTES * d, n, depth)


@borrower
def add_combined(a, lda, b, ldb, c, width, depth):
    """c (width,) += sum_k a[k lda] b[k]."""
    for d in range(0, width, VECTORS * WIDTH):
        n = min(VECTORS, (width - d) // WIDTH)
        _add_combined(a, lda, b + FLOAT_BYTES * d, ldb, c + FLOAT_BYTES * d, n, depth)


@borrower
def dots(x, y, ldy, n, width, out):
    """out[k] = dot product of x (width,) and row k of y (n, width), four rows at a time."""
    for k in range(0, n - 3, 4):
        y_0 = y + FLOAT_BYTES * k * ldy
        y_1 = y_0 + FLOAT_BYTES * ldy
        y_2 = y_1 + FLOAT_BYTES * ldy
        y_3 = y_2 + FLOAT_BYTES * ldy
        sum_0, sum_1, sum_2, sum_3 = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
            x_d = load(x + d)
            sum_0 = sum_0 + x_d * load(y_0 + d)
            sum_1 = sum_1 + x_d * load(y_1 + d)
            sum_2 = sum_2 + x_d * load(y_2 + d)
            sum_3 = sum_3 + x_d * load(y_3 + d)
        out[k] = sum_of(sum_0)
        out[k + 1] = sum_of(sum_1)
        out[k + 2] = sum_of(sum_2)
        out[k + 3] = sum_of(sum_3)
    for k in range(n // 4 * 4, n):
        y_0 = y + FLOAT_BYTES * k * ldy
        sum_0 = splat(ZERO)
        for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
            sum_0 = sum_0 + load(x + d) * load(y_0 + d)
        out[k] = sum_of(sum_0)


@borrower
def copy_row(source, target, width):
    """target (width,) = source; width is in whole vectors, here and below."""
    for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
        store(load(source + d), target + d)


@borrower
def add_row(source, target, width):
    """target (width,) += source."""
    for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
        store(load(target + d) + load(source + d), target + d)


@borrower
def zero_row(target, width):
    """target (width,) = 0."""
    for d in range(0, FLOAT_BYTES * width, FLOAT_BYTES * WIDTH):
        store(splat(ZERO), target + d)


@borrower
def gather(table, slots, first, last, target, width):
    """Gather rows of table for slots[first:last], one after the other."""
    source = table.ctypes.data
    for i in range(first, last):
        row = FLOAT_BYTES * np.int64(slots[i]) * width
        copy_row(source + row, target + FLOAT_BYTES * (i - first) * width, width)

"""Sums of rows on a CPU: a sparse matrix of bags times a table (V, D), and its transpose times a gradient.

A batch of B bags is a sparse matrix (B, V), given as ids (total,) and starts (B + 1,). The forward pass is its product
with the table; the backward pass is the product of its transpose with the gradient of the bags (B, D). Both are
`sum_rows`: over the ids of every bag, or over the bags of every id (ids.py). An id of NONE stands for no row.
Addresses are of contiguous float32.
"""

from __future__ import annotations

import numba
import numpy as np

from ...machine.jit import borrower, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, load, splat, store
from ...machine.team import Kernel, in_parallel
from ..batch import NONE

# A row's gradient may have a thousand terms. Adding up short sums loses less to rounding than one long sum.
SHORT_SUM = 16
ZERO, ONE = np.float32(0), np.float32(1)


@borrower
def sum_rows(source, D, rows, first, last, scales, target):
    """target (D,) = sum over i in [first, last) of scales[rows[i]] * source[rows[i]].

    Without scales, each factor is 1.
    """
    if D < WIDTH:
        _sum_narrow_rows(source, D, rows, first, last, scales, target)
        return
    column = np.int64(0)  # a literal would compile everything again for its own type
    while column < D:
        if D - column > 4 * WIDTH:
            _sum_eight_vectors(source, D, column, rows, first, last, scales, target)
            column += 8 * WIDTH
        elif D - column > WIDTH:
            _sum_four_vectors(source, D, column, rows, first, last, scales, target)
            column += 4 * WIDTH
        else:
            _sum_vector(source, D, D - WIDTH, rows, first, last, scales, target)
            column += WIDTH


@helper
def place(D, column):
    """Return the byte offset of a vector of columns, at most that of the last vector, which is then just recomputed."""
    return FLOAT_BYTES * min(column, D - WIDTH)


@borrower
def _sum_eight_vectors(source, D, column, rows, first, last, scales, target):
    """sum_rows for 8 vectors from `column` on, held in registers."""
    scaled = len(scales) > 0
    at_a, at_b = place(D, column), place(D, column + WIDTH)
    at_c, at_d = place(D, column + 2 * WIDTH), place(D, column + 3 * WIDTH)
    at_e, at_f = place(D, column + 4 * WIDTH), place(D, column + 5 * WIDTH)
    at_g, at_h = place(D, column + 6 * WIDTH), place(D, column + 7 * WIDTH)
    for begin in range(first, max(last, first + 1), SHORT_SUM):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        e, f, g, h = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(begin, min(last, begin + SHORT_SUM)):
            row = np.int64(rows[i])
            if row != NONE:
                at = source + FLOAT_BYTES * row * D
                scale = scales[row] if scaled else ONE
                a, b = a + load(at + at_a) * scale, b + load(at + at_b) * scale
                c, d = c + load(at + at_c) * scale, d + load(at + at_d) * scale
                e, f = e + load(at + at_e) * scale, f + load(at + at_f) * scale
                g, h = g + load(at + at_g) * scale, h + load(at + at_h) * scale
        if begin > first:
            # All loads before the first store: the last vectors may overlap.
            a, b = a + load(target + at_a), b + load(target + at_b)
            c, d = c + load(target + at_c), d + load(target + at_d)
            e, f = e + load(target + at_e), f + load(target + at_f)
            g, h = g + load(target + at_g), h + load(target + at_h)
        store(a, target + at_a)
        store(b, target + at_b)
        store(c, target + at_c)
        store(d, target + at_d)
        store(e, target + at_e)
        store(f, target + at_f)
        store(g, target + at_g)
        store(h, target + at_h)


@borrower
def _sum_four_vectors(source, D, column, rows, first, last, scales, target):
    """sum_rows for 4 vectors from `column` on, held in registers."""
    scaled = len(scales) > 0
    at_a, at_b = place(D, column), place(D, column + WIDTH)
    at_c, at_d = place(D, column + 2 * WIDTH), place(D, column + 3 * WIDTH)
    for begin in range(first, max(last, first + 1), SHORT_SUM):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(begin, min(last, begin + SHORT_SUM)):
            row = np.int64(rows[i])
            if row != NONE:
                at = source + FLOAT_BYTES * row * D
                scale = scales[row] if scaled else ONE
                a, b = a + load(at + at_a) * scale, b + load(at + at_b) * scale
                c, d = c + load(at + at_c) * scale, d + load(at + at_d) * scale
        if begin > first:
            a, b = a + load(target + at_a), b + load(target + at_b)
            c, d = c + load(target + at_c), d + load(target + at_d)
        store(a, target + at_a)
        store(b, target + at_b)
        store(c, target + at_c)
        store(d, target + at_d)


@borrower
def _sum_vector(source, D, column, rows, first, last, scales, target):
    """sum_rows for the vector at `column`."""
    scaled = len(scales) > 0
    to = target + FLOAT_BYTES * column
    for begin in range(first, max(last, first + 1), SHORT_SUM):
        total = splat(ZERO)
        for i in range(begin, min(last, begin + SHORT_SUM)):
            row = np.int64(rows[i])
            if row != NONE:
                scale = scales[row] if scaled else ONE
                total = total + load(source + FLOAT_BYTES * (row * D + column)) * scale
        if begin > first:
            total = total + load(to)
        store(total, to)


@helper
def _sum_narrow_rows(source, D, rows, first, last, scales, target):
    """sum_rows for rows that do not fill a vector."""
    sums = np.zeros(D)
    for i in range(first, last):
        row = np.int64(rows[i])
        if row != NONE:
            values = numba.carray(pointer_to_float32(source + FLOAT_BYTES * row * D), (D,))
            scale = scales[row] if len(scales) else ONE
            for d in range(D):
                sums[d] += np.float64(values[d] * scale)
    total = numba.carray(pointer_to_float32(target), (D,))
    for d in range(D):  # an array assignment compiles Numba's messages about shapes, too: seconds
        total[d] = sums[d]


@helper
def scale_row(target, D, factor):
    """target (D,) *= factor."""
    values = numba.carray(pointer_to_float32(target), (D,))
    for d in range(D):
        values[d] *= factor


@helper
def share(starts, p, n_splits):
    """Return the bags (first, last) of split p, such that all splits have about the same number of ids."""
    ids = starts[-1]
    first = np.searchsorted(starts, p * ids // n_splits) if p else 0
    last = np.searchsorted(starts, (p + 1) * ids // n_splits) if p + 1 < n_splits else len(starts) - 1
    return first, last


@helper
def _sum_split(p, source, D, ids, starts, scales, bag_scales, target, n_splits):
    first, last = share(starts, p, n_splits)
    for bag in range(first, last):
        to = target + FLOAT_BYTES * bag * D
        sum_rows(source, D, ids, starts[bag], starts[bag + 1], scales, to)
        if len(bag_scales):
            scale_row(to, D, bag_scales[bag])


def _sum_bags(team, source, D, ids, starts, scales, bag_scales, target, n_splits):  # type: ignore[no-untyped-def]
    """target (B, D) = sum_rows of every bag, times bag_scales (B,) if there are any."""
    in_parallel(team, n_splits, _sum_split, (source, D, ids, starts, scales, bag_scales, target, n_splits))


sum_bags = Kernel(_sum_bags, beside_torch=True)

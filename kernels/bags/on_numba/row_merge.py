"""Sums of row-sparse gradients in several pieces, such as those of several processes, on a CPU.

Rows ascend in every piece, so that the pieces are merged, and nothing is sorted. A row's gradients are added in the
order of pieces, whatever the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np

from ...machine.jit import entry, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES
from ...machine.team import Kernel, in_parallel


@entry
def merged(rows, bounds):
    """Return (found (U,) int64 ascending, begins (U + 1,), sources (M,)): the distinct rows, and where each is.

    Row u is at the positions sources[begins[u] : begins[u + 1]] of rows (M,), which ascend. Piece p is
    rows[bounds[p] : bounds[p + 1]].
    """
    n_pieces, M = len(bounds) - 1, len(rows)
    found, begins, sources = np.empty(M, np.int64), np.empty(M + 1, np.int64), np.empty(M, np.int64)
    heads = bounds[:-1].copy()
    U = n = 0
    while n < M:
        least = np.int64(-1)
        for p in range(n_pieces):
            if heads[p] < bounds[p + 1] and (least < 0 or rows[heads[p]] < least):
                least = np.int64(rows[heads[p]])
        begins[U], found[U] = n, least
        U += 1
        for p in range(n_pieces):
            if heads[p] < bounds[p + 1] and rows[heads[p]] == least:
                sources[n] = heads[p]
                heads[p] += 1
                n += 1
    begins[U] = n
    return found[:U], begins[: U + 1], sources


@helper
def _values_at(source, bounds, addresses, D):
    """Return the gradient (D,) at a position."""
    piece = 0
    while source >= bounds[piece + 1]:
        piece += 1
    at = addresses[piece] + FLOAT_BYTES * (source - bounds[piece]) * D
    return numba.carray(pointer_to_float32(at), (D,))


@helper
def _sum_split(p, begins, sources, bounds, addresses, sums, n_splits):
    U, D = sums.shape
    for u in range(p * U // n_splits, (p + 1) * U // n_splits):
        first, last = begins[u], begins[u + 1]
        total, one = sums[u], _values_at(sources[first], bounds, addresses, D)
        for d in range(D):
            total[d] = one[d]
        for i in range(first + 1, last):
            other = _values_at(sources[i], bounds, addresses, D)
            for d in range(D):
                total[d] += other[d]


def _sum_sources(team, begins, sources, bounds, addresses, sums, n_splits):  # type: ignore[no-untyped-def]
    """sums (U, D) = the sums of the gradients at the positions of every row, as found by `merged`.

    addresses (P,): of the gradients (n, D) of every piece.
    """
    in_parallel(team, n_splits, _sum_split, (begins, sources, bounds, addresses, sums, n_splits))


sum_sources = Kernel(_sum_sources, beside_torch=True)

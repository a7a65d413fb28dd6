"""Loss and gradients of a LocalBatch on a CPU, for vectors that are means of rows of a table."""

from __future__ import annotations

import numpy as np

from ...bags.batch import NONE
from ...bags.on_numba.row_sums import scale_row, sum_rows
from ...machine.jit import helper
from ...machine.simd import FLOAT_BYTES
from ...machine.team import Kernel, in_parallel
from .context import add_up_splits, run_split
from .shard_rows import copy_in
from .tile import TileOptions, Windows

f32 = np.float32
ONE = f32(1)


@helper
def _first_outside(types, n_types):
    """Return the index of the first type that is not in [0, n_types), or -1."""
    for i in range(len(types)):
        if types[i] < 0 or types[i] >= n_types:
            return i
    return -1


@helper
def _average_rows(table, types, n, rows_of_type, x):
    """x[u] = the mean of the rows of types[u] for u < n."""
    D, M, ld = table.shape[1], rows_of_type.shape[1], x.shape[1]
    source, target = table.ctypes.data, x.ctypes.data
    rows, no_scales = rows_of_type.reshape(-1), np.empty(0, np.float32)
    for u in range(n):
        first, vector = types[u] * M, target + FLOAT_BYTES * u * ld
        size = 0
        for m in range(M):
            size += np.int64(rows[first + m] != NONE)
        sum_rows(source, D, rows, first, first + M, no_scales, vector)
        scale_row(vector, D, ONE / f32(max(1, size)))


def _gradients_of_batch(  # type: ignore[no-untyped-def]
    team, mode, types, n_kept, words, low, high, drawn, negatives, window, scale, table, outputs, rows_of_type, d_x,
    d_y, w,
):  # fmt: skip
    """Return (-1, the sum of the losses); d_x[0, :n_kept] and d_y[0, :U] become scale times its gradients.

    Or (the index of a type that there is not, 0). rows_of_type: (0, 0) if type t is row t of the table. x of the
    workspace w is zero past D.
    """
    T, D = outputs.shape
    wrong = _first_outside(types, T)
    if wrong >= 0:
        return wrong, 0.0
    if len(rows_of_type):
        _average_rows(table, types, n_kept, rows_of_type, w.x[0])
    else:
        copy_in(table, types, n_kept, w.x[0])
    copy_in(outputs, types, len(types), w.y[0])
    P, M, n = len(d_x), w.z.shape[1], len(words)
    losses = np.zeros(P)
    how = TileOptions(mode, f32(negatives / M), scale, window, True, False, D)
    windows = Windows(words, words, low, high)
    in_parallel(team, P, run_split, (
        windows, drawn, n, n_kept, len(types), how, w.x[0], w.y[0], d_x, d_y, w, losses
    ))  # fmt: skip
    add_up_splits(d_x, n_kept, d_y, len(types))
    return -1, losses.sum()


gradients_of_batch = Kernel(_gradients_of_batch)

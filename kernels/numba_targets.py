"""What targets say before any logit is made: how many are valid, what a mean divides by, which rows to compute."""

from __future__ import annotations

import numba
import numpy as np

from .layout import Kind
from .numba_jit import helper, pointer_to_float32, pointer_to_int64

SOFTMAX = int(Kind.SOFTMAX)


@helper
def survey(heads, column_weights, targets, n_rows, task_weights):
    """(scale, gradient_scale, valid, outside) of K heads.

    scale (K,) is 1/denominator of each mean, 0 without any valid row; gradient_scale (K,) float32 the same times
    the task weight; valid (K,) the rows (softmax) or elements with a target; outside the first target outside
    [0, C) as [task, target], or [-1, 0].
    """
    scale = np.zeros(len(heads))
    gradient_scale = np.zeros(len(heads), np.float32)
    valid = np.zeros(len(heads), np.int64)
    outside = np.array([-1, 0])
    for k in range(len(heads)):
        head = heads[k]
        C, ignore_index = head["size"], head["ignore_index"]
        if head["kind"] != SOFTMAX:
            values = numba.carray(pointer_to_float32(targets[k]), (n_rows * C,))
            count = 0
            for i in range(n_rows * C):
                count += np.int64(not np.isnan(values[i]))
            valid[k] = count
            denominator = np.float64(count)
        else:
            y = numba.carray(pointer_to_int64(targets[k]), (n_rows,))
            count = 0
            bad = 0
            for i in range(n_rows):
                known = y[i] != ignore_index
                count += np.int64(known)
                bad += np.int64(known and (y[i] < 0 or y[i] >= C))
            if bad:
                for i in range(n_rows):
                    if y[i] != ignore_index and (y[i] < 0 or y[i] >= C):
                        outside[:] = k, y[i]
                        return scale, gradient_scale, valid, outside
            valid[k] = count
            denominator = np.float64(count)
            if head["weighted"]:
                denominator = 0.0
                for i in range(n_rows):
                    weight = column_weights[head["offset"] + y[i]] if y[i] != ignore_index else np.float32(0)
                    denominator += np.float64(weight)
        if denominator > 0.0:
            scale[k] = 1.0 / denominator
            gradient_scale[k] = scale[k] * task_weights[k]
    return scale, gradient_scale, valid, outside


@helper
def labelled_rows(head, target, n_rows):
    """(rows with a target,) int64, ascending."""
    C = head["size"]
    rows = np.empty(n_rows, np.int64)
    count = 0
    if head["kind"] == SOFTMAX:
        y = numba.carray(pointer_to_int64(target), (n_rows,))
        for i in range(n_rows):
            rows[count] = i
            count += np.int64(y[i] != head["ignore_index"])
    else:
        values = numba.carray(pointer_to_float32(target), (n_rows, C))
        for i in range(n_rows):
            rows[count] = i
            known = False
            for c in range(C):
                known |= not np.isnan(values[i, c])
            count += np.int64(known)
    return rows[:count].copy()

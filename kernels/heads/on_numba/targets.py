"""Survey of the targets before any logit is computed: numbers of valid ones, denominators, and rows to compute."""

from __future__ import annotations

import numba
import numpy as np

from ...machine.jit import entry, helper, pointer_to_float32, pointer_to_int64
from ..kind import Kind

SOFTMAX = Kind.SOFTMAX.code

# How a head is computed.
SKIPPED, ALL_ROWS, LABELLED_ROWS = range(3)


@entry
def survey(
    heads, column_weights, targets, n_rows, task_weights, skip_zero_weights, pass_logits, row_logits, scale,
    gradient_scale, way, outside,
):  # fmt: skip
    """Survey the targets of K heads; return how many heads are computed over all rows, -1 for a target out of range.

    Fills, by head, (K,): scale, 1/denominator of each mean, 0 without any valid row; gradient_scale, scale times task
    weight; way, SKIPPED, ALL_ROWS or LABELLED_ROWS.
    outside: (2,), written only for -1: [task, index] of the first class target outside [0, C) or value outside
    [least, most].

    A head is computed over its labelled rows only if they are at most half of all rows and skipping the others saves
    more, in logits, than a separate pass costs: pass_logits, plus row_logits per labelled row.
    task_weights is the address of (K,) float32.
    """
    K = len(heads)
    task_weights_k = numba.carray(pointer_to_float32(task_weights), (K,))
    n_whole = 0
    for k in range(K):
        head = heads[k]
        C, ignore_index = head["size"], head["ignore_index"]
        if head["kind"] != SOFTMAX:
            values = numba.carray(pointer_to_float32(targets[k]), (n_rows * C,))
            least, most = head["least"], head["most"]
            valid = 0
            bad = 0
            for i in range(n_rows * C):
                valid += np.int64(not np.isnan(values[i]))
                bad += np.int64(values[i] < least) + np.int64(values[i] > most)
            if bad:
                for i in range(n_rows * C):
                    if values[i] < least or values[i] > most:
                        outside[0], outside[1] = k, i
                        return -1
            denominator = np.float64(valid)
            labelled = -(-valid // C)  # a lower bound
        else:
            y = numba.carray(pointer_to_int64(targets[k]), (n_rows,))
            valid = 0
            bad = 0
            for i in range(n_rows):
                known = y[i] != ignore_index
                valid += np.int64(known)
                bad += np.int64(known and (y[i] < 0 or y[i] >= C))
            if bad:
                for i in range(n_rows):
                    if y[i] != ignore_index and (y[i] < 0 or y[i] >= C):
                        outside[0], outside[1] = k, i
                        return -1
            denominator = np.float64(valid)
            labelled = valid
            if head["weighted"]:
                denominator = 0.0
                for i in range(n_rows):
                    weight = column_weights[head["offset"] + y[i]] if y[i] != ignore_index else np.float32(0)
                    denominator += np.float64(weight)
        scale[k] = 1.0 / denominator if denominator > 0.0 else 0.0
        gradient_scale[k] = scale[k] * task_weights_k[k] if denominator > 0.0 else 0.0
        if valid == 0 or (skip_zero_weights and task_weights_k[k] == 0.0):
            way[k] = SKIPPED
        elif 2 * labelled <= n_rows and (n_rows - labelled) * C > pass_logits + labelled * row_logits:
            way[k] = LABELLED_ROWS
        else:
            way[k] = ALL_ROWS
            n_whole += 1
    return n_whole


@helper
def computed(heads, way):
    """Return the records of the heads that `survey` does not let be skipped."""
    found, n = heads.copy(), 0
    for k in range(len(heads)):
        if way[k] != SKIPPED:
            found[n] = heads[k]
            n += 1
    return found[:n]


@entry
def labelled_rows(head, target, n_rows):
    """Return the rows that have a target, int64, ascending."""
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

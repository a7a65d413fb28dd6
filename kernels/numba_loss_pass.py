"""The Numba loss pass: all heads' logits become their gradients, tile by tile, and losses are summed.

Logits are kept transposed, (S, N): every loop then runs along N, contiguous and of one length, so heads of 2
classes vectorise as well as heads of 2,000. A tile of rows stays in cache from its maximum to its gradient.

For a softmax head with weights w, smoothing e and target y (torch.nn.functional.cross_entropy):
    loss_n = (1-e) w_y (lse - z_y) + e/C (sum_c w_c lse - sum_c w_c z_c),   lse = log sum_c exp z_c
    dz_c   = [(1-e) w_y + e/C sum_c w_c] p_c - (1-e) w_y [c = y] - e/C w_c
For a binary head with positive weights q (binary_cross_entropy_with_logits), l = 1 + (q-1) y:
    loss = (1-y) z + l (log1p exp(-|z|) + max(-z, 0)),   dz = (1-y) - l + l sigmoid(z)
"""

from __future__ import annotations

import numba
import numpy as np

from .layout import Kind
from .numba_jit import (
    Kernel,
    elementwise,
    exponent_of,
    helper,
    mantissa_of,
    pointer_to_float32,
    pointer_to_int64,
    power_of_two,
    truncate,
)

SOFTMAX, BINARY, SQUARED, HUBER = (int(kind) for kind in Kind)

f32 = np.float32
ZERO, ONE, TWO, HALF, INFINITY = f32(0), f32(1), f32(2), f32(0.5), f32(np.inf)
LOG2_E, LN2_HIGH, LN2_LOW = f32(1.44269504), f32(0.693145752), f32(1.42860677e-6)
LN2 = f32(0.693147181)
# exp of less is 0: it could not be seen beside the maximum's 1, and times 1/N it would become subnormal,
# which slows a GEMM down several times.
EXP_UNDERFLOW = f32(-64.0)
SQRT2 = f32(1.41421356)
LARGEST = f32(3.4e38)
E2, E3, E4, E5, E6 = f32(0.5), f32(0.166666667), f32(0.0416666667), f32(0.00833333333), f32(0.00138888889)
A3, A5, A7, A9, A11, A13 = f32(1 / 3), f32(0.2), f32(1 / 7), f32(1 / 9), f32(1 / 11), f32(1 / 13)


@elementwise
def exp32(x):
    """exp(x) for x <= 0, as 2^n times a polynomial: plain arithmetic that vectorises, unlike libm."""
    clamped = EXP_UNDERFLOW if x < EXP_UNDERFLOW else x
    n = truncate(clamped * LOG2_E - HALF)
    r = (clamped - n * LN2_HIGH) - n * LN2_LOW
    p = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    return ZERO if x < EXP_UNDERFLOW else p * power_of_two(n)


@elementwise
def log32(x):
    """log(x) for normal x > 0: exponent, and the atanh series of a mantissa in [sqrt(1/2), sqrt(2))."""
    mantissa = mantissa_of(x)
    large = mantissa > SQRT2
    m = mantissa * HALF if large else mantissa
    n = exponent_of(x) + (ONE if large else ZERO)
    t = (m - ONE) / (m + ONE)
    q = t * t
    log_m = TWO * t * (ONE + q * (A3 + q * (A5 + q * (A7 + q * A9))))
    # The bit tricks know no NaN or infinity; a diverged row must stay visible.
    return n * LN2 + log_m if x < LARGEST else x


@elementwise
def log1p32(u):
    """log(1 + u) for u in [0, 1], by the atanh series of u / (2 + u)."""
    t = u / (TWO + u)
    q = t * t
    series = ONE + q * (A3 + q * (A5 + q * (A7 + q * (A9 + q * (A11 + q * A13)))))
    return TWO * t * series


@helper
def softmax_tile(z, first, rows, bias, y, head, weights, need_gradient, scale, bias_gradient, scratch):
    """One softmax head on one tile: logits z (C, rows) without bias become their gradients times `scale`.

    y (rows,) are the targets, scratch (7, rows) anything. Returns (loss sum, rows classified right).
    """
    C = z.shape[0]
    smoothing = f32(head["smoothing"])
    keep = ONE - smoothing
    spread = smoothing / f32(C)
    weight_sum = f32(head["weight_sum"])
    last = first + rows
    peak, total, label, argmax = scratch[0], scratch[1], scratch[2], scratch[3]
    target_weight, target_logit, smooth_logit = scratch[4], scratch[5], scratch[6]

    for i in range(rows):
        known = y[i] != head["ignore_index"]
        label[i] = f32(y[i]) if known else -ONE
        target_weight[i] = ONE if known else ZERO
        target_logit[i] = ZERO
        smooth_logit[i] = ZERO
        total[i] = ZERO
        argmax[i] = ZERO
        peak[i] = -INFINITY
    if head["weighted"]:
        for i in range(rows):
            target_weight[i] = weights[y[i]] if label[i] >= ZERO else ZERO
    for c in range(C):
        row = z[c, first:last]
        b = bias[c]
        index = f32(c)
        for i in range(rows):
            v = row[i] + b
            argmax[i] = index if v > peak[i] else argmax[i]
            peak[i] = v if v > peak[i] else peak[i]
    for i in range(rows):
        c = y[i] if label[i] >= ZERO else 0
        target_logit[i] = z[c, first + i] + bias[c]
    right = ZERO
    for i in range(rows):
        right += ONE if argmax[i] == label[i] else ZERO
    correct = np.int64(right)

    if spread > ZERO:
        for c in range(C):
            row = z[c, first:last]
            b = bias[c]
            w = weights[c]
            for i in range(rows):
                smooth_logit[i] += w * (row[i] + b - peak[i])

    for c in range(C):
        row = z[c, first:last]
        b = bias[c]
        for i in range(rows):
            e = exp32(row[i] + b - peak[i])
            row[i] = e
            total[i] += e

    row_loss = peak  # its last reader is this loop
    for i in range(rows):
        log_total = log32(total[i])
        nll = target_weight[i] * (log_total - (target_logit[i] - peak[i]))
        smooth = weight_sum * log_total - smooth_logit[i]
        # A select, not a product: a row that is ignored may hold anything, NaN included.
        row_loss[i] = keep * nll + spread * smooth if label[i] >= ZERO else ZERO
    loss = 0.0
    for i in range(rows):
        loss += np.float64(row_loss[i])
    if not need_gradient:
        return loss, correct

    # dz = f (e - [c = y] keep w_y / f) - spread w with f = (keep w_y + spread sum w) / total, all times scale.
    # The target's part comes off before the columns are summed: afterwards it would cancel against their sum.
    pulled = target_logit
    for i in range(rows):
        pull = keep * target_weight[i]
        push = pull + spread * weight_sum
        pulled[i] = pull * total[i] / push if push > ZERO else ZERO
        total[i] = push / total[i] * scale
    for i in range(rows):
        if pulled[i] != ZERO:
            z[y[i], first + i] -= pulled[i]
    for c in range(C):
        row = z[c, first:last]
        shift = spread * weights[c] * scale
        column = ZERO
        for i in range(rows):
            d = row[i] * total[i] - shift if label[i] >= ZERO else ZERO
            row[i] = d
            column += d
        bias_gradient[c] = column
    return loss, correct


@helper
def two_class_tile(z, first, rows, bias, y, head, weights, need_gradient, scale, bias_gradient):
    """`softmax_tile` for C = 2: a function of z_1 - z_0 alone, one exponential a row and no gather."""
    last = first + rows
    smoothing = f32(head["smoothing"])
    keep, spread = ONE - smoothing, smoothing * HALF
    weight0, weight1 = weights[0], weights[1]
    shift = bias[1] - bias[0]
    row0, row1 = z[0, first:last], z[1, first:last]
    loss = 0.0
    right = ZERO
    column0, column1 = ZERO, ZERO
    for i in range(rows):
        known = y[i] != head["ignore_index"]
        is_one = y[i] == 1
        difference = row1[i] - row0[i] + shift
        u = exp32(-abs(difference))
        tail = log1p32(u)
        nll0 = tail + (difference if difference > ZERO else ZERO)
        nll1 = tail - (ZERO if difference > ZERO else difference)
        pull1 = keep * weight1 if is_one else ZERO
        pull0 = ZERO if is_one else keep * weight0
        value = pull0 * nll0 + pull1 * nll1 + spread * (weight0 * nll0 + weight1 * nll1)
        inverse = ONE / (ONE + u)
        p1 = inverse if difference > ZERO else u * inverse
        p0 = u * inverse if difference > ZERO else inverse
        mass = pull0 + pull1 + spread * (weight0 + weight1)
        d0 = (mass * p0 - pull0 - spread * weight0) * scale
        d1 = (mass * p1 - pull1 - spread * weight1) * scale
        # A select, not a product: a row that is ignored may hold anything, NaN included.
        loss += np.float64(value if known else ZERO)
        right += ONE if known and (difference > ZERO) == is_one else ZERO
        d0 = d0 if known else ZERO
        d1 = d1 if known else ZERO
        column0 += d0
        column1 += d1
        if need_gradient:
            row0[i] = d0
            row1[i] = d1
    bias_gradient[0] = column0
    bias_gradient[1] = column1
    return loss, np.int64(right)


@helper
def elementwise_tile(z, first, rows, bias, y, head, weights, need_gradient, scale, bias_gradient, scratch):
    """One binary, squared or Huber head on columns first..first+rows of z (C, ld), as `softmax_tile`.

    y is (rows, C), NaN = missing. Returns (loss sum, rows whose every valid label is right).
    """
    C = z.shape[0]
    kind = head["kind"]
    delta = f32(head["delta"])
    last = first + rows
    seen, wrong = scratch[0], scratch[1]
    for i in range(rows):
        seen[i] = ZERO
        wrong[i] = ZERO
    loss = 0.0
    for c in range(C):
        row = z[c, first:last]
        b = bias[c]
        w = weights[c]
        column = ZERO
        for i in range(rows):
            target = y[i, c]
            v = row[i] + b
            missing = np.isnan(target)
            if kind == BINARY:
                u = exp32(-abs(v))
                tail = log1p32(u)
                factor = ONE + (w - ONE) * target
                value = (ONE - target) * v + factor * (tail + max(-v, ZERO))
                inverse = ONE / (ONE + u)
                sigmoid = inverse if v >= ZERO else u * inverse
                d = (ONE - target) - factor + factor * sigmoid
                miss = (v > ZERO) != (target > HALF)
            else:
                error = v - target
                miss = True
                if kind == SQUARED or abs(error) <= delta:
                    square = ONE if kind == SQUARED else HALF
                    value = square * error * error
                    d = TWO * square * error
                else:
                    value = delta * (abs(error) - HALF * delta)
                    d = delta if error > ZERO else -delta
            loss += np.float64(ZERO if missing else value)
            d = ZERO if missing else d * scale
            seen[i] = seen[i] if missing else ONE
            wrong[i] = ONE if miss and not missing else wrong[i]
            column += d
            if need_gradient:
                row[i] = d
        bias_gradient[c] = column
    correct = 0
    for i in range(rows):
        correct += np.int64(seen[i] > ZERO and wrong[i] == ZERO)
    return loss, correct


@helper
def mean_scale(heads, column_weights, targets, n_rows, task_weights):
    """1/denominator (K,) of each mean, 0 without any valid row, and the same times the task weight, float32;
    and the first target outside [0, C) as [task, target], or [-1, 0]."""
    denominators = np.zeros(len(heads))
    scale = np.zeros(len(heads))
    gradient_scale = np.zeros(len(heads), np.float32)
    outside = np.array([-1, 0])
    for k in range(len(heads)):
        head = heads[k]
        C, ignore_index = head["size"], head["ignore_index"]
        if head["kind"] != SOFTMAX:
            values = numba.carray(pointer_to_float32(targets[k]), (n_rows * C,))
            count = 0
            for i in range(n_rows * C):
                count += np.int64(not np.isnan(values[i]))
            denominators[k] = count
            continue
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
                    return scale, gradient_scale, outside
        denominators[k] = count
        if head["weighted"]:
            weight = 0.0
            for i in range(n_rows):
                weight += np.float64(column_weights[head["offset"] + y[i]]) if y[i] != ignore_index else 0.0
            denominators[k] = weight
    for k in range(len(heads)):
        if denominators[k] > 0.0:
            scale[k] = 1.0 / denominators[k]
            gradient_scale[k] = scale[k] * task_weights[k]
    return scale, gradient_scale, outside


def _segment_loss(
    logits, bias, first_row, n_rows, tile_rows, heads, column_weights, targets, total_rows, scale, need_gradient
):  # fmt: skip
    """Rows first_row.. of the batch, logits (S, at least n_rows): loss sums (K,), correct (K,), bias gradient (S,).

    The logits become their gradients times scale (K,). Every tile of rows leaves partial sums, which are
    added in the order of tiles whoever computed them.
    """
    K, S = len(heads), len(bias)
    n_tiles = -(-n_rows // tile_rows)
    loss_tk = np.zeros((n_tiles, K))
    correct_tk = np.zeros((n_tiles, K), np.int64)
    bias_gradient_ts = np.zeros((n_tiles, S), np.float32)
    for t in numba.prange(n_tiles):
        first = t * tile_rows
        rows = min(tile_rows, n_rows - first)
        scratch = np.empty((7, rows), np.float32)
        for k in range(K):
            head = heads[k]
            a = head["offset"]
            b = a + head["size"]
            z = logits[a:b]
            if head["kind"] == SOFTMAX:
                y = numba.carray(pointer_to_int64(targets[k]), (total_rows,))[first_row + first :]
                if head["size"] == 2:
                    loss_tk[t, k], correct_tk[t, k] = two_class_tile(
                        z, first, rows, bias[a:b], y, head, column_weights[a:b], need_gradient, scale[k],
                        bias_gradient_ts[t, a:b],
                    )  # fmt: skip
                    continue
                loss_tk[t, k], correct_tk[t, k] = softmax_tile(
                    z, first, rows, bias[a:b], y, head, column_weights[a:b], need_gradient, scale[k],
                    bias_gradient_ts[t, a:b], scratch,
                )  # fmt: skip
            else:
                y2 = numba.carray(pointer_to_float32(targets[k]), (total_rows, head["size"]))[
                    first_row + first :
                ]
                loss_tk[t, k], correct_tk[t, k] = elementwise_tile(
                    z, first, rows, bias[a:b], y2, head, column_weights[a:b], need_gradient, scale[k],
                    bias_gradient_ts[t, a:b], scratch,
                )  # fmt: skip
    loss_sums = np.zeros(K)
    correct = np.zeros(K, np.int64)
    bias_gradient = np.zeros(S, np.float32)
    for t in range(n_tiles):
        for k in range(K):
            loss_sums[k] += loss_tk[t, k]
            correct[k] += correct_tk[t, k]
        for s in range(S):
            bias_gradient[s] += bias_gradient_ts[t, s]
    return loss_sums, correct, bias_gradient


segment_loss = Kernel(_segment_loss)

HEAD_RECORD = np.dtype(
    [
        ("kind", np.int64),
        ("offset", np.int64),
        ("size", np.int64),
        ("ignore_index", np.int64),
        ("smoothing", np.float64),
        ("delta", np.float64),
        ("weight_sum", np.float64),
        ("weighted", np.bool_),
    ]
)

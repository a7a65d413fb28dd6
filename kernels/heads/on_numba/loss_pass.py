"""The loss of one head on one tile of rows: turns its logits into their gradients and sums its losses.

Logits are transposed, z (S, rows): a vector holds WIDTH rows of one output, so heads of 2 classes vectorize as well as
heads of 2,000, and maximum, sum and argmax of WIDTH rows stay in registers while looping over the classes. Tiles are
read and written in whole vectors: past its last row, z has room up to the next multiple of WIDTH.

For a softmax head with weights w, smoothing e and target y (torch.nn.functional.cross_entropy):
    loss_n = (1-e) w_y (lse - z_y) + e/C (sum_c w_c lse - sum_c w_c z_c),   lse = log sum_c exp z_c
    dz_c   = [(1-e) w_y + e/C sum_c w_c] p_c - (1-e) w_y [c = y] - e/C w_c
The formulas of elementwise heads are in `kinds`.
"""

from __future__ import annotations

import numpy as np

from ...machine.elementary import HALF, ONE, ZERO, exp32, f32, log32, softplus_and_sigmoid
from ...machine.jit import helper
from ...machine.simd import (
    FLOAT_BYTES,
    WIDTH,
    absolute,
    load,
    select,
    splat,
    store,
    sum_of,
)
from ..kind import Kind
from .elements import element_of

SOFTMAX = Kind.SOFTMAX.code

INFINITY = f32(np.inf)
LANES = 3  # rows of scratch for a tile


@helper
def _label_lanes(y, rows, ignore_index, label):
    """Store the targets as float32 (exact up to 2^24) in label, -1 = no target; return whether all rows have one."""
    padded = -(-rows // WIDTH) * WIDTH
    known = 0
    for i in range(rows):
        has_target = y[i] != ignore_index
        label[i] = f32(y[i]) if has_target else -ONE
        known += np.int64(has_target)
    for i in range(rows, padded):
        label[i] = -ONE
    return known == padded


@helper
def softmax_tile(z, ldz, C, rows, bias, y, head, weights, need_gradient, scale, bias_gradient, lanes):
    """Process one softmax head on one tile: turn logits without bias into their gradients times `scale`.

    z: address of (C, rows) float32 with row stride ldz. bias, weights, bias_gradient: (C,). y: targets (rows,).
    lanes: scratch (LANES, at least rows rounded up to WIDTH).

    Returns (loss sum, correct rows).
    """
    smoothing = f32(head["smoothing"])
    keep = ONE - smoothing
    spread = smoothing / f32(C)
    weight_sum = f32(head["weight_sum"])
    if C == 1:  # a loss of 0 in any case: rounding errors would be a step to Adam, which normalizes gradients
        scale = ZERO
    label_lane, factor_lane, pull_lane = lanes[0].ctypes.data, lanes[1].ctypes.data, lanes[2].ctypes.data
    all_known = _label_lanes(y, rows, head["ignore_index"], lanes[0])
    if head["weighted"]:
        for i in range(rows):
            lanes[2, i] = weights[y[i]] if lanes[0, i] >= ZERO else ZERO
    loss = splat(ZERO)
    right = splat(ZERO)
    for i in range(0, FLOAT_BYTES * rows, FLOAT_BYTES * WIDTH):
        label = load(label_lane + i)
        known = label >= ZERO
        peak = splat(-INFINITY)
        best = splat(ZERO)
        target_logit = splat(ZERO)
        for c in range(C):
            v = load(z + FLOAT_BYTES * c * ldz + i) + bias[c]
            higher = v > peak
            best = select(higher, f32(c), best)
            peak = select(higher, v, peak)
            target_logit = select(label == f32(c), v, target_logit)
        right = right + select(known & (best == label), ONE, ZERO)

        smooth_logit = splat(ZERO)
        if spread > ZERO:
            for c in range(C):
                smooth_logit = smooth_logit + weights[c] * (
                    load(z + FLOAT_BYTES * c * ldz + i) + bias[c] - peak
                )
        total = splat(ZERO)
        for c in range(C):
            at = z + FLOAT_BYTES * c * ldz + i
            e = exp32(load(at) + bias[c] - peak)
            if need_gradient:
                store(e, at)
            total = total + e

        log_total = log32(total)
        target_weight = load(pull_lane + i) if head["weighted"] else select(known, ONE, ZERO)
        nll = target_weight * (log_total - (target_logit - peak))
        smooth = weight_sum * log_total - smooth_logit
        # A select, not a product: an ignored row may hold anything, even NaN.
        loss = loss + select(known, keep * nll + spread * smooth, ZERO)
        # dz = f e - pull [c = y] - spread w scale with f = (pull + spread sum w) scale / total.
        pull = keep * target_weight
        store((pull + spread * weight_sum) / total * scale, factor_lane + i)
        store(pull * scale, pull_lane + i)
    if not need_gradient:
        return np.float64(sum_of(loss)), np.int64(sum_of(right))

    for c in range(C):
        row = z + FLOAT_BYTES * c * ldz
        shift = spread * weights[c] * scale
        column = splat(ZERO)
        for i in range(0, FLOAT_BYTES * rows, FLOAT_BYTES * WIDTH):
            label = load(label_lane + i)
            d = load(row + i) * load(factor_lane + i) - shift
            # Subtract the target's part before summing the column; afterwards it would cancel against the sum.
            d = select(label == f32(c), d - load(pull_lane + i), d)
            if not all_known:
                d = select(label >= ZERO, d, ZERO)
            store(d, row + i)
            column = column + d
        bias_gradient[c] = sum_of(column)
    return np.float64(sum_of(loss)), np.int64(sum_of(right))


@helper
def two_class_tile(z, ldz, rows, bias, y, head, weights, need_gradient, scale, bias_gradient, lanes):
    """`softmax_tile` for C = 2: a function of z_1 - z_0 alone, with one exponential per row."""
    smoothing = f32(head["smoothing"])
    keep, spread = ONE - smoothing, smoothing * HALF
    weight0, weight1 = weights[0], weights[1]
    shift = bias[1] - bias[0]
    label_lane = lanes[0].ctypes.data
    _label_lanes(y, rows, head["ignore_index"], lanes[0])
    loss = splat(ZERO)
    right = splat(ZERO)
    column0 = splat(ZERO)
    column1 = splat(ZERO)
    for i in range(0, FLOAT_BYTES * rows, FLOAT_BYTES * WIDTH):
        at0, at1 = z + i, z + FLOAT_BYTES * ldz + i
        label = load(label_lane + i)
        known = label >= ZERO
        difference = load(at1) - load(at0) + shift
        positive = difference > ZERO
        u = exp32(ZERO - absolute(difference))
        tail, inverse = softplus_and_sigmoid(u)
        nll0 = tail + select(positive, difference, ZERO)
        nll1 = tail - select(positive, ZERO, difference)
        pull1 = select(label == ONE, keep * weight1, ZERO)
        pull0 = select(label == ZERO, keep * weight0, ZERO)
        # A select, not pull0 * nll0 + pull1 * nll1: a class masked out by a bias of -inf has an infinite nll.
        value = select(label == ONE, pull1 * nll1, pull0 * nll0)
        if spread > ZERO:
            value = value + spread * (weight0 * nll0 + weight1 * nll1)
        # A select, not a product: an ignored row may hold anything, even NaN.
        loss = loss + select(known, value, ZERO)
        right = right + select(label == select(positive, ONE, ZERO), ONE, ZERO)
        if need_gradient:
            p1 = select(positive, inverse, u * inverse)
            p0 = select(positive, u * inverse, inverse)
            mass = pull0 + pull1 + spread * (weight0 + weight1)
            d0 = select(known, (mass * p0 - pull0 - spread * weight0) * scale, ZERO)
            d1 = select(known, (mass * p1 - pull1 - spread * weight1) * scale, ZERO)
            store(d0, at0)
            store(d1, at1)
            column0 = column0 + d0
            column1 = column1 + d1
    bias_gradient[0] = sum_of(column0)
    bias_gradient[1] = sum_of(column1)
    return np.float64(sum_of(loss)), np.int64(sum_of(right))


@helper
def elementwise_tile(z, ldz, C, rows, bias, y, head, weights, need_gradient, scale, bias_gradient, lanes):
    """Like `softmax_tile`, for one head of an elementwise kind; y is (rows, C), NaN = missing."""
    kind, counted = head["kind"], head["counted"]
    options = (f32(head["number0"]), f32(head["number1"]), f32(head["number2"]), f32(head["number3"]))
    target_lane, seen_lane, wrong_lane = lanes[0].ctypes.data, lanes[1].ctypes.data, lanes[2].ctypes.data
    lanes[0, rows : -(-rows // WIDTH) * WIDTH] = np.nan
    lanes[1:, : -(-rows // WIDTH) * WIDTH] = ZERO
    loss = splat(ZERO)
    for c in range(C):
        for i in range(rows):
            lanes[0, i] = y[i, c]
        row = z + FLOAT_BYTES * c * ldz
        w = weights[c]
        column = splat(ZERO)
        for i in range(0, FLOAT_BYTES * rows, FLOAT_BYTES * WIDTH):
            target = load(target_lane + i)
            known = target == target
            value, d, hit = element_of(kind, load(row + i) + bias[c], target, w, options)
            if counted:
                store(select(known, ONE, load(seen_lane + i)), seen_lane + i)
                store(select(known & (hit < HALF), ONE, load(wrong_lane + i)), wrong_lane + i)
            loss = loss + select(known, value, ZERO)
            if need_gradient:
                d = select(known, d * scale, ZERO)
                store(d, row + i)
                column = column + d
        bias_gradient[c] = sum_of(column)
    right = splat(ZERO)
    for i in range(0, FLOAT_BYTES * rows, FLOAT_BYTES * WIDTH):
        right = right + select((load(seen_lane + i) > ZERO) & (load(wrong_lane + i) == ZERO), ONE, ZERO)
    return np.float64(sum_of(loss)), np.int64(sum_of(right))

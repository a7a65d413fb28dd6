"""The packed plan on a CPU: one GEMM for all heads' logits, one Numba loss pass, one GEMM a gradient.

Logits are kept transposed, (S, N): every loop of the loss pass then runs along N, contiguous and of one
length, so heads of 2 classes vectorise as well as heads of 2,000. A tile of rows stays in cache from its
maximum to its gradient.

For a softmax head with weights w, smoothing e and target y (torch.nn.functional.cross_entropy):
    loss_n = (1-e) w_y (lse - z_y) + e/C (sum_c w_c lse - sum_c w_c z_c),   lse = log sum_c exp z_c
    dz_c   = [(1-e) w_y + e/C sum_c w_c] p_c - (1-e) w_y [c = y] - e/C w_c
For a binary head with positive weights q (binary_cross_entropy_with_logits), l = 1 + (q-1) y:
    loss = (1-y) z + l (log1p exp(-|z|) + max(-z, 0)),   dz = (1-y) - l + l sigmoid(z)
Gradients leave unscaled: the task weight and 1/valid rows are folded into the small GEMM factors later.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from .layout import HeadLayout, Kind
from .numba_jit import (
    Kernel,
    bits_float,
    elementwise,
    float_bits,
    helper,
    pointer_to_float32,
    pointer_to_int64,
)
from .packed import PackedForward

SOFTMAX, BINARY, SQUARED, HUBER = (int(kind) for kind in Kind)

f32 = np.float32
ZERO, ONE, TWO, HALF = f32(0), f32(1), f32(2), f32(0.5)
LOG2_E, LN2_HIGH, LN2_LOW = f32(1.44269504), f32(0.693145752), f32(1.42860677e-6)
LN2 = f32(0.693147181)
EXP_UNDERFLOW = f32(-87.0)
SQRT2 = f32(1.41421356)
E2, E3, E4, E5, E6 = f32(0.5), f32(0.166666667), f32(0.0416666667), f32(0.00833333333), f32(0.00138888889)
A3, A5, A7, A9, A11, A13 = f32(1 / 3), f32(0.2), f32(1 / 7), f32(1 / 9), f32(1 / 11), f32(1 / 13)


@elementwise
def exp32(x):
    """exp(x) for x <= 88, as 2^n times a polynomial: plain arithmetic that vectorises, unlike libm."""
    clamped = EXP_UNDERFLOW if x < EXP_UNDERFLOW else x
    n = np.floor(clamped * LOG2_E + HALF)
    r = (clamped - n * LN2_HIGH) - n * LN2_LOW
    p = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
    power = bits_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))
    return ZERO if x < EXP_UNDERFLOW else p * power


@elementwise
def log32(x):
    """log(x) for normal x > 0: exponent, and the atanh series of a mantissa in [sqrt(1/2), sqrt(2))."""
    bits = float_bits(x)
    exponent = np.int32(np.int32(bits >> np.int32(23)) - np.int32(127))
    m = bits_float(np.int32((bits & np.int32(0x007FFFFF)) | np.int32(0x3F800000)))
    large = m > SQRT2
    m = m * HALF if large else m
    n = f32(exponent) + (ONE if large else ZERO)
    t = (m - ONE) / (m + ONE)
    q = t * t
    log_m = TWO * t * (ONE + q * (A3 + q * (A5 + q * (A7 + q * A9))))
    # The bit tricks know no NaN or infinity; a diverged row must stay visible.
    finite = n * LN2 + log_m
    return finite if x < f32(3.4e38) else x


@elementwise
def log1p32(u):
    """log(1 + u) for u in [0, 1], by the atanh series of u / (2 + u)."""
    t = u / (TWO + u)
    q = t * t
    series = ONE + q * (A3 + q * (A5 + q * (A7 + q * (A9 + q * (A11 + q * A13)))))
    return TWO * t * series


@helper
def softmax_tile(z, bias, y, first, rows, head, weights, need_gradient, bias_gradient):
    """One softmax head on rows first..first+rows: logits z (C, ld) without bias become their gradients.

    Returns (loss sum, denominator, rows classified right, targets outside [0, C)).
    """
    C = z.shape[0]
    last = first + rows
    smoothing = f32(head["smoothing"])
    keep = ONE - smoothing
    spread = smoothing / f32(C)
    weight_sum = f32(head["weight_sum"])

    peak = np.full(rows, -np.inf, np.float32)
    argmax = np.zeros(rows, np.int32)
    for c in range(C):
        row = z[c, first:last]
        b = bias[c]
        for i in range(rows):
            v = row[i] + b
            argmax[i] = np.int32(c) if v > peak[i] else argmax[i]
            peak[i] = v if v > peak[i] else peak[i]
            row[i] = v

    valid = np.zeros(rows, np.float32)
    target_weight = np.zeros(rows, np.float32)
    target_logit = np.zeros(rows, np.float32)
    denominator = 0.0
    correct = 0
    outside = 0
    for i in range(rows):
        target = y[first + i]
        if target == head["ignore_index"]:
            continue
        if target < 0 or target >= C:
            outside += 1
            continue
        valid[i] = ONE
        target_weight[i] = weights[target]
        target_logit[i] = z[target, first + i]
        denominator += np.float64(weights[target])
        correct += np.int64(argmax[i] == np.int32(target))

    smooth_logit = np.zeros(rows, np.float32)
    if spread > ZERO:
        for c in range(C):
            row = z[c, first:last]
            w = weights[c]
            for i in range(rows):
                smooth_logit[i] += w * (row[i] - peak[i])

    total = np.zeros(rows, np.float32)
    for c in range(C):
        row = z[c, first:last]
        for i in range(rows):
            e = exp32(row[i] - peak[i])
            row[i] = e
            total[i] += e

    loss = 0.0
    for i in range(rows):
        log_total = log32(total[i])
        nll = target_weight[i] * (log_total - (target_logit[i] - peak[i]))
        smooth = weight_sum * log_total - smooth_logit[i]
        # A select, not a product: a row that is ignored may hold anything, NaN included.
        loss += np.float64(keep * nll + spread * smooth) if valid[i] > ZERO else 0.0
    if not need_gradient:
        return loss, denominator, correct, outside

    for i in range(rows):
        total[i] = (keep * target_weight[i] + spread * weight_sum) / total[i]
        # Taken off before the columns are summed: afterwards it would cancel against their sum.
        if keep * target_weight[i] > ZERO:
            z[y[first + i], first + i] -= keep * target_weight[i] / total[i]
    for c in range(C):
        row = z[c, first:last]
        shift = spread * weights[c]
        column = ZERO
        for i in range(rows):
            d = row[i] * total[i] - shift if valid[i] > ZERO else ZERO
            row[i] = d
            column += d
        bias_gradient[c] = column
    return loss, denominator, correct, outside


@helper
def elementwise_tile(z, bias, y, first, rows, head, weights, need_gradient, bias_gradient):
    """One binary, squared or Huber head on rows first..first+rows; y is (N, C), NaN = missing.

    Returns (loss sum, valid elements, rows whose every valid label is right, 0).
    """
    C = z.shape[0]
    last = first + rows
    kind = head["kind"]
    delta = f32(head["delta"])
    seen = np.zeros(rows, np.int32)
    wrong = np.zeros(rows, np.int32)
    loss = 0.0
    count = 0
    for c in range(C):
        row = z[c, first:last]
        b = bias[c]
        w = weights[c]
        column = ZERO
        for i in range(rows):
            target = y[first + i, c]
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
            loss += 0.0 if missing else np.float64(value)
            d = ZERO if missing else d
            count += np.int64(not missing)
            seen[i] |= np.int32(not missing)
            wrong[i] |= np.int32(miss and not missing)
            column += d
            if need_gradient:
                row[i] = d
        bias_gradient[c] = column
    correct = 0
    for i in range(rows):
        correct += np.int64(seen[i] == 1 and wrong[i] == 0)
    return loss, np.float64(count), correct, 0


def _segment_loss(logits, bias, n_rows, tile_rows, heads, column_weights, targets, need_gradient):
    """Losses (K,), scale (K,), correct (K,), targets outside their classes (K,) and bias gradient (S,).

    Every tile of rows leaves partial sums, which are added in the order of tiles whoever computed them.
    """
    K, S = len(heads), len(bias)
    n_tiles = -(-n_rows // tile_rows)
    loss_tk = np.zeros((n_tiles, K))
    denominator_tk = np.zeros((n_tiles, K))
    correct_tk = np.zeros((n_tiles, K), np.int64)
    outside_tk = np.zeros((n_tiles, K), np.int64)
    bias_gradient_ts = np.zeros((n_tiles, S), np.float32)
    for t in numba.prange(n_tiles):
        first = t * tile_rows
        rows = min(tile_rows, n_rows - first)
        for k in range(K):
            head = heads[k]
            a = head["offset"]
            b = a + head["size"]
            if head["kind"] == SOFTMAX:
                y = numba.carray(pointer_to_int64(targets[k]), (n_rows,))
                loss, denominator, correct, outside = softmax_tile(
                    logits[a:b], bias[a:b], y, first, rows, head, column_weights[a:b], need_gradient,
                    bias_gradient_ts[t, a:b],
                )  # fmt: skip
            else:
                y2 = numba.carray(pointer_to_float32(targets[k]), (n_rows, head["size"]))
                loss, denominator, correct, outside = elementwise_tile(
                    logits[a:b], bias[a:b], y2, first, rows, head, column_weights[a:b], need_gradient,
                    bias_gradient_ts[t, a:b],
                )  # fmt: skip
            loss_tk[t, k] = loss
            denominator_tk[t, k] = denominator
            correct_tk[t, k] = correct
            outside_tk[t, k] = outside

    losses = np.zeros(K, np.float32)
    scale = np.zeros(K, np.float32)
    correct_k = np.zeros(K, np.int64)
    outside_k = np.zeros(K, np.int64)
    for k in range(K):
        loss_sum = 0.0
        denominator_sum = 0.0
        for t in range(n_tiles):
            loss_sum += loss_tk[t, k]
            denominator_sum += denominator_tk[t, k]
            correct_k[k] += correct_tk[t, k]
            outside_k[k] += outside_tk[t, k]
        if denominator_sum > 0.0:
            losses[k] = loss_sum / denominator_sum
            scale[k] = 1.0 / denominator_sum
    bias_gradient = np.zeros(S, np.float32)
    for t in range(n_tiles):
        for s in range(S):
            bias_gradient[s] += bias_gradient_ts[t, s]
    return losses, scale, correct_k, outside_k, bias_gradient


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
    ]
)


class _HeadTable(NamedTuple):
    """A layout as the arrays that the loss pass reads."""

    records: np.ndarray  # (K,) of HEAD_RECORD
    column_weights: np.ndarray  # (S,) float32
    no_bias: np.ndarray  # (S,) float32 zeros
    tile_rows: int


@lru_cache(maxsize=256)
def _head_table(layout: HeadLayout) -> _HeadTable:
    records = np.array(
        [
            (head.kind, first, head.size, head.ignore_index, head.label_smoothing, head.delta,
             sum(head.column_weights))
            for first, _, head in layout
        ],
        HEAD_RECORD,
    )  # fmt: skip
    columns = np.array([w for head in layout.heads for w in head.column_weights], np.float32)
    # The widest head's tile is swept four times: keep it within about a quarter of a 2 MiB cache, and
    # keep 16 rows, one cache line, at the least.
    widest = max(head.size for head in layout.heads)
    tile_rows = max(16, min(256, (1 << 17) // widest // 16 * 16))
    return _HeadTable(records, columns, np.zeros_like(columns), tile_rows)


# Below this many logits the start of a parallel region costs more than it saves.
PARALLEL_LOGITS = 1 << 15


def residual(n_rows: int, width: int, dtype: torch.dtype) -> tuple[tuple[int, int], torch.dtype]:
    """Shape and dtype of the logit gradient that forward hands to backward: (S, N padded), float32.

    The padding keeps the rows of a tile, one leading dimension apart, from falling into the same cache
    sets, as they would for every power of two.
    """
    return (width, n_rows + 16), torch.float32


def packed_forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    layout: HeadLayout,
    *,
    need_gradient: bool,
) -> PackedForward:
    """Losses of all heads, and the unscaled gradient of their logits; see PackedForward for shapes.

    bfloat16 and float16 are computed in float32: a CPU gains nothing from rounding the logits.
    Raises ValueError for a class target outside [0, C) that is not ignore_index.
    """
    n_rows, S = features.shape[0], layout.width
    table = _head_table(layout)
    shape, dtype = residual(n_rows, S, features.dtype)
    logits = torch.empty(shape, dtype=dtype)
    logits[:, n_rows:] = 0.0  # an output of the custom op, which must hold the same values every time
    torch.mm(weight.float(), features.float().t(), out=logits[:, :n_rows])

    held = [_kernel_target(t, head.kind) for t, head in zip(targets, layout.heads, strict=True)]
    losses, scale, correct, outside, bias_gradient = segment_loss(
        logits.numpy(),
        table.no_bias if bias is None else bias.detach().float().contiguous().numpy(),
        n_rows,
        table.tile_rows,
        table.records,
        table.column_weights,
        np.array([target.data_ptr() for target in held], np.int64),
        need_gradient,
        parallel=n_rows > table.tile_rows and n_rows * S >= PARALLEL_LOGITS,
    )
    if outside.any():
        _refuse_outside(held, layout, int(np.flatnonzero(outside)[0]))
    return PackedForward(
        losses=torch.from_numpy(losses),
        scale=torch.from_numpy(scale),
        correct=torch.from_numpy(correct),
        logit_gradient=logits if need_gradient else None,
        bias_gradient=torch.from_numpy(bias_gradient) if need_gradient else None,
    )


def packed_backward(
    features: Tensor,
    weight: Tensor,
    logit_gradient: Tensor,
    bias_gradient: Tensor,
    column_scale: Tensor,
    needs: tuple[bool, bool, bool],
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(d_features, d_weight, d_bias), each None where `needs` is False; column_scale is (S,) float32."""
    dz = logit_gradient[:, : features.shape[0]]
    d_features = d_weight = d_bias = None
    if needs[0]:
        d_features = torch.mm(dz.t(), column_scale[:, None] * weight.float()).to(features.dtype)
    if needs[1]:
        d_weight = torch.mm(dz, features.float()).mul_(column_scale[:, None]).to(weight.dtype)
    if needs[2]:
        d_bias = (column_scale * bias_gradient).to(bias_dtype)
    return d_features, d_weight, d_bias


def _kernel_target(target: Tensor, kind: Kind) -> Tensor:
    dtype = torch.int64 if kind is Kind.SOFTMAX else torch.float32
    return target.to(dtype).contiguous()


def _refuse_outside(targets: Sequence[Tensor], layout: HeadLayout, k: int) -> None:
    head, target = layout.heads[k], targets[k]
    bad = target[(target != head.ignore_index) & ((target < 0) | (target >= head.size))]
    raise ValueError(
        f"targets of {layout.names[k]}: {bad[0].item()} lies outside [0, {head.size}) "
        f"and is not ignore_index {head.ignore_index}"
    )

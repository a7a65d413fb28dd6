"""The chunked plan on a CPU: vocabulary-sized softmax heads, in chunks of rows whose logits all splits share.

A tile's logits would not fit a cache, nor would a weight gradient for every split of the rows. So splits divide the
outputs, not the rows: each has a range of classes, with their logits z (classes, rows) and their rows of the weight
gradient, and passes over them three times per chunk: logits and maximum; exponentials and sum; gradients. Between the
passes the splits' maxima and sums are combined in the order of splits. The chunk's logits are the only large buffer,
and are reused. The other heads of the layout take the tile plan.
"""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from ...machine.elementary import ONE, ZERO, exp32, log32
from ...machine.gemm import PANEL
from ...machine.jit import helper, pointer_to_float32, pointer_to_int64
from ...machine.simd import FLOAT_BYTES, WIDTH, load, select, splat, store, sum_of
from ...machine.team import Kernel, in_parallel, splits_of
from ..call import Forward, HeadsCall
from ..kind import Kind
from .loss_pass import INFINITY
from .passes import (
    RESIDUAL_IS_GRADIENT,
    Batch,
    Outputs,
    backward,
    kernel_tensor,
    passes,
    residual_like,
    survey_batch,
)
from .stages import (
    OUTPUTS,
    SKEW,
    add_weight_gradient,
    feature_gradient,
    load_rows,
    logits,
    pack_for_features,
    pack_for_logits,
    round_up,
    scratch,
    store_rows,
)
from .tile import LEAST_PRODUCTS, run_passes

__all__ = ["RESIDUAL_IS_GRADIENT", "backward", "chunk_rows", "forward", "residual_like"]

f32 = np.float32
VECTOR_BYTES = FLOAT_BYTES * WIDTH

# Heads wider than this take this plan; the other heads of the layout take the tile plan.
WIDE_HEAD = 1024
# Limit for the logits of a chunk, unless it is less than one vector of rows.
LOGITS_BYTES = 64 << 20
MOST_ROWS = 128

# Rows of the lanes: per-row values of a split, or of the chunk.
PEAK, BEST, TARGET_LOGIT, TOTAL, SMOOTH, LABEL, FACTOR, PULL = range(8)
N_LANES = 8


@helper
def _label_rows(target, total_rows, row_ids, first, rows, ignore_index, lanes):
    """Store the chunk's targets as float32 in lanes[LABEL]; -1 = none, also past the last row."""
    y = numba.carray(pointer_to_int64(target), (total_rows,))
    for i in range(rows):
        label = y[row_ids[first + i] if len(row_ids) else first + i]
        lanes[LABEL, i] = f32(label) if label != ignore_index else -ONE
    lanes[LABEL, rows:] = -ONE


@helper
def _classes_of_split(p, n_splits, C):
    """Return the classes (first, last) of split p: whole panels."""
    n_panels = -(-C // PANEL)
    return p * n_panels // n_splits * PANEL, min(C, (p + 1) * n_panels // n_splits * PANEL)


@helper
def _logits_and_peaks(p, h, rows, D, weight, bias, z, packed_p, product_p, lanes_p, joint):
    """Compute the logits of a split's classes.

    Store their maximum, argmax and target logit per row in the split's lanes.
    """
    first_class, last_class = _classes_of_split(p, len(lanes_p), len(weight))
    packed, product, lanes = packed_p[p], product_p[p * WIDTH : (p + 1) * WIDTH], lanes_p[p]
    ldz, labels = z.shape[1], joint[LABEL].ctypes.data
    for i in range(0, FLOAT_BYTES * rows, VECTOR_BYTES):
        store(splat(-INFINITY), lanes[PEAK].ctypes.data + i)
        store(splat(ZERO), lanes[BEST].ctypes.data + i)
        store(splat(ZERO), lanes[TARGET_LOGIT].ctypes.data + i)
    for first in range(first_class, last_class, PANEL):
        n_outputs = min(PANEL, last_class - first)
        panel = z[first].ctypes.data
        pack_for_logits(weight, first, n_outputs, packed)
        logits(h.ctypes.data, h.shape[1], rows, D, PANEL, packed.ctypes.data, product.ctypes.data, panel, ldz)
        for i in range(0, FLOAT_BYTES * rows, VECTOR_BYTES):
            peak = load(lanes[PEAK].ctypes.data + i)
            best = load(lanes[BEST].ctypes.data + i)
            target_logit = load(lanes[TARGET_LOGIT].ctypes.data + i)
            label = load(labels + i)
            for c in range(n_outputs):
                v = load(panel + FLOAT_BYTES * c * ldz + i) + bias[first + c]
                higher = v > peak
                best = select(higher, f32(first + c), best)
                peak = select(higher, v, peak)
                target_logit = select(label == f32(first + c), v, target_logit)
            store(peak, lanes[PEAK].ctypes.data + i)
            store(best, lanes[BEST].ctypes.data + i)
            store(target_logit, lanes[TARGET_LOGIT].ctypes.data + i)


@helper
def _join_peaks(lanes_p, lanes):
    """Combine the splits: the first maximum over all classes, and the target's logit, which exactly one split holds."""
    for i in range(lanes.shape[1]):
        peak, best, target_logit = lanes_p[0, PEAK, i], lanes_p[0, BEST, i], lanes_p[0, TARGET_LOGIT, i]
        for p in range(1, len(lanes_p)):
            if lanes_p[p, PEAK, i] > peak:
                peak, best = lanes_p[p, PEAK, i], lanes_p[p, BEST, i]
            target_logit += lanes_p[p, TARGET_LOGIT, i]
        lanes[PEAK, i], lanes[BEST, i], lanes[TARGET_LOGIT, i] = peak, best, target_logit


@helper
def _exponentials(p, z, rows, C, bias, weights, smooth, need_gradient, joint, lanes_p):
    """Turn logits of a split's classes into exp(z - peak); store their sums per row in the split's lanes."""
    first_class, last_class = _classes_of_split(p, len(lanes_p), C)
    lanes = lanes_p[p]
    peaks = joint[PEAK].ctypes.data
    for i in range(0, FLOAT_BYTES * rows, VECTOR_BYTES):
        store(splat(ZERO), lanes[TOTAL].ctypes.data + i)
        store(splat(ZERO), lanes[SMOOTH].ctypes.data + i)
    for first in range(first_class, last_class, PANEL):
        last = min(first + PANEL, last_class)
        for i in range(0, FLOAT_BYTES * rows, VECTOR_BYTES):
            peak = load(peaks + i)
            total = load(lanes[TOTAL].ctypes.data + i)
            smooth_logit = load(lanes[SMOOTH].ctypes.data + i)
            for c in range(first, last):
                at = z[c].ctypes.data + i
                v = load(at) + bias[c] - peak
                e = exp32(v)
                if need_gradient:
                    store(e, at)
                total = total + e
                if smooth:
                    smooth_logit = smooth_logit + v * weights[c]
            store(total, lanes[TOTAL].ctypes.data + i)
            store(smooth_logit, lanes[SMOOTH].ctypes.data + i)


@helper
def _losses(lanes_p, lanes, rows, head, weights, scale):
    """Return (loss sum, correct rows) of a chunk; store factor and pull of every row for the gradients."""
    keep = ONE - f32(head["smoothing"])
    spread = f32(head["smoothing"]) / f32(head["size"])
    weight_sum = f32(head["weight_sum"])
    for i in range(lanes.shape[1]):
        total, smooth_logit = ZERO, ZERO
        for p in range(len(lanes_p)):
            total += lanes_p[p, TOTAL, i]
            smooth_logit += lanes_p[p, SMOOTH, i]
        lanes[TOTAL, i], lanes[SMOOTH, i] = total, smooth_logit
        label = lanes[LABEL, i]
        lanes[PULL, i] = keep * weights[np.int64(label)] if label >= ZERO else ZERO
    loss = splat(ZERO)
    right = splat(ZERO)
    for i in range(0, FLOAT_BYTES * rows, VECTOR_BYTES):
        label, pull = load(lanes[LABEL].ctypes.data + i), load(lanes[PULL].ctypes.data + i)
        total = load(lanes[TOTAL].ctypes.data + i)
        log_total = log32(total)
        distance = load(lanes[TARGET_LOGIT].ctypes.data + i) - load(lanes[PEAK].ctypes.data + i)
        smooth = weight_sum * log_total - load(lanes[SMOOTH].ctypes.data + i)
        known = label >= ZERO
        # A select, not a product: an ignored row may hold anything, even NaN.
        loss = loss + select(known, pull * (log_total - distance) + spread * smooth, ZERO)
        right = right + select(known & (label == load(lanes[BEST].ctypes.data + i)), ONE, ZERO)
        store((pull + spread * weight_sum) / total * scale, lanes[FACTOR].ctypes.data + i)
        store(pull * scale, lanes[PULL].ctypes.data + i)
    return np.float64(sum_of(loss)), np.int64(sum_of(right))


@helper
def _scale_gradients(z, rows, first, last, weights, shift, lanes, d_bias):
    """Turn exp(z - peak) of classes first..last into the gradient of the logits; add its row sums to d_bias."""
    for c in range(first, last):
        row = z[c].ctypes.data
        shift_c = shift * weights[c]
        column = splat(ZERO)
        for i in range(0, FLOAT_BYTES * rows, VECTOR_BYTES):
            label = load(lanes[LABEL].ctypes.data + i)
            d = load(row + i) * load(lanes[FACTOR].ctypes.data + i) - shift_c
            d = select(label == f32(c), d - load(lanes[PULL].ctypes.data + i), d)
            d = select(label >= ZERO, d, ZERO)
            store(d, row + i)
            column = column + d
        d_bias[c] += sum_of(column)


@helper
def _gradients(
    p, h, z, rows, D, weight, weights, shift, lanes, d_features_p, packed_p, d_weight, d_weight_block_p, add, d_bias,
):  # fmt: skip
    """Compute a split's rows of d_weight and d_bias, and its share of the feature gradient (rows, ldh)."""
    n_splits = len(packed_p)
    first_class, last_class = _classes_of_split(p, n_splits, len(weight))
    packed, d_features = packed_p[p], d_features_p[p * (len(d_features_p) // n_splits) :]
    d_weight_block = d_weight_block_p[p * round_up(OUTPUTS, PANEL) : (p + 1) * round_up(OUTPUTS, PANEL)]
    ldz, ldh, ldw = z.shape[1], h.shape[1], d_weight_block.shape[1]
    if first_class >= last_class:
        d_features[:rows] = ZERO  # fewer panels than splits
    for first in range(first_class, last_class, OUTPUTS):
        last = min(first + OUTPUTS, last_class)
        block = z[first].ctypes.data
        _scale_gradients(z, rows, first, last, weights, shift, lanes, d_bias)
        if d_weight:
            d_weight_block[:] = ZERO
            add_weight_gradient(
                block, ldz, h.ctypes.data, ldh, rows, last - first, D, d_weight_block.ctypes.data, ldw
            )
            for c in range(first, last):
                row = numba.carray(pointer_to_float32(d_weight + FLOAT_BYTES * c * D), (D,))
                if add:
                    row += d_weight_block[c - first, :D]
                else:
                    row[:] = d_weight_block[c - first, :D]
        if len(d_features):
            pack_for_features(weight, first, last - first, packed)
            feature_gradient(
                block,
                ldz,
                rows,
                last - first,
                D,
                packed.ctypes.data,
                d_features.ctypes.data,
                ldh,
                first > first_class,
            )


@helper
def _add_splits(x_p, n_splits, rows):
    """Add the first `rows` rows of the other splits to those of the first split."""
    for p in range(1, n_splits):
        first = p * (len(x_p) // n_splits)
        for i in range(rows):
            for d in range(x_p.shape[1]):
                x_p[i, d] += x_p[first + i, d]


def _wide_head(
    team, features, D, row_ids, total_rows, weight_address, bias_address, head, weights, target, scale, chunk_rows,
    n_splits, need_gradient, d_features, add, d_weight, d_bias,
):  # fmt: skip
    """Return (loss sum, correct rows) of one softmax head; write its gradients.

    features, d_features (total_rows, D), weight, d_weight (C, D), bias (C,): addresses of float32; 0 = not wanted.
    weights, d_bias (C,): arrays. target: address of (total_rows,) int64.
    row_ids: the rows to compute, empty = all.
    d_features is written, or added to with `add`; d_weight is written, d_bias added to.
    """
    C = head["size"]
    weight = numba.carray(pointer_to_float32(weight_address), (C, D))
    bias = numba.carray(pointer_to_float32(bias_address), (C,))
    n_rows = len(row_ids) if len(row_ids) else total_rows
    padded_rows = round_up(chunk_rows, WIDTH)
    ldz = padded_rows + SKEW
    h = scratch(padded_rows, round_up(D, WIDTH) + SKEW)
    ldh = h.shape[1]
    h[:, D:] = ZERO
    z = scratch(round_up(C, PANEL), ldz)
    lanes = scratch(N_LANES, padded_rows)
    lanes_p = scratch(n_splits * N_LANES, padded_rows).reshape((n_splits, N_LANES, padded_rows))
    d_features_p = scratch(n_splits * padded_rows if d_features else 0, ldh)
    packed_p = scratch(n_splits, max(PANEL, OUTPUTS) * round_up(D, PANEL))
    product_p = scratch(n_splits * WIDTH, PANEL)
    d_weight_block_p = scratch(n_splits * round_up(OUTPUTS, PANEL), ldh)
    smooth = head["smoothing"] > 0.0
    shift = f32(head["smoothing"]) / f32(C) * scale
    loss, right = 0.0, 0
    for first in range(0, n_rows, chunk_rows):
        rows = min(chunk_rows, n_rows - first)
        load_rows(h, features, D, row_ids, first, rows)
        _label_rows(target, total_rows, row_ids, first, rows, head["ignore_index"], lanes)
        in_parallel(
            team,
            n_splits,
            _logits_and_peaks,
            (h, rows, D, weight, bias, z, packed_p, product_p, lanes_p, lanes),
        )
        _join_peaks(lanes_p, lanes)
        in_parallel(
            team, n_splits, _exponentials, (z, rows, C, bias, weights, smooth, need_gradient, lanes, lanes_p)
        )
        chunk_loss, chunk_right = _losses(lanes_p, lanes, rows, head, weights, scale)
        loss += chunk_loss
        right += chunk_right
        if not need_gradient:
            continue
        in_parallel(team, n_splits, _gradients, (
            h, z, rows, D, weight, weights, shift, lanes, d_features_p, packed_p, d_weight, d_weight_block_p, first > 0,
            d_bias,
        ))  # fmt: skip
        if d_features:
            _add_splits(d_features_p, n_splits, rows)
            store_rows(d_features_p, d_features, D, row_ids, first, rows, add)
    return loss, right


wide_head = Kernel(_wide_head, beside_torch=True)


# --- the plan --------------------------------------------------------------------------------------------


def forward(call: HeadsCall) -> Forward:
    """Compute the losses of all heads; the residual is the gradients of the total that `needs` asks for.

    Uses LOGITS_BYTES of memory besides inputs and gradients, whatever N. bfloat16 and float16 are computed in float32.
    Raises ValueError for a class target outside [0, C) that is not ignore_index.
    """
    batch = survey_batch(call.targets, call.task_weights, call.layout, call.skip_zero_weights)
    heads = batch.computed()
    wide = (heads["kind"] == Kind.SOFTMAX.code) & (heads["size"] > WIDE_HEAD)
    features, weight = kernel_tensor(call.features), kernel_tensor(call.weight)
    bias = batch.table.no_bias if call.bias is None else kernel_tensor(call.bias)
    outputs = Outputs(len(batch.way), features, weight, bias, call.needs)
    if not batch.all_rows_only:
        outputs.zero()
    if not wide.all():
        run_passes(batch, heads[~wide], features, weight, bias, outputs)
    if wide.any():
        for of_heads, rows in passes(batch, heads[wide]):
            for head in of_heads:
                _run_head(batch, head, rows, features, weight, bias, outputs)
    return outputs.forward()


def chunk_rows(n_rows: int, size: int) -> int:
    """Number of rows whose logits are held at a time: even chunks within LOGITS_BYTES, in whole vectors."""
    most = min(MOST_ROWS, max(WIDTH, LOGITS_BYTES // (FLOAT_BYTES * size) // WIDTH * WIDTH))
    n_chunks = -(-n_rows // most)
    return -(-n_rows // (n_chunks * WIDTH)) * WIDTH


def _run_head(
    batch: Batch,
    head: np.void,
    rows: np.ndarray,
    features: Tensor,
    weight: Tensor,
    bias_s: Tensor,
    outputs: Outputs,
) -> None:
    table, D = batch.table, features.shape[1]
    k = int(head["index"])
    of_head = slice(int(head["offset"]), int(head["offset"] + head["size"]))
    d_bias_c = (
        np.from_dlpack(outputs.d_bias)[of_head]
        if outputs.d_bias.numel()
        else np.empty(head["size"], np.float32)
    )
    d_bias_c[:] = 0.0
    if len(rows):
        outputs.zero_features()
    size = int(head["size"])
    rows_a_chunk = chunk_rows(len(rows) or batch.n_rows, size)
    n_splits = splits_of(rows_a_chunk * size * D, LEAST_PRODUCTS)
    loss_sum, correct = wide_head(
        features.data_ptr(), D, rows, batch.n_rows, weight[of_head].data_ptr(), bias_s[of_head].data_ptr(), head,
        table.column_weights[of_head], batch.addresses[k], batch.gradient_scale[k],
        rows_a_chunk, n_splits, outputs.wanted, outputs.d_features.data_ptr(),
        outputs.features_written, outputs.d_weight[of_head].data_ptr(), d_bias_c,
    )  # fmt: skip
    outputs.features_written = True
    outputs.losses[k] = loss_sum * float(batch.scale[k])
    outputs.correct[k] = correct

"""The tile plan on a CPU: one kernel computes logits, losses and all gradients of a tile of rows while it is in cache.

A split takes every tile of its rows through four stages: logits of all heads, transposed into z (S, rows); the loss
pass, which turns z into its gradient; the tile's share of the weight gradient, added to the split's own (S, D); and the
tile's feature gradient, written once. The splits' sums are added in the order of splits: the same call on the same
number of threads gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from ...machine.elementary import ZERO
from ...machine.gemm import BLOCK_ROWS, PANEL, copy_floats
from ...machine.jit import address_of, helper, pointer_to_float32, pointer_to_int64
from ...machine.simd import FLOAT_BYTES, WIDTH
from ...machine.team import Kernel, in_parallel, threads_of
from ..call import Apart, Forward, HeadsCall, Needs, Whole
from ..layout import HeadLayout
from .loss_pass import LANES, SOFTMAX, elementwise_tile, softmax_tile, two_class_tile
from .passes import (
    COMPACTED_PASS_LOGITS,
    COMPACTED_ROW_LOGITS,
    NO_ROWS_LEFT_OUT,
    RESIDUAL_IS_GRADIENT,
    Batch,
    Outputs,
    backward,
    float_empty,
    head_table,
    kernel_tensor,
    passes,
    refusal,
    residual_like,
    take_targets,
)
from .stages import (
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
    tile_buffers,
)
from .targets import ALL_ROWS, survey

__all__ = ["RESIDUAL_IS_GRADIENT", "at_once", "backward", "forward", "forward_apart", "residual_like"]


# A thread's part of a tile, features and logits, stays within about half of a 1 MiB cache.
TILE_FLOATS = 1 << 17
LEAST_ROWS, MOST_ROWS = 32, 192
# Least multiply-adds for a piece's logits, about 10 us: below that, another piece costs more than it saves.
LEAST_PRODUCTS = 1 << 18


def tile_rows(n_rows: int, floats_a_row: int, n_splits: int) -> int:
    """Number of rows of a tile: as many as fit the cache, in tiles that divide evenly among the threads."""
    most = max(LEAST_ROWS, min(MOST_ROWS, TILE_FLOATS // floats_a_row))
    n_tiles = -(-n_rows // (most * n_splits)) * n_splits
    return max(WIDTH, -(-n_rows // (n_tiles * WIDTH)) * WIDTH)


_tile_rows = helper(tile_rows)


@helper
def _classes_of(target, total_rows, row_ids, first, rows, gathered):
    """Return the tile's class targets (rows,)."""
    y = numba.carray(pointer_to_int64(target), (total_rows,))
    if len(row_ids) == 0:
        return y[first : first + rows]
    for i in range(rows):
        gathered[i] = y[row_ids[first + i]]
    return gathered[:rows]


@helper
def _values_of(target, C, total_rows, row_ids, first, rows):
    """Return the tile's float targets (rows, C)."""
    y = numba.carray(pointer_to_float32(target), (total_rows, C))
    if len(row_ids) == 0:
        return y[first : first + rows]
    gathered = np.empty((rows, C), np.float32)
    for i in range(rows):
        for c in range(C):
            gathered[i, c] = y[row_ids[first + i], c]
    return gathered


@helper
def loss_tile(
    z, bias, heads, columns, column_weights, targets, total_rows, row_ids, first, rows, scale, need_gradient,
    loss_k, correct_k, bias_gradient_s, tile_bias_gradient, gathered, lanes,
):  # fmt: skip
    """Turn z (S, rows) into its gradient; add up the tile's losses, hits and bias gradient."""
    ldz = z.shape[1]
    for k in range(len(heads)):
        head = heads[k]
        target, scale_k = targets[head["index"]], scale[head["index"]]
        C, a, first_column = head["size"], head["offset"], columns[k]
        z_c = z.ctypes.data + FLOAT_BYTES * first_column * ldz
        bias_c, weights_c = bias[a : a + C], column_weights[a : a + C]
        gradient_c = tile_bias_gradient[:C]
        if head["kind"] == SOFTMAX:
            y = _classes_of(target, total_rows, row_ids, first, rows, gathered)
            if C == 2:
                loss, hits = two_class_tile(
                    z_c, ldz, rows, bias_c, y, head, weights_c, need_gradient, scale_k, gradient_c, lanes
                )
            else:
                loss, hits = softmax_tile(
                    z_c, ldz, C, rows, bias_c, y, head, weights_c, need_gradient, scale_k, gradient_c, lanes
                )
        else:
            values = _values_of(target, C, total_rows, row_ids, first, rows)
            loss, hits = elementwise_tile(
                z_c, ldz, C, rows, bias_c, values, head, weights_c, need_gradient, scale_k, gradient_c, lanes
            )
        loss_k[k] += loss
        correct_k[k] += hits
        for c in range(C):
            bias_gradient_s[first_column + c] += gradient_c[c]


@helper
def columns_of(heads):
    """Return the first output of each of these heads when packed alone, and the end of the last one, (K + 1,)."""
    columns = np.zeros(len(heads) + 1, np.int64)
    for k in range(len(heads)):
        columns[k + 1] = columns[k] + heads[k]["size"]
    return columns


@helper
def head_panels(S, D, for_features_too):
    """Allocate the panels of S rows of heads: (for logits (panels, D * PANEL), for features (panels, S * PANEL))."""
    return scratch(-(-S // PANEL), D * PANEL), scratch(-(-D // PANEL) if for_features_too else 0, S * PANEL)


@helper
def pack_heads(weights, D, heads, columns, for_logits, for_features):
    """Pack the heads' rows into `head_panels`. weights (K,): the addresses of every head's rows (C, D)."""
    S = columns[-1]
    parts = np.zeros(2 if for_features.size else 1, np.int64)
    parts[-1] = S if for_features.size else 0
    pack_parts(weights, D, heads, columns, parts, for_logits, for_features)


@helper
def pack_parts(weights, D, heads, columns, parts, for_logits, for_features):
    """`pack_heads`, for a feature gradient of each part of the outputs, one part after another.

    parts (n + 1,): the first output of each of them, and the end of the last one.
    """
    S = columns[-1]
    rows = scratch(S, D)
    for k in range(len(heads)):
        copy_floats(weights[k], rows[columns[k]].ctypes.data, heads[k]["size"] * D)
    for panel in range(len(for_logits)):
        pack_for_logits(rows, panel * PANEL, min(PANEL, S - panel * PANEL), for_logits[panel])
    flat = for_features.reshape(for_features.size)
    for i in range(len(parts) - 1):
        first, last = parts[i], parts[i + 1]
        pack_for_features(rows, first, last - first, flat[first * width_of(D) : last * width_of(D)])


@helper
def width_of(D):
    """Return the floats of one output in the panels for features."""
    return -(-D // PANEL) * PANEL


@helper
def _feature_gradients(heads, columns, d_features, d_features_apart):
    """Return (parts, addresses): the gradients of features to write, as `pack_parts` and `_run_split` take them."""
    K = len(heads)
    n_parts = K if len(d_features_apart) else np.int64(d_features != 0)
    parts, addresses = np.zeros(n_parts + 1, np.int64), np.zeros(n_parts, np.int64)
    for i in range(n_parts):
        apart = len(d_features_apart) > 0
        parts[i + 1] = columns[i + 1] if apart else columns[K]
        addresses[i] = d_features_apart[heads[i]["index"]] if apart else d_features
    return parts, addresses


@helper
def _run_split(
    p, features, D, row_ids, n_rows, total_rows, for_logits, for_features, bias, heads, columns, column_weights,
    targets, scale, tile_rows, need_gradient, parts, d_features_of, add, d_weight_ps, loss_pk, correct_pk,
    bias_gradient_ps,
):  # fmt: skip
    """Process split p of the rows, tile by tile. d_features_of (n,): the address of the gradient of each part."""
    n_splits, n_tiles = len(loss_pk), -(-n_rows // tile_rows)
    first_row, last_row = (
        p * n_tiles // n_splits * tile_rows,
        min(n_rows, (p + 1) * n_tiles // n_splits * tile_rows),
    )
    d_weight = rows_of_split(d_weight_ps, p, n_splits)
    loss_k, correct_k, bias_gradient_s = loss_pk[p], correct_pk[p], bias_gradient_ps[p]
    S = columns[-1]
    h, z, product = tile_buffers(tile_rows, D, S)
    ldh, ldz = h.shape[1], z.shape[1]
    h_address, z_address = h.ctypes.data, z.ctypes.data
    h_for_gradient, panels = address_of(h), address_of(for_features)
    lanes = scratch(LANES, round_up(tile_rows, WIDTH))
    gathered = np.empty(tile_rows, np.int64)
    tile_bias_gradient = np.zeros(S, np.float32)
    for first in range(first_row, last_row, tile_rows):
        rows = min(tile_rows, last_row - first)
        load_rows(h, features, D, row_ids, first, rows)
        logits(h_address, ldh, rows, D, S, for_logits.ctypes.data, product.ctypes.data, z_address, ldz)
        loss_tile(
            z, bias, heads, columns, column_weights, targets, total_rows, row_ids, first, rows, scale,
            need_gradient, loss_k, correct_k, bias_gradient_s, tile_bias_gradient, gathered, lanes,
        )  # fmt: skip
        if len(d_weight):
            add_weight_gradient(
                z_address, ldz, h_address, ldh, rows, S, D, d_weight.ctypes.data, d_weight.shape[1]
            )
        whole = rows % BLOCK_ROWS == 0 and D % WIDTH == 0 and len(row_ids) == 0 and not add
        for i in range(len(d_features_of)):
            d_features, outputs = d_features_of[i], parts[i + 1] - parts[i]
            z_i = z_address + FLOAT_BYTES * parts[i] * ldz
            panels_i = panels + FLOAT_BYTES * parts[i] * width_of(D)
            # If not in place: the features of the tile are no longer needed, and their gradient overwrites them.
            target = d_features + FLOAT_BYTES * first * D if whole else h_for_gradient
            feature_gradient(z_i, ldz, rows, outputs, D, panels_i, target, D if whole else ldh, False)
            if not whole:
                store_rows(h, d_features, D, row_ids, first, rows, add)


@helper
def rows_of_split(x_ps, p, n_splits):
    """Return split p's part of the partial sums (n_splits * S, ld), set to 0; empty if there are none."""
    S = len(x_ps) // n_splits
    x_s = x_ps[p * S : (p + 1) * S]
    for s in range(S):
        for d in range(x_s.shape[1]):
            x_s[s, d] = ZERO
    return x_s


def _tile_pass(
    team, features, D, row_ids, total_rows, weight, bias_address, heads, column_weights, targets, task_weights,
    skip_zero_weights, pass_logits, row_logits, mean_scale, scale, way, outside, need_gradient, losses_address,
    correct_address, total_address, d_features, add, d_features_apart, d_weight_address, d_bias_address,
):  # fmt: skip
    """Compute losses, correct counts and gradients of some heads (records of a layout), in arrays of all heads.

    Addresses of float32: features, d_features (total_rows, D), weight, d_weight (S, D), losses (K,), bias, d_bias (S,);
    of int64: correct (K,). A gradient with address 0 is not wanted.
    targets, mean_scale, scale (K,) and column_weights (S,) also cover all heads.
    row_ids: the rows to compute, empty = all.
    d_features is written, or added to with `add`; the others are written at the positions of these heads.
    d_features_apart: empty, or (K,) addresses of all heads: each head's gradient is written to its own, and d_features
    is not used.

    task_weights: 0 for a batch that has been surveyed, as in the rest of these arrays. Else the address of (K,)
    float32: the batch is surveyed first, which fills mean_scale, scale, way and outside; unless all heads are computed
    over all rows, nothing else is done, and the caller goes on with passes. Otherwise the weighted sum of the losses is
    written to total, () float32. Returns what `survey` does.
    """
    K = len(heads)
    if task_weights:
        n_whole = survey(
            heads, column_weights, targets, total_rows, task_weights, skip_zero_weights, pass_logits, row_logits,
            mean_scale, scale, way, outside,
        )  # fmt: skip
        if n_whole != K:
            return n_whole
    n_rows = len(row_ids) if len(row_ids) else total_rows
    n_weights, n_outputs = len(column_weights) * D, len(column_weights)
    bias = numba.carray(pointer_to_float32(bias_address), (n_outputs,))
    d_weight = numba.carray(pointer_to_float32(d_weight_address), (n_weights if d_weight_address else 0,))
    d_bias = numba.carray(pointer_to_float32(d_bias_address), (n_outputs if d_bias_address else 0,))
    losses = numba.carray(pointer_to_float32(losses_address), (len(targets),))
    correct = numba.carray(pointer_to_int64(correct_address), (len(targets),))
    columns = columns_of(heads)
    S = columns[K]
    n_splits = max(1, min(threads_of(team), n_rows * S * D // LEAST_PRODUCTS))
    rows_a_tile = _tile_rows(n_rows, S + D, n_splits)
    weights = weight + FLOAT_BYTES * D * heads["offset"]
    parts, d_features_of = _feature_gradients(heads, columns, d_features, d_features_apart)
    for_logits, for_features = head_panels(S, D, len(d_features_of) > 0)
    pack_parts(weights, D, heads, columns, parts, for_logits, for_features)
    loss_pk = np.zeros((n_splits, K))
    correct_pk = np.zeros((n_splits, K), np.int64)
    bias_gradient_ps = np.zeros((n_splits, S), np.float32)
    S_blocks = round_up(S, BLOCK_ROWS)
    ldw = round_up(D, WIDTH) + SKEW
    d_weight_ps = scratch(n_splits * S_blocks if len(d_weight) else 0, ldw)
    in_parallel(team, n_splits, _run_split, (
        features, D, row_ids, n_rows, total_rows, for_logits, for_features, bias, heads, columns, column_weights,
        targets, scale, rows_a_tile, need_gradient, parts, d_features_of, add, d_weight_ps, loss_pk, correct_pk,
        bias_gradient_ps,
    ))  # fmt: skip
    for k in range(K):
        for c in range(heads[k]["size"]):
            row, s = heads[k]["offset"] + c, columns[k] + c
            if len(d_bias):
                d_bias[row] = 0.0
                for p in range(n_splits):
                    d_bias[row] += bias_gradient_ps[p, s]
            if len(d_weight):
                for d in range(D):
                    total = d_weight_ps[s, d]
                    for p in range(1, n_splits):
                        total += d_weight_ps[p * S_blocks + s, d]
                    d_weight[row * D + d] = total
        index = heads[k]["index"]
        losses[index] = loss_pk[:, k].sum() * mean_scale[index]
        correct[index] = correct_pk[:, k].sum()
    if task_weights:
        task_weights_k = numba.carray(pointer_to_float32(task_weights), (K,))
        total = 0.0
        for k in range(K):
            total += np.float64(task_weights_k[k]) * np.float64(losses[k])
        numba.carray(pointer_to_float32(total_address), (1,))[0] = total
    return K


tile_pass = Kernel(_tile_pass, beside_torch=True)


# --- the plan --------------------------------------------------------------------------------------------


def forward(call: HeadsCall) -> Forward:
    """Compute the losses of all heads; the residual is the gradients of the total that `needs` asks for.

    bfloat16 and float16 are computed in float32. Raises ValueError for a class target outside [0, C) that is not
    ignore_index.
    """
    taken = take_targets(call.targets, call.task_weights, call.layout)
    features, weight = kernel_tensor(call.features), kernel_tensor(call.weight)
    bias = taken.table.no_bias if call.bias is None else kernel_tensor(call.bias)
    outputs, total = Outputs(len(taken.way), features, weight, bias, call.needs), float_empty()
    # In the usual batch all heads need all rows, and this does everything.
    n_whole = tile_pass(
        features.data_ptr(), features.shape[1], NO_ROWS_LEFT_OUT, taken.n_rows, weight.data_ptr(), bias.data_ptr(),
        taken.table.records, taken.table.column_weights, taken.addresses, taken.task_weights.data_ptr(),
        call.skip_zero_weights, taken.pass_logits, taken.row_logits, taken.scale, taken.gradient_scale, taken.way,
        taken.outside, outputs.wanted, outputs.losses.data_ptr(), outputs.correct.data_ptr(), total.data_ptr(),
        outputs.d_features.data_ptr(), False, TOGETHER, outputs.d_weight.data_ptr(), outputs.d_bias.data_ptr(),
    )  # fmt: skip
    if n_whole == len(taken.way):
        outputs.features_written = True
        return outputs.forward(total)
    batch = taken.surveyed(n_whole, call.layout)
    outputs.zero()
    run_passes(batch, batch.computed(), features, weight, bias, outputs)
    return outputs.forward()


def at_once(
    tensors: Sequence[Tensor], n_weights: int, layout: HeadLayout, needs: Needs, skip_zero_weights: bool
) -> Whole | None:
    """Compute what `forward` does where it is one kernel call, with as little Python as possible around that.

    tensors: features, task weights, K targets, n_weights weights (1 of all heads, or K side by side in memory), and as
    many biases, if any. They are float32, and int64 for classes. A batch of a few hundred rows takes less time in the
    kernel than in `forward` around it, the more so where an encoder has filled the processor's caches.

    Returns None, with nothing done, for tensors that lie otherwise, and for a batch that needs several passes.
    Raises ValueError as `forward` does.
    """
    if False in map(_IS_CONTIGUOUS, tensors):
        return None
    table, K = head_table(layout), len(layout.sizes)
    addresses = list(map(_ADDRESS, tensors))
    N, D = tensors[0].shape
    S = layout.width
    parts = addresses[2 + K :]
    if n_weights > 1 and not _are_side_by_side(parts, table.offsets, D):
        return None
    weight = parts[0]
    bias = parts[n_weights] if len(parts) > n_weights else table.no_bias.data_ptr()
    of_features, of_weight, of_bias = needs
    losses, correct, total = _FLOATS.new_empty(K), _INTEGERS.new_empty(K), _FLOATS.new_empty(())
    d_features = torch.empty_like(tensors[0]) if of_features else None
    d_weight = _FLOATS.new_empty((S, D)) if of_weight else None
    d_bias = _FLOATS.new_empty(S) if of_bias else None
    outside = np.empty(2, np.int64)
    n_whole = tile_pass(
        addresses[0], D, NO_ROWS_LEFT_OUT, N, weight, bias, table.records, table.column_weights,
        np.array(addresses[2 : 2 + K], np.int64), addresses[1], skip_zero_weights, COMPACTED_PASS_LOGITS,
        COMPACTED_ROW_LOGITS, np.empty(K), np.empty(K, np.float32), np.empty(K, np.int64), outside,
        of_features or of_weight or of_bias, losses.data_ptr(), correct.data_ptr(), total.data_ptr(),
        0 if d_features is None else d_features.data_ptr(), False, TOGETHER,
        0 if d_weight is None else d_weight.data_ptr(), 0 if d_bias is None else d_bias.data_ptr(),
    )  # fmt: skip
    if n_whole < 0:
        raise refusal(tensors[2:], layout, outside)
    return Whole(losses, correct, total, (d_features, d_weight, d_bias)) if n_whole == K else None


def _are_side_by_side(parts: Sequence[int], offsets: Sequence[int], D: int) -> bool:
    """Return whether K weights (addresses), and K biases after them if any, follow each other in memory."""
    K, weight = len(offsets), parts[0]
    biases = parts[K:]
    return list(parts[:K]) == [weight + D * offset for offset in offsets] and (
        not biases or list(biases) == [biases[0] + offset for offset in offsets]
    )


_IS_CONTIGUOUS, _ADDRESS = Tensor.is_contiguous, Tensor.data_ptr
# Like these, whatever torch's default dtype and device.
_FLOATS, _INTEGERS = float_empty(0), torch.empty(0, dtype=torch.int64, device="cpu")


def forward_apart(call: HeadsCall) -> Apart:
    """As `forward`, but the gradient of the features is one for each head, of that head's weighted loss alone."""
    taken = take_targets(call.targets, call.task_weights, call.layout)
    features, weight = kernel_tensor(call.features), kernel_tensor(call.weight)
    bias = taken.table.no_bias if call.bias is None else kernel_tensor(call.bias)
    of_features, of_weight, of_bias = call.needs
    K = len(taken.way)
    outputs = Outputs(K, features, weight, bias, (False, of_weight, of_bias))
    outputs.wanted |= of_features
    d_features = [torch.empty_like(features) for _ in range(K if of_features else 0)]
    apart, total = np.array([gradient.data_ptr() for gradient in d_features], np.int64), float_empty()
    n_whole = tile_pass(
        features.data_ptr(), features.shape[1], NO_ROWS_LEFT_OUT, taken.n_rows, weight.data_ptr(), bias.data_ptr(),
        taken.table.records, taken.table.column_weights, taken.addresses, taken.task_weights.data_ptr(),
        call.skip_zero_weights, taken.pass_logits, taken.row_logits, taken.scale, taken.gradient_scale, taken.way,
        taken.outside, outputs.wanted, outputs.losses.data_ptr(), outputs.correct.data_ptr(), total.data_ptr(),
        0, False, apart, outputs.d_weight.data_ptr(), outputs.d_bias.data_ptr(),
    )  # fmt: skip
    if n_whole < K:
        batch = taken.surveyed(n_whole, call.layout)
        outputs.zero()
        for k, gradient in enumerate(d_features):
            if batch.way[k] != ALL_ROWS:
                gradient.zero_()
        run_passes(batch, batch.computed(), features, weight, bias, outputs, apart)
    return Apart(outputs.losses, d_features, outputs.d_weight, outputs.d_bias)


TOGETHER = np.zeros(0, np.int64)  # no head has a gradient of the features of its own


def run_passes(
    batch: Batch,
    heads: np.ndarray,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    outputs: Outputs,
    apart: np.ndarray = TOGETHER,
) -> None:
    """Compute heads (records) with the tile kernel and add them to the outputs; tensors are `kernel_tensor`s.

    apart: where each head's own gradient of the features goes, (K,) addresses of what is 0 in rows without a target.
    """
    for of_heads, rows in passes(batch, heads):
        if len(rows):
            outputs.zero_features()
        tile_pass(
            features.data_ptr(), features.shape[1], rows, batch.n_rows, weight.data_ptr(), bias.data_ptr(), of_heads,
            batch.table.column_weights, batch.addresses, 0, False, 0, 0, batch.scale, batch.gradient_scale, batch.way,
            NO_ROWS_LEFT_OUT, outputs.wanted, outputs.losses.data_ptr(), outputs.correct.data_ptr(), 0,
            outputs.d_features.data_ptr(), outputs.features_written, apart, outputs.d_weight.data_ptr(),
            outputs.d_bias.data_ptr(),
        )  # fmt: skip
        outputs.features_written = True

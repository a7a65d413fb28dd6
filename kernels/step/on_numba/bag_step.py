"""A whole training step of heads over bags of table rows: one kernel from the ids to the updated rows.

A split processes tiles of bags: it pools their rows into cache, computes all heads' logits, losses and gradients there,
and stores the gradient of the bags (B, D). (If parts pool only the rows that they update, all parts pool first, for all
bags.) Then a part sums the gradient of each of its own rows of the table and updates them, and some of the heads.
Nothing is computed twice, the gradient of the table is never stored, and Python is left once per step. The same call on
batches prepared for the same number of threads gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from ...bags.on_numba.row_sums import share
from ...bags.on_numba.row_updates import pool_bag, update_from_transposed, update_row
from ...bags.prepared import PreparedBags
from ...bags.rules import RowRule, packed
from ...heads.on_numba.loss_pass import LANES
from ...heads.on_numba.passes import NO_ROWS_LEFT_OUT, kernel_tensor, refusal
from ...heads.on_numba.stages import (
    SKEW,
    add_weight_gradient,
    feature_gradient,
    logits,
    round_up,
    scratch,
    store_rows,
    tile_buffers,
)
from ...heads.on_numba.targets import computed
from ...heads.on_numba.tile import columns_of, head_panels, loss_tile, pack_heads, rows_of_split, tile_rows_of
from ...machine.gemm import BLOCK_ROWS
from ...machine.held import Bytes1, Floats1, Held, Ints3, reader
from ...machine.jit import helper, pointer_to_float32, pointer_to_int64
from ...machine.simd import FLOAT_BYTES, WIDTH
from ...machine.team import Kernel, in_parallel
from ..model import BagModel, Moves
from .dense_memory import array_address
from .task_memory import TaskMemory, hold_targets, survey_tasks, task_memory

ZERO = np.float32(0)
NO_SCALES = np.zeros(0, np.float32)
PIECES_A_PART = 4  # rows of many bags take longer than rows of few
# Indices into the axes of addresses (K, 2, 2).
WEIGHT, BIAS = 0, 1
PARAMETER, STATE = 0, 1


class BagMemory(NamedTuple):
    """All that a step reads and writes and that lies at the same place in every step."""

    tasks: TaskMemory
    table: int  # its address
    D: int
    per_row: Floats1  # (V,) the table's state; (0,): its rule keeps none
    frozen: Bytes1  # (V,) 1 for a frozen row; (0,): none is
    addresses: Ints3  # (K, 2, 2) of weights and biases, and of their states (C,); 0 = there is none


read_memory = reader(BagMemory)


@helper
def _pool_rows(table, D, ids, starts, first, last, target, ld):
    """target (.., ld) = sums of the rows in the bags first..last."""
    for bag in range(first, last):
        at = target + FLOAT_BYTES * (bag - first) * ld
        pool_bag(table, D, ids, starts[bag], starts[bag + 1], NO_SCALES, at)


@helper
def _share_of_bags(starts, p, n_splits):
    """Return the bags (first, last) of split p, such that all splits have about the same work."""
    if len(starts) == 1:
        return share(starts[0], p, n_splits)
    B = starts.shape[1] - 1
    return p * B // n_splits, (p + 1) * B // n_splits


@helper
def _load_bags(h, table, D, ids, starts, pooled, scales, first, bags):
    """Load the sums of the bags first.., times their scales, into h (bags, ld), zero up to a whole vector.

    The rows come from the table or, with several pools, from the sums in pooled (n_pools, B, D).
    """
    if len(starts) == 1:
        _pool_rows(table, D, ids, starts[0], first, first + bags, h.ctypes.data, h.shape[1])
    else:
        for i in range(bags):
            for d in range(D):
                h[i, d] = pooled[0, first + i, d]
            for p in range(1, len(pooled)):
                for d in range(D):
                    h[i, d] += pooled[p, first + i, d]
    for i in range(bags):
        for d in range(D):
            h[i, d] *= scales[first + i]
    for i in range(bags, round_up(bags, WIDTH)):
        h[i, :] = ZERO


@helper
def _pool_part(p, table, D, ids, starts, pooled):
    """pooled[p] = for every bag, the sum of its rows that belong to part p."""
    _pool_rows(table, D, ids, starts[p], 0, pooled.shape[1], pooled[p].ctypes.data, D)


@helper
def _run_bags(
    p, table, D, ids, starts, pooled, scales, for_logits, for_features, bias, heads, columns, column_weights, targets,
    scale, tile_bags, trains_table, trains_heads, d_features, d_weight_ps, loss_pk, correct_pk, bias_gradient_ps,
):  # fmt: skip
    """Compute the losses of split p of the bags, and the gradients of heads and rows if these are trained."""
    n_splits = len(loss_pk)
    first_bag, last_bag = _share_of_bags(starts, p, n_splits)
    d_weight = rows_of_split(d_weight_ps, p, n_splits)
    loss_k, correct_k, bias_gradient_s = loss_pk[p], correct_pk[p], bias_gradient_ps[p]
    S, B = columns[-1], len(scales)
    h, z, product = tile_buffers(tile_bags, D, S)
    h_address, ldh, z_address, ldz = h.ctypes.data, h.shape[1], z.ctypes.data, z.shape[1]
    lanes = scratch(LANES, round_up(tile_bags, WIDTH))
    gathered = np.empty(tile_bags, np.int64)
    tile_bias_gradient = np.zeros(S, np.float32)
    for first in range(first_bag, last_bag, tile_bags):
        bags = min(tile_bags, last_bag - first)
        _load_bags(h, table, D, ids, starts, pooled, scales, first, bags)
        logits(h_address, ldh, bags, D, S, for_logits.ctypes.data, product.ctypes.data, z_address, ldz)
        loss_tile(
            z, bias, heads, columns, column_weights, targets, B, NO_ROWS_LEFT_OUT, first, bags, scale, True, loss_k,
            correct_k, bias_gradient_s, tile_bias_gradient, gathered, lanes,
        )  # fmt: skip
        if trains_heads:
            add_weight_gradient(
                z_address, ldz, h_address, ldh, bags, S, D, d_weight.ctypes.data, d_weight.shape[1]
            )
        if not trains_table:
            continue
        feature_gradient(z_address, ldz, bags, S, D, for_features.ctypes.data, h_address, ldh, False)
        for i in range(bags):
            for d in range(D):
                h[i, d] *= scales[first + i]
        store_rows(h, d_features, D, NO_ROWS_LEFT_OUT, first, bags, False)


@helper
def _update_rows_of(rule, address, C, D, gradient, ldg):
    """Update one parameter (C, D) by its gradient (C, ldg); address (2,) holds its address and its state's."""
    state = numba.carray(pointer_to_float32(address[STATE]), (C if address[STATE] else 0,))
    for c in range(C):
        update_row(rule, address[PARAMETER], c, gradient + FLOAT_BYTES * c * ldg, D, state, 0, 0)


@helper
def _update_head(rules, moved, addresses, C, D, column, d_weight_ps, d_bias_ps, S_blocks):
    """Update one head by the sums of the splits' gradients.

    rules, moved (2,), addresses (2, 2): of weight and bias. moved: 0 where the parameter is not updated.
    """
    if not (moved[WEIGHT] or moved[BIAS]):
        return
    for p in range(1, len(d_bias_ps)):
        for s in range(column, column + C):
            for d in range(D):
                d_weight_ps[s, d] += d_weight_ps[p * S_blocks + s, d]
            d_bias_ps[0, s] += d_bias_ps[p, s]
    d_weight, d_bias = d_weight_ps[column].ctypes.data, d_bias_ps[0, column:].ctypes.data
    if moved[WEIGHT]:
        _update_rows_of(rules[WEIGHT], addresses[WEIGHT], C, D, d_weight, d_weight_ps.shape[1])
    if moved[BIAS] and addresses[BIAS, PARAMETER]:
        _update_rows_of(rules[BIAS], addresses[BIAS], C, 1, d_bias, 1)


@helper
def _biases(heads, addresses, S):
    """Return the biases of these heads at their columns in the layout, (S,); 0 for a head without one."""
    bias_s = np.zeros(S, np.float32)
    for k in range(len(heads)):
        a, C, address = heads[k]["offset"], heads[k]["size"], addresses[heads[k]["index"], BIAS, PARAMETER]
        if address:
            bias_s[a : a + C] = numba.carray(pointer_to_float32(address), (C,))
    return bias_s


@helper
def _update_part(
    p, rules, moved, table, D, per_row, rows, begins, bags, parts, frozen, d_features, heads, columns, addresses,
    d_weight_ps, d_bias_ps,
):  # fmt: skip
    """Update a piece of the rows of a part, and every n_pieces-th head, if these are to be updated."""
    n_splits = len(parts) - 1
    n_pieces, part, i = n_splits * PIECES_A_PART, p // PIECES_A_PART, p % PIECES_A_PART
    n_rows = parts[part + 1] - parts[part]
    first, last = (
        parts[part] + i * n_rows // PIECES_A_PART,
        parts[part] + (i + 1) * n_rows // PIECES_A_PART,
    )
    if moved[0]:
        update_from_transposed(
            rules[0], table, rows, begins, bags, first, last, frozen, NO_SCALES, d_features.ctypes.data, D, per_row, 0,
            0,
        )  # fmt: skip
    for k in range(p, len(heads), n_pieces):
        index = heads[k]["index"]
        _update_head(
            rules[1 + 2 * index : 3 + 2 * index], moved[1 + 2 * index : 3 + 2 * index], addresses[index],
            heads[k]["size"], D, columns[k], d_weight_ps, d_bias_ps, len(d_weight_ps) // n_splits,
        )  # fmt: skip


def _step_on_bags(  # type: ignore[no-untyped-def]
    team, memory, rules, moved, scales, ids, starts, rows, begins, bags, parts, task_weights, skip_zero_weights,
    losses_address, correct_address,
):  # fmt: skip
    """Take one step of a table (V, D) and of heads (records of a layout) on B bags; store losses and hits of the heads.

    Returns whether all targets are valid; else memory.tasks.wrong says which is not, and nothing is changed.

    memory: the address of a BagMemory. rules (1 + 2 K,): of the table, then of weight and bias of all heads in the
    layout; moved (1 + 2 K,): 0 where the parameter is not updated.
    scales to parts are the fields of PreparedBags. task_weights, skip_zero_weights: see `survey`.
    """
    m = read_memory(memory)
    tasks, table, D, per_row, frozen, addresses = m.tasks, m.table, m.D, m.per_row, m.frozen, m.addresses
    targets, column_weights, scale = tasks.targets, tasks.column_weights, tasks.gradient_scale
    if not survey_tasks(tasks, len(scales), task_weights, skip_zero_weights):
        return False
    heads = computed(tasks.heads, tasks.way)
    K, B, n_splits, n_pools = len(heads), len(scales), len(parts) - 1, len(starts)
    if K == 0:
        return True
    losses = numba.carray(pointer_to_float32(losses_address), (len(targets),))
    correct = numba.carray(pointer_to_int64(correct_address), (len(targets),))
    columns = columns_of(heads)
    S = columns[K]
    tile_bags = tile_rows_of(B, S + D, n_splits)
    bias_s = _biases(heads, addresses, len(column_weights))
    weights = addresses[:, WEIGHT, PARAMETER][heads["index"]]
    trains_table, trains_heads = moved[0] > 0, moved[1:].any()
    for_logits, for_features = head_panels(S, D, trains_table)
    pack_heads(weights, D, heads, columns, for_logits, for_features)
    loss_pk = np.zeros((n_splits, K))
    correct_pk = np.zeros((n_splits, K), np.int64)
    d_bias_ps = np.zeros((n_splits, S), np.float32)
    S_blocks = round_up(S, BLOCK_ROWS)
    d_weight_ps = scratch(n_splits * S_blocks if trains_heads else 0, round_up(D, WIDTH) + SKEW)
    d_features = scratch(B if trains_table else 0, D)
    pooled = scratch(n_pools * B if n_pools > 1 else 0, D).reshape((n_pools if n_pools > 1 else 0, B, D))
    if n_pools > 1:
        in_parallel(team, n_pools, _pool_part, (table, D, ids, starts, pooled))
    in_parallel(team, n_splits, _run_bags, (
        table, D, ids, starts, pooled, scales, for_logits, for_features, bias_s, heads, columns, column_weights,
        targets, scale, tile_bags, trains_table, trains_heads, d_features.ctypes.data, d_weight_ps, loss_pk, correct_pk,
        d_bias_ps,
    ))  # fmt: skip
    in_parallel(team, n_splits * PIECES_A_PART, _update_part, (
        rules, moved, table, D, per_row, rows, begins, bags, parts, frozen, d_features, heads, columns, addresses,
        d_weight_ps, d_bias_ps,
    ))  # fmt: skip
    for k in range(K):
        index = heads[k]["index"]
        losses[index] = loss_pk[:, k].sum() * tasks.scale[index]
        correct[index] = correct_pk[:, k].sum()
    return True


step_on_bags = Kernel(_step_on_bags)


# --- the host --------------------------------------------------------------------------------------------


def step(
    model: BagModel,
    rules: Sequence[RowRule] | np.ndarray,
    bags: PreparedBags,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    moves: Moves,
) -> tuple[Tensor, Tensor]:
    """Return (losses (K,), correct (K,)) for `bag_step` in step/bags.py."""
    K = len(model.heads)
    losses, correct = np.zeros(K, np.float32), np.zeros(K, np.int64)
    memory = _memory_of(model)
    tasks = memory.value.tasks
    # What these two hold is kept while the kernel reads it.
    held, weights = hold_targets(tasks, targets, model.layout), kernel_tensor(task_weights)
    # A learned weight of 0 still needs the loss that it would scale: that loss is its gradient.
    is_valid = step_on_bags(
        memory.address, packed(rules)[model.rules], model.moved(moves), *bags[1:], weights.data_ptr(),
        not task_weights.requires_grad, array_address(losses), array_address(correct),
    )  # fmt: skip
    if not is_valid:
        raise refusal(held, model.layout, tasks.wrong)
    return torch.from_numpy(losses), torch.from_numpy(correct)


def _memory_of(model: BagModel) -> Held[BagMemory]:
    """Return the model's memory, made at its first step."""
    held: Held[BagMemory] | None = model.memory
    if held is None:
        table, state = model.table.parameter, model.table.state.per_row
        held = model.memory = Held(BagMemory(
            task_memory(model.layout), table.data_ptr(), table.shape[1],
            NO_SCALES if state is None else state.numpy(), model.frozen_rows, model.addresses,
        ))  # fmt: skip
    return held

"""Layers and heads on tiles of rows: what every step with dense parameters computes while a tile is in cache."""

from __future__ import annotations

import numba
import numpy as np

from ...heads.on_numba.loss_pass import LANES
from ...heads.on_numba.stages import ZERO, feature_gradient, logits, round_up, scratch
from ...heads.on_numba.tile import loss_tile
from ...machine.gemm import PANEL
from ...machine.jit import address_of, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH
from .dense_updates import ONE

# --- before and after the tiles -----------------------------------------------------------------------------


# Loops: an array expression would make Numba compile its messages about shapes and axes, too.
@helper
def copy_from(address, values):
    """values (n,) = the float32 at an address, or zeros for address 0."""
    source = numba.carray(pointer_to_float32(address), (len(values) if address else 0,))
    for i in range(len(values)):
        values[i] = source[i] if address else ZERO


@helper
def head_biases(heads, addresses, S):
    """Return the biases of these heads at their columns in the layout, (S,); 0 for a head without one."""
    bias_s = np.zeros(S, np.float32)
    for k in range(len(heads)):
        a = heads[k]["offset"]
        copy_from(addresses[heads[k]["index"]], bias_s[a : a + heads[k]["size"]])
    return bias_s


@helper
def columns_by_task(heads, columns, n_tasks):
    """Return where each task's outputs begin among those of these heads, (K,); -1 if its head is not one of them."""
    column_of = np.empty(n_tasks, np.int64)
    for task in range(n_tasks):
        column_of[task] = -1
    for k in range(len(heads)):
        column_of[heads[k]["index"]] = columns[k]
    return column_of


@helper
def count_step(address):
    """Add 1 to the float32 at an address; return the new number."""
    count = numba.carray(pointer_to_float32(address), (1,))
    count[0] += ONE
    return count[0]


@helper
def store_losses(heads, n_tiles, mean_scale, dense, losses, correct):
    """losses, correct (K,) = the sums over all tiles, for the tasks of these heads."""
    for k in range(len(heads)):
        task = heads[k]["index"]
        loss, hits = 0.0, 0
        for tile in range(n_tiles):
            loss += dense.losses[tile, k]
            hits += dense.correct[tile, k]
        losses[task], correct[task] = loss * mean_scale[task], hits


# --- heads --------------------------------------------------------------------------------------------------


@helper
def _head_logits(first, rows, S, for_logits, product, z, dense):
    """z (S, rows) = the heads' logits. A separate function, since an array is freed after the last use of its name."""
    logits(
        dense.features + FLOAT_BYTES * first * dense.ld, dense.ld, rows, dense.H, S, address_of(for_logits),
        address_of(product), address_of(z), z.shape[1],
    )  # fmt: skip


@helper
def _zero_rows(address, ld, rows, n):
    """Set the first n numbers of rows that are ld apart to 0."""
    values = numba.carray(pointer_to_float32(address), (rows * ld,))
    for i in range(rows):
        for h in range(n):
            values[i * ld + h] = ZERO


@helper
def head_tile(
    tile, first, rows, N, for_logits, for_features, head_bias, heads, columns, column_weights, targets, scale,
    d_features, dense,
):  # fmt: skip
    """Losses and logit gradients of rows first.., and the gradients of their features, at an address (0: none).

    Those have the row stride of the features.
    """
    S, padded, z = columns[-1], round_up(rows, WIDTH), dense.z[tile]
    product, lanes = scratch(WIDTH, PANEL), scratch(LANES, padded)
    gathered, tile_bias_gradient = np.empty(rows, np.int64), np.zeros(S, np.float32)
    loss_k, correct_k, d_head_bias = dense.losses[tile], dense.correct[tile], dense.d_head_bias[tile]
    for k in range(len(heads)):
        loss_k[k], correct_k[k] = 0.0, 0
    for s in range(S):
        d_head_bias[s] = ZERO
    _head_logits(first, rows, S, for_logits, product, z, dense)
    loss_tile(
        z, head_bias, heads, columns, column_weights, targets, N, dense.all_rows, first, rows, scale, True, loss_k,
        correct_k, d_head_bias, tile_bias_gradient, gathered, lanes,
    )  # fmt: skip
    if d_features == 0:
        return
    if S > 0:
        feature_gradient(
            address_of(z), z.shape[1], rows, S, dense.H, address_of(for_features), d_features, dense.ld, False
        )
    else:  # no task has a label here
        _zero_rows(d_features, dense.ld, rows, dense.H)

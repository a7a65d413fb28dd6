"""A whole training step of heads on a stack of linear layers: from inputs to updated weights.

Four rounds of pieces of work, each on all threads:
1. weights are packed for their products; beside them, a batch's indices of rows of a table are checked and copied;
2. tiles of rows: all layers, logits, losses, and the gradients of all layers' outputs; beside them, the batch is
   grouped by rows of the table, if that is trained; in several passes (tile_passes.py), if a BatchNorm needs all rows;
3. the gradients of weights, over each half of the tiles;
4. updates; a row of the table sums its gradient itself.

Gradients are clipped between the last two, by the sums of the squares of their pieces.

What a model does not have is None, a type of its own: Numba drops the branches for it, and compiles the step without.

A piece's result does not depend on other pieces, and a sum is computed by one piece in the order of its terms: the same
call gives the same bits on any number of threads. Gradients are computed only as far back as something is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter

import numba
import numpy as np
import torch
from torch import Tensor

from ...bags.rules import packed
from ...heads.on_numba.passes import kernel_tensor, refusal
from ...heads.on_numba.targets import computed
from ...heads.on_numba.tile import columns_of, head_panels
from ...machine.jit import helper, pointer_to_float32, pointer_to_int64
from ...machine.team import Kernel, in_parallel
from ..common import Dropout, Updates
from ..model import NOTHING
from ..stack_model import StackModel
from .batch_norms import begin_norms, combine, combine_gradients
from .dense_memory import HALVES, array_address
from .dense_tiles import columns_by_task, count_step, head_biases, store_losses
from .dense_updates import ONE, add_up_dense, clip_factor, move_dense, square_of_piece
from .dropout import drop_of
from .embedding import (
    first_outside,
    index_batch,
    move_table,
    n_index_pieces,
    n_table_pieces,
    scale_vectors,
    square_of_rows,
    sweeps_table,
    take_indices,
)
from .stack_memory import memory_of, read_memory, tile_rows_of
from .stack_tiles import prepare, run_tile
from .task_memory import hold_targets, survey_tasks
from .tile_passes import tile_passes_of

UNKNOWN_INDEX, OUTSIDE_TARGET = 1, 2  # what is wrong with a batch; 0: nothing


@helper
def _prepare(
    p, n_index, embedding, table_pieces, n_packs, packs, reach, heads, columns, for_logits, for_features, dense,
):  # fmt: skip
    """Take some of the batch's indices (the first pieces), or pack some weights."""
    if table_pieces is not None and p < n_index:
        take_indices(p, embedding)
        return
    prepare(p - n_index, n_packs, packs, reach, heads, columns, for_logits, for_features, dense)


@helper
def _add_up(p, pieces, N, tile_rows, column_of, dense):
    """First all pieces over one half of the tiles, then over the other: see add_up of text_updates."""
    half = p // len(pieces)
    add_up_dense(p - half * len(pieces), half, pieces, N, tile_rows, column_of, dense)


@helper
def _run(
    p, n_indexed, sweeps, passes, tile_pass, N, tile_rows, embedding, table_pieces, inputs, norms, batch_norms, options,
    drops, reach, for_logits, for_features, head_bias, heads, columns, column_weights, targets, scale, dense,
):  # fmt: skip
    """Group the batch by rows of the table (piece 0, if n_indexed is 1), or process a tile."""
    if table_pieces is not None and p < n_indexed:
        index_batch(embedding, sweeps)
        return
    run_tile(
        p - n_indexed, passes[tile_pass], N, tile_rows, embedding, table_pieces, inputs, norms, batch_norms, options,
        drops, reach, for_logits, for_features, head_bias, heads, columns, column_weights, targets, scale, dense,
    )  # fmt: skip


@helper
def _combine(tile_pass, batch_norms, N, n_tiles, tile_rows, tracks, dense):
    """What all tiles have measured of the BatchNorm at which a pass ends."""
    if tile_pass["measures"]:
        n = tile_pass["up_end"] - 1
        combine(dense.layers[n], batch_norms[n], N, n_tiles, tile_rows, tracks)
    if tile_pass["pauses"]:
        n = tile_pass["down_end"] + 1
        combine_gradients(dense.layers[n], batch_norms[n], N, n_tiles)


@helper
def _square(p, n_of_table, table_pieces, embedding, pieces, column_of, n_tiles, dense, squares):
    """squares[p] = the sum of the squares of the gradient of some rows of the table, or of a dense parameter."""
    if table_pieces is not None and p < n_of_table:
        squares[p] = square_of_rows(p, embedding)
        return
    squares[p] = square_of_piece(p - n_of_table, pieces, column_of, n_tiles, dense)


@helper
def _move(
    p, n_of_table, table_pieces, sweeps, embedding, pieces, rules, decays, factor, column_of, n_tiles, dense
):
    """Update some rows of the table (the first pieces), or some dense parameters (the others)."""
    if table_pieces is not None and p < n_of_table:
        move_table(p, embedding, table_pieces, sweeps, rules, decays)
        return
    move_dense(p - n_of_table, pieces, rules, decays, factor, column_of, n_tiles, dense)


def _step_on_stack(  # type: ignore[no-untyped-def]
    team, memory, rules, decays, clip_norm, table_pieces, inputs, norms, batch_norms, tracks, options, passes, N,
    tile_rows, drops, pieces, counts, task_weights, skip_zero_weights, reach, losses_address, correct_address,
):  # fmt: skip
    """Take one step on N rows of inputs, an address, or of the indices that `embedding` holds; store losses and hits.

    Returns 0, or what is wrong with a target or an index, which memory.tasks.wrong then names; nothing is changed in
    that case.

    memory: the address of a StepMemory. rules, decays: of this step (see move_dense). clip_norm: None = gradients are
    not clipped. table_pieces: of a table before the layers, none if it is not updated; None without a table. norms,
    batch_norms (layers,): records of NORM and BATCH_NORM; None if no layer has such a norm. tracks: 1 = the running
    statistics of BatchNorms follow the batch. options (layers, 2): of activations; None if all are among the usual
    ones. passes: records of TILE_PASS. pieces, counts: of parameters that are updated. task_weights,
    skip_zero_weights: see `survey`. reach: how many layers gradients are computed for.
    """
    m = read_memory(memory)
    tasks, embedding, dense = m.tasks, m.embedding, m.dense
    targets, column_weights, scale = tasks.targets, tasks.column_weights, tasks.gradient_scale
    if not survey_tasks(tasks, N, task_weights, skip_zero_weights):
        return OUTSIDE_TARGET
    heads = computed(tasks.heads, tasks.way)
    K, S = len(heads), len(column_weights)
    losses = numba.carray(pointer_to_float32(losses_address), (len(targets),))
    correct = numba.carray(pointer_to_int64(correct_address), (len(targets),))
    columns = columns_of(heads)
    column_of = columns_by_task(heads, columns, len(targets))
    for_logits, for_features = head_panels(columns[K], dense.H, reach > 0)
    n_index = 0 if table_pieces is None else n_index_pieces(embedding)
    in_parallel(team, n_index + m.pack_pieces, _prepare, (
        n_index, embedding, table_pieces, m.pack_pieces, m.packs, reach, heads, columns, for_logits, for_features, dense
    ))  # fmt: skip
    if table_pieces is not None:
        outside = first_outside(embedding)
        if outside >= 0:
            tasks.wrong[1] = outside
            return UNKNOWN_INDEX
    head_bias_s = head_biases(heads, dense.biases, S)
    n_tiles = -(-N // tile_rows)
    n_indexed, sweeps = 0, False
    if table_pieces is not None and len(table_pieces) > 0:
        n_indexed, sweeps = 1, sweeps_table(rules[embedding[0]["rule"]], decays[embedding[0]["rule"]])
    if batch_norms is not None:
        begin_norms(dense.layers, batch_norms)
    for tile_pass in range(len(passes)):
        n_beside = n_indexed if tile_pass == 0 else 0
        in_parallel(team, n_beside + n_tiles, _run, (
            n_beside, sweeps, passes, tile_pass, N, tile_rows, embedding, table_pieces, inputs, norms, batch_norms,
            options, drops, reach, for_logits, for_features, head_bias_s, heads, columns, column_weights, targets,
            scale, dense,
        ))  # fmt: skip
        if batch_norms is not None:
            _combine(passes[tile_pass], batch_norms, N, n_tiles, tile_rows, tracks, dense)
    in_parallel(team, HALVES * len(pieces), _add_up, (pieces, N, tile_rows, column_of, dense))
    factor, n_of_table = ONE, 0
    if clip_norm is not None:
        if table_pieces is not None:
            n_of_table = n_table_pieces(embedding, table_pieces, False)
        squares = np.zeros(n_of_table + len(pieces))
        in_parallel(
            team, len(squares), _square,
            (n_of_table, table_pieces, embedding, pieces, column_of, n_tiles, dense, squares),
        )  # fmt: skip
        factor = clip_factor(squares, clip_norm)
        if table_pieces is not None and n_indexed and factor != ONE:
            in_parallel(team, n_tiles, scale_vectors, (N, tile_rows, factor, embedding))
    if table_pieces is not None:
        n_of_table = n_table_pieces(embedding, table_pieces, sweeps)
    in_parallel(team, n_of_table + len(pieces), _move, (
        n_of_table, table_pieces, sweeps, embedding, pieces, rules, decays, factor, column_of, n_tiles, dense
    ))  # fmt: skip
    for i in range(len(counts)):
        count_step(counts[i])
    store_losses(heads, n_tiles, tasks.scale, dense, losses, correct)
    return 0


step_on_stack = Kernel(_step_on_stack)


# --- the host --------------------------------------------------------------------------------------------

DROP = np.dtype([("key", np.uint64), ("threshold", np.uint64), ("kept", np.float32)])
_PROBABILITY = attrgetter("probability")


def step(
    model: StackModel,
    updates: Updates,
    inputs: Tensor,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropouts: Sequence[Dropout],
) -> tuple[Tensor, Tensor]:
    """Return (losses (K,), correct (K,)) for `stack_step` in step/stack.py."""
    rules, decays, moves, clip_norm = updates
    N, K, moving = inputs.shape[0], len(model.heads), model.moving(moves)
    losses, correct = np.zeros(K, np.float32), np.zeros(K, np.int64)
    memory = memory_of(model, N)
    tasks = memory.held.value.tasks
    # What these three hold is kept while the kernel reads it.
    held, weights = hold_targets(tasks, targets, model.layout), kernel_tensor(task_weights)
    if model.embedding is not None:
        inputs = memory.embedding.hold(inputs)
    elif not inputs.is_contiguous():
        inputs = inputs.contiguous()
    # A learned weight of 0 still needs the loss that it would scale: that loss is its gradient.
    wrong = step_on_stack(
        memory.held.address, packed(rules), np.asarray(decays, np.float32), clip_norm and float(clip_norm),
        None if model.embedding is None else moving.table_pieces, inputs.data_ptr(), memory.norms, memory.batch_norms,
        int(moves != NOTHING), memory.options, tile_passes_of(len(model.layers), moving.reach, model.cuts), N,
        tile_rows_of(N), _drops(dropouts), moving.dense.pieces, moving.dense.counts, weights.data_ptr(),
        not task_weights.requires_grad, moving.reach, array_address(losses), array_address(correct),
    )  # fmt: skip
    if wrong == UNKNOWN_INDEX:
        raise memory.embedding.refusal(inputs, int(tasks.wrong[1]))
    if wrong:
        raise refusal(held, model.layout, tasks.wrong)
    return torch.from_numpy(losses), torch.from_numpy(correct)


LEAST_ROWS = 512  # that are counted together, for which most models have memory anyway


def correct(model: StackModel, updates: Updates, inputs: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Return (K,) for `stack_correct` in step/stack.py."""
    K, at_once = len(model.heads), max(LEAST_ROWS, 0 if model.memory is None else model.memory.n_rows)
    ones_k, total = torch.ones(K, dtype=torch.float32, device="cpu"), np.zeros(K, np.int64)
    dropouts = [Dropout(0.0, 0)] * (1 + len(model.layers))
    if inputs.shape[0] <= at_once:
        return step(model, updates, inputs, targets, ones_k, dropouts)[1]
    for first in range(0, inputs.shape[0], at_once):
        rows = slice(first, first + at_once)
        of_part = [target[rows] for target in targets]
        total += step(model, updates, inputs[rows], of_part, ones_k, dropouts)[1].numpy()
    return torch.from_numpy(total)


def _drops(dropouts: Sequence[Dropout]) -> np.ndarray:
    if not any(map(_PROBABILITY, dropouts)):
        return _nothing_dropped(len(dropouts))
    return np.array([drop_of(dropout) for dropout in dropouts], DROP)


@lru_cache
def _nothing_dropped(n: int) -> np.ndarray:
    return np.zeros(n, DROP)

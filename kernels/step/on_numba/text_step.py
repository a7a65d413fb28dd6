"""A whole training step of heads over the words of a text: from word types to updated weights.

Five rounds of pieces of work, each on all threads:
1. which types the batch holds; beside that, weights are packed for their products;
2. the vectors of the batch's types, the mean of their rows;
3. tiles of windows or bags: gather and dropout, hidden layer, logits, losses, and all gradients down to the vectors;
   beside them, where the types are, and which types each updated row is in;
4. the gradients of dense parameters, over each half of the tiles; and the gradient of every type;
5. updates: of dense parameters, and of rows of the table, whose gradients are sums over their types.

Gradients are clipped between the last two, by the sums of the squares of their pieces.

A piece's result does not depend on other pieces, and a sum is computed by one piece in the order of its terms: the same
call gives the same bits on any number of threads. The gradient of the table or of a dense parameter is never stored
whole. Gradients are computed only as far back as something is trained: with a frozen table, neither vectors nor rows
have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from ...bags.on_numba.ids import mean_scales
from ...bags.rules import SGD, RowRule, packed
from ...heads.on_numba.passes import (
    kernel_tensor,
    refusal,
)
from ...heads.on_numba.targets import computed
from ...heads.on_numba.tile import columns_of, head_panels
from ...machine.jit import pointer_to_float32, pointer_to_int64
from ...machine.team import Kernel, in_parallel
from ...machine.templates import FLOATS
from ..common import Dropout, Updates
from ..dense_model import Decay
from ..model import NOTHING, Moves
from ..text_model import TO_HIDDEN, TO_NOTHING, TO_TABLE, ExtraGradients, Moving, TextStepModel, Words
from .dense_memory import array_address
from .dense_tiles import columns_by_task, copy_from, count_step, head_biases, store_losses
from .dense_updates import ONE, clip_factor
from .dropout import Drop, drop_of
from .task_memory import hold_targets, survey_tasks
from .text_hidden import MOST_TYPES_A_WINDOW, TYPES_A_PIECE, project_types
from .text_index import Rows, first_unknown
from .text_memory import TILE_ROWS, memory_of, read_memory
from .text_tiles import N_PREPARED, average_rows, prepare, run_tile
from .text_updates import ROWS_A_PIECE, add_up, move, n_pieces_to_add_up, scale_types, square

# --- the step --------------------------------------------------------------------------------------------


UNKNOWN_WORD, OUTSIDE_TARGET = 1, 2  # what is wrong with a batch; 0: nothing


def _step_on_text(  # type: ignore[no-untyped-def]
    team, memory, rules, decays, clip_norm, texts, pieces, counts, task_weights, skip_zero_weights, drop, reach,
    losses_address, correct_address,
):  # fmt: skip
    """Take one step on N rows of W vectors; store losses and hits of the heads.

    Returns 0, or what is wrong with a target or a word, which tasks.wrong then names; nothing is changed in that case.

    memory: the address of a StepMemory. rules, decays: of this step (see move_dense). clip_norm: 0 = gradients are not
    clipped. texts: Rows. pieces, counts: of dense parameters that are updated. task_weights, skip_zero_weights: see
    `survey`. reach: how far back gradients are computed. With TO_NOTHING there are no targets, nothing is updated, and
    the buffer a holds the features.
    """
    m = read_memory(memory)
    table, index, b, hidden, tasks = m.table, m.batch, m.buffers, m.hidden, m.tasks
    heads, column_weights, targets = tasks.heads[:0], tasks.column_weights, tasks.targets
    N, W, D = texts.n_rows, m.width, table.D
    if reach != TO_NOTHING:
        if not survey_tasks(tasks, N, task_weights, skip_zero_weights):
            return OUTSIDE_TARGET
        heads = computed(tasks.heads, tasks.way)
    unknown = first_unknown(texts.types, len(table.rows_of_type) - 1)
    if unknown >= 0:
        tasks.wrong[1] = unknown
        return UNKNOWN_WORD
    K = len(heads)
    if reach == TO_TABLE and table.steps:
        rules[table.rule]["table_steps"] = count_step(table.steps)
    has_hidden = len(hidden) > 0
    H = len(hidden) if has_hidden else W * D
    losses = numba.carray(pointer_to_float32(losses_address), (len(targets),))
    correct = numba.carray(pointer_to_int64(correct_address), (len(targets),))
    columns = columns_of(heads)
    column_of = columns_by_task(heads, columns, len(targets))
    for_logits, for_features = head_panels(columns[K], H, reach >= TO_HIDDEN)
    in_parallel(team, N_PREPARED, prepare, (
        texts, hidden, b.dense.weights[heads["index"]], H, heads, columns, for_logits, for_features, reach, index, b,
    ))  # fmt: skip
    n_types = -(-index.counts[0] // TYPES_A_PIECE)
    in_parallel(team, n_types, average_rows, (table, index, b))
    nothing_drops = reach < TO_HIDDEN and drop.threshold == 0
    by_type = has_hidden and nothing_drops and index.counts[0] <= MOST_TYPES_A_WINDOW * N
    if by_type:
        in_parallel(team, n_types, project_types, (D, H, index, b))
    hidden_bias_h = np.empty(H, np.float32)
    copy_from(m.hidden_bias, hidden_bias_h)
    head_bias_s = head_biases(heads, b.dense.biases, len(column_weights))
    n_tiles = -(-N // TILE_ROWS)
    in_parallel(team, 1 + n_tiles, run_tile, (
        N, W, D, texts, index, drop, by_type, has_hidden, hidden_bias_h, for_logits, for_features, head_bias_s, heads,
        columns, column_weights, targets, tasks.gradient_scale, reach, table, b,
    ))  # fmt: skip
    if reach == TO_NOTHING:
        return 0
    n_types, n_row_pieces = (n_types, -(-index.counts[1] // ROWS_A_PIECE)) if reach == TO_TABLE else (0, 0)
    in_parallel(team, n_pieces_to_add_up(len(pieces), n_types), add_up, (
        pieces, n_types, column_of, N, table, index, b
    ))  # fmt: skip
    factor = ONE
    if clip_norm > 0.0:
        squares = np.zeros(len(pieces) + n_row_pieces)
        in_parallel(team, len(squares), square, (pieces, column_of, n_tiles, table, index, b, squares))
        factor = clip_factor(squares, clip_norm)
        if factor != ONE:
            in_parallel(team, n_types, scale_types, (factor, D, index, b))
    n_pieces = len(pieces) + n_row_pieces
    in_parallel(team, n_pieces, move, (
        n_pieces, pieces, rules, decays, factor, column_of, n_tiles, table, index, b
    ))  # fmt: skip
    for i in range(len(counts)):
        count_step(counts[i])
    store_losses(heads, n_tiles, tasks.scale, b.dense, losses, correct)
    return 0


step_on_text = Kernel(_step_on_text)


# --- the host --------------------------------------------------------------------------------------------


def step(
    model: TextStepModel,
    updates: Updates,
    words: Words,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropout: Dropout,
    extra: ExtraGradients | None,
) -> tuple[Tensor, Tensor]:
    """Return (losses (K,), correct (K,)) for `text_step` in step/text.py."""
    K = len(model.heads)
    losses, correct = np.zeros(K, np.float32), np.zeros(K, np.int64)
    _call(
        model,
        _PackedUpdates(packed(updates.rules), np.asarray(updates.decays, np.float32), updates.clip_norm or 0.0),
        _rows(words, model, extra), model.moving(updates.moves), targets, task_weights, drop_of(dropout),
        array_address(losses), array_address(correct), extra,
    )  # fmt: skip
    return torch.from_numpy(losses), torch.from_numpy(correct)


def gathered(model: TextStepModel, moves: Moves) -> tuple[Tensor, Tensor]:
    """Return (rows (R,), d_rows (R, D)) for `text_gradients` in step/text.py."""
    memory, D = model.memory, model.table.parameter.shape[1]
    R = int(memory.batch.counts[1]) if model.moving(moves).reach == TO_TABLE else 0
    d_rows = memory.d_rows[:R]
    if model.room is not None and len(model.room) >= R * D:
        d_rows = model.room[: R * D].reshape(R, D)
    return torch.from_numpy(memory.batch.rows[:R].copy()), torch.from_numpy(d_rows)


# Rows that are processed together: the more rows, the fewer words occur for the first time.
LEAST_ROWS, MOST_ROWS, MOST_FLOATS = 1 << 9, 1 << 14, 1 << 25


class _PackedUpdates(NamedTuple):
    """How a step moves parameters, as kernels read it."""

    rules: np.ndarray
    decays: np.ndarray
    clip_norm: float = 0.0


_NO_UPDATES = _PackedUpdates(packed((RowRule(SGD, 0.0),)), np.array([Decay()], np.float32))
_NOT_DROPPED = drop_of(Dropout(0.0, 0))


def features(model: TextStepModel, words: Words) -> Tensor:
    """Return (N, H) for `text_features` in step/text.py."""
    rows, N, H = _rows(words, model), words.n_rows, model.n_features
    out = torch.empty(N, H, dtype=torch.float32, device="cpu")
    moving = model.moving(NOTHING)._replace(reach=TO_NOTHING)
    for part in _parts(model, N):
        some = _part_of(rows, part)
        _call(model, _NO_UPDATES, some, moving, None, FLOATS, _NOT_DROPPED, 0, 0)
        out.numpy()[part] = model.memory.buffers.a[: some.n_rows, :H]
    return out


def correct(model: TextStepModel, words: Words, targets: Sequence[Tensor]) -> Tensor:
    """Return (K,) for `text_correct` in step/text.py."""
    rows, K = _rows(words, model), len(model.heads)
    losses, found, total = np.empty(K, np.float32), np.empty(K, np.int64), np.zeros(K, np.int64)
    ones_k = torch.ones(K, dtype=torch.float32, device="cpu")
    for part in _parts(model, words.n_rows):
        found[:] = 0  # reset, as a head without a target in this part is skipped
        _call(
            model, _NO_UPDATES, _part_of(rows, part), model.moving(NOTHING), [target[part] for target in targets],
            ones_k, _NOT_DROPPED, array_address(losses), array_address(found),
        )  # fmt: skip
        total += found
    return torch.from_numpy(total)


def _parts(model: TextStepModel, N: int) -> list[slice]:
    """Split N rows into parts, none of which needs more memory than a step if that is more than MOST_FLOATS."""
    H, S = model.n_features, sum(spec.size for spec in model.layout.heads)
    # Per row: the window, its types' contributions, its hidden outputs and its logits.
    fit = min(MOST_ROWS, MOST_FLOATS // (model.n_window + model.pooled.width * H + H + S))
    at_once = max(LEAST_ROWS, fit, 0 if model.memory is None else model.memory.n_rows)
    return [slice(first, first + at_once) for first in range(0, N, at_once)]


_NO_STARTS, _NO_SCALES = np.zeros(0, np.int64), np.zeros(0, np.float32)


def _rows(words: Words, model: TextStepModel, extra: ExtraGradients | None = None) -> Rows:
    """Convert to the form that the kernel takes. Raises ValueError for an unknown word type that is not int32."""
    types = _as_int32(words.types, model)
    n, n_rows, starts, scales = len(types), words.n_rows, _NO_STARTS, _NO_SCALES
    if words.starts is not None:
        starts = words.starts.numpy()
        scales = mean_scales(types, starts) if model.pooled.how == "mean" else np.ones(n_rows, np.float32)
    if extra is not None:
        types = np.concatenate([types, _as_int32(extra.types, model)])
    return Rows(types, starts, scales, n_rows, n)


def _as_int32(types: Tensor, model: TextStepModel) -> np.ndarray:
    """Return the types, (n,) int32: such as they are, or checked before a number is truncated to 32 bits."""
    given = types.numpy().reshape(-1)
    if given.dtype == np.int32:
        return np.ascontiguousarray(given)
    n_types = len(model.rows_of_type) - 1
    wrong = first_unknown(given, n_types)
    if wrong >= 0:
        raise _unknown_word(given[wrong], n_types)
    return np.ascontiguousarray(given, np.int32)


def _unknown_word(word: int, n_types: int) -> ValueError:
    return ValueError(
        f"inputs contain the word type {word}; valid are 0 up to, but not including, {n_types:,}, and -1 for none"
    )


def _part_of(rows: Rows, part: slice) -> Rows:
    """Return some of these rows."""
    first, last = part.start, min(part.stop, rows.n_rows)
    if len(rows.starts):
        starts = rows.starts[first : last + 1]
        types = rows.types[starts[0] : starts[-1]]
        return Rows(types, starts - starts[0], rows.scales[first:last], last - first, len(types))
    width = rows.n_types // rows.n_rows
    return Rows(rows.types[first * width : last * width], *rows[1:3], last - first, (last - first) * width)


def _call(
    model: TextStepModel,
    updates: _PackedUpdates,
    rows: Rows,
    moving: Moving,
    targets: Sequence[Tensor] | None,
    task_weights: Tensor,
    drop: Drop,
    losses: int,
    correct: int,
    extra: ExtraGradients | None = None,
) -> None:
    """Call the kernel. Raises ValueError for an unknown word type and for a target out of range."""
    memory = memory_of(model, rows.n_rows, len(rows.types))
    m = memory.held.value
    if extra is not None:
        first = rows.n_rows * model.n_window  # after those of the rows
        given = extra.d_vectors.numpy().reshape(-1)
        m.buffers.d_x[first : first + len(given)] = given
    if model.gathers_rows:
        m.table.room[:] = (0, 0) if model.room is None else (array_address(model.room), len(model.room))
    # What these two hold is kept while the kernel reads it.
    held = hold_targets(m.tasks, targets, model.layout) if targets else []
    weights = kernel_tensor(task_weights)
    # A learned weight of 0 still needs the loss that it would scale: that loss is its gradient.
    wrong = step_on_text(
        memory.held.address, updates.rules, updates.decays, updates.clip_norm, rows, moving.dense.pieces,
        moving.dense.counts, weights.data_ptr(), not task_weights.requires_grad, drop, moving.reach, losses, correct,
    )  # fmt: skip
    if wrong == UNKNOWN_WORD:
        raise _unknown_word(rows.types[m.tasks.wrong[1]], len(model.rows_of_type) - 1)
    if wrong:
        raise refusal(held, model.layout, m.tasks.wrong)

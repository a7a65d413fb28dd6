"""Loss and gradients of one batch of context prediction on a CPU: skip-gram and CBOW, by the formulas of tile.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...machine.jit import helper
from ...machine.team import Kernel, in_parallel
from ..batch import MODES, SPLIT_WORDS, TILE, ContextBatch
from ..workspace import Workspace, make_workspace
from .shard_rows import copy_in, forget_rows, number_rows
from .tile import TileOptions, Vectors, Windows, scratch_of, tile_step

if TYPE_CHECKING:
    from ..batch import LocalBatch

f32 = np.float32
ZERO = f32(0)


@helper
def run_split(p, windows, drawn, n, n_inputs, n_outputs, how, x, y, d_x, d_y, w, losses):
    """Compute the loss of split p's tiles, and its gradients in d_x[p] and d_y[p]."""
    P, M, n_tiles = len(d_x), w.z.shape[1], -(-n // TILE)
    d_x[p, :n_inputs] = ZERO
    d_y[p, :n_outputs] = ZERO
    w.mark[p, :n_outputs] = -1
    vectors, scratch = Vectors(x, y, d_x[p], d_y[p]), scratch_of(w, p)
    loss = 0.0
    for k in range(p * n_tiles // P, (p + 1) * n_tiles // P):
        first, last = k * TILE, min(n, (k + 1) * TILE)
        loss += tile_step(vectors, windows, first, last, drawn[k * M : (k + 1) * M], how, True, k, scratch)
    losses[p] = loss


@helper
def add_up_splits(d_x, n_inputs, d_y, n_outputs):
    """Add the gradients of all splits to those of the first."""
    for p in range(1, len(d_x)):
        d_x[0, :n_inputs] += d_x[p, :n_inputs]
        d_y[0, :n_outputs] += d_y[p, :n_outputs]


def _gradients(team, mode, low, high, n, negatives, window, scale, inputs, outputs, d_x, d_y, w):
    """Compute the loss of a batch; d_x[0] and d_y[0] become scale times its gradients.

    The n words and the drawn negatives are in shard 0 of the workspace w; afterwards the gradients' rows are in
    w.touched. Returns (loss, input rows, output rows).
    """
    P, M, touched = len(d_x), w.z.shape[1], w.touched
    n_tiles = -(-n // TILE)
    rows, slots, drawn = touched.rows[0], w.slots[0], w.drawn[0]
    forget_rows(touched, 0)
    number_rows(w.words[0], n, touched, 0, slots)
    n_inputs = touched.counts[0]
    number_rows(drawn, n_tiles * M, touched, 0, drawn)
    n_outputs = touched.counts[0]
    x, y = w.x[0], w.y[0]
    copy_in(inputs, rows, n_inputs, x)
    copy_in(outputs, rows, n_outputs, y)
    losses = np.zeros(P)
    how = TileOptions(mode, f32(negatives / M), scale, window, True, False, inputs.shape[1])
    windows = Windows(slots, slots, low, high)
    in_parallel(team, P, run_split, (windows, drawn, n, n_inputs, n_outputs, how, x, y, d_x, d_y, w, losses))
    add_up_splits(d_x, n_inputs, d_y, n_outputs)
    return losses.sum(), n_inputs, n_outputs


gradients = Kernel(_gradients, beside_torch=True)


class ContextGradients(NamedTuple):
    """Mean loss over the positive pairs, and its gradients: d_inputs[u] belongs to row input_rows[u] of the inputs."""

    loss: float
    input_rows: Tensor  # int64 (U,)
    d_inputs: Tensor  # (U, D)
    output_rows: Tensor
    d_outputs: Tensor


def touched_rows(
    inputs: Tensor,
    outputs: Tensor,
    batch: ContextBatch,
    workspace: Workspace | None = None,
    splits: int | None = None,
) -> ContextGradients:
    """Return the loss and the gradients of the rows of float32 tables (V, D) that a batch touches; update nothing.

    inputs: may end after the row of the last kept word. The same number of splits gives the same bits.
    """
    V, D = outputs.shape
    N, M = len(batch.words), batch.drawn.shape[1]
    splits = splits or (2 if N >= SPLIT_WORDS else 1)
    w = workspace or make_workspace(V, D, splits, max(1, N), batch.window, M)
    w.words[0, :N] = batch.words
    w.drawn[0, : batch.drawn.size] = batch.drawn.reshape(-1)
    d_x = np.empty((splits, *w.x.shape[1:]), np.float32)
    d_y = np.empty((splits, *w.y.shape[1:]), np.float32)
    loss, n_inputs, n_outputs = gradients(
        MODES.index(batch.mode), batch.low, batch.high, N, float(batch.negatives), batch.window,
        np.float32(1 / max(1, batch.pairs)), inputs.detach().contiguous().numpy(),
        outputs.detach().contiguous().numpy(), d_x, d_y, w,
    )  # fmt: skip
    rows = torch.from_numpy(w.touched.rows[0].astype(np.int64))
    return ContextGradients(
        loss / max(1, batch.pairs),
        rows[:n_inputs],
        torch.from_numpy(d_x[0, :n_inputs, :D]),
        rows[:n_outputs],
        torch.from_numpy(d_y[0, :n_outputs, :D]),
    )


def loss_and_gradients(inputs: Tensor, outputs: Tensor, batch: LocalBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss (), its gradients (n_kept, D) and (U, D))."""
    found = touched_rows(inputs, outputs, batch.drawn_batch())
    return (
        inputs.new_tensor(found.loss),
        _spread(found.input_rows, found.d_inputs, inputs),
        _spread(found.output_rows, found.d_outputs, outputs),
    )


def _spread(rows: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """Return values in these rows, 0 elsewhere.

    By numpy: torch would wake its threads, which then spin and occupy a core.
    """
    out = np.zeros(like.shape, np.float32)
    out[rows.numpy()] = values.numpy()
    return torch.from_numpy(out)

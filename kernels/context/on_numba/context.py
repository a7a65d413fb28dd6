"""Loss and gradients of one batch of context prediction on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..batch import MODES, ContextBatch
from ..workspace import Workspace, make_workspace
from .rounds import gradients

if TYPE_CHECKING:
    from ..batch import LocalBatch

SPLIT_WORDS = 1024  # words of a batch; below it, a second thread costs more than it saves


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

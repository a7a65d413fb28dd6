"""Loss and gradients of the rows that a batch of context prediction touches, in one pass on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .batch import ContextBatch
from .room import load_numba
from .workspace import Workspace


class ContextGradients(NamedTuple):
    """Mean loss over the positive pairs, and its gradients: d_inputs[u] belongs to row input_rows[u] of the inputs."""

    loss: float
    input_rows: Tensor  # int64 (U,)
    d_inputs: Tensor  # (U, D)
    output_rows: Tensor
    d_outputs: Tensor


def context_gradients(
    inputs: Tensor,
    outputs: Tensor,
    batch: ContextBatch,
    *,
    workspace: Workspace | None = None,
    splits: int | None = None,
    backend: str = "auto",
) -> ContextGradients:
    """Compute the loss and the gradients of the rows that a batch touches, for float32 tables (V, D); update nothing.

    inputs: may end after the row of the last kept word.
    workspace: one with at least `splits` shards and room for the words of the batch; saves the O(V) cost of making one.

    The same number of splits gives the same bits. Raises ValueError for tables that do not fit each other, RuntimeError
    for tables that are not on a CPU and if a backend other than Numba is requested.
    """
    fit = inputs.shape[1:] == outputs.shape[1:] and len(inputs) <= len(outputs)
    if not fit or inputs.dtype != torch.float32 or outputs.dtype != torch.float32:
        raise ValueError(
            f"both tables must be float32 (V, D), not {inputs.dtype} {tuple(inputs.shape)} and {outputs.dtype} "
            f"{tuple(outputs.shape)}"
        )
    numba_context = load_numba("context", "context_gradients", backend, inputs.device.type)
    made: ContextGradients = numba_context.touched_rows(inputs, outputs, batch, workspace, splits)
    return made

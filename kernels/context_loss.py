"""The loss of context prediction as an autograd op over the words of a batch alone, on every backend.

Where a batch is drawn, on a CPU, `local_words` numbers its words anew: their number is data, which a GPU would have to
be waited for. The result is tensors that can move to any device; their vectors are all that the op reads.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .choice import choose_backend
from .context import ContextBatch, context_gradients, reference_loss


class LocalBatch(NamedTuple):
    """N kept words in tiles of TILE as a ContextBatch has them, but word u is the type types[u]."""

    types: Tensor  # int64 (U,); the first n_kept have windows, the others are only drawn
    n_kept: int
    words: Tensor  # int32 (N,), each of the first n_kept at least once
    low: Tensor  # int32 (N,)
    high: Tensor  # int32 (N,)
    drawn: Tensor  # int32 (tiles, M)
    per_pair: Tensor  # float32 (): 1 over the positive pairs
    mode: str
    window: int
    negatives: float

    def drawn_batch(self) -> ContextBatch:
        """As the Numba kernel takes it; of a batch on a CPU."""
        words, low, high, drawn = (t.numpy() for t in (self.words, self.low, self.high, self.drawn))
        return ContextBatch(words, low, high, drawn, self.mode, self.window, self.negatives)


def local_words(batch: ContextBatch) -> LocalBatch:
    """The batch over its own words alone."""
    kept, kept_ids = np.unique(batch.words, return_inverse=True)
    types = np.concatenate([kept, np.setdiff1d(batch.drawn, kept)])
    order = np.argsort(types, kind="stable")
    drawn = order[np.searchsorted(types, batch.drawn, sorter=order)]
    return LocalBatch(
        torch.from_numpy(types.astype(np.int64)),
        len(kept),
        torch.from_numpy(kept_ids.astype(np.int32).reshape(-1)),
        torch.from_numpy(batch.low),
        torch.from_numpy(batch.high),
        torch.from_numpy(drawn.astype(np.int32)),
        torch.tensor(1 / max(1, batch.pairs)),
        batch.mode,
        batch.window,
        batch.negatives,
    )


def context_loss(inputs: Tensor, outputs: Tensor, batch: LocalBatch, backend: str = "auto") -> Tensor:
    """The mean loss () over the positive pairs; its gradients are dense in both arguments.

    inputs (n_kept, D) and outputs (U, D) are the vectors of the batch's words, float32 (float64 by the reference).
    Raises ValueError for tables of another shape or dtype, and what `choose_backend` raises.
    """
    chosen = choose_backend(inputs.device, inputs.dtype, backend).name
    _check(inputs, outputs, batch, chosen)
    if chosen == "reference":
        return reference_loss(inputs, outputs, batch)
    loss: Tensor = _ContextLoss.apply(inputs, outputs, batch, chosen)
    return loss


class _ContextLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: Tensor, outputs: Tensor, batch: LocalBatch, backend: str
    ) -> Tensor:
        compute = _by_numba
        if backend == "triton":
            # Triton takes seconds to import: only what is used pays.
            compute = importlib.import_module(".triton_context", __package__).loss_and_gradients
        loss, *gradients = compute(inputs.detach().contiguous(), outputs.detach().contiguous(), batch)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError("context_loss has no second derivative (create_graph=True was asked for)")
        d_inputs, d_outputs = ctx.saved_tensors
        return upstream * d_inputs, upstream * d_outputs, None, None


def _by_numba(inputs: Tensor, outputs: Tensor, batch: LocalBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (), its gradients (n_kept, D) and (U, D))."""
    found = context_gradients(inputs, outputs, batch.drawn_batch())
    d_inputs = torch.zeros_like(inputs).index_copy_(0, found.input_rows, found.d_inputs)
    d_outputs = torch.zeros_like(outputs).index_copy_(0, found.output_rows, found.d_outputs)
    return inputs.new_tensor(found.loss), d_inputs, d_outputs


def _check(inputs: Tensor, outputs: Tensor, batch: LocalBatch, backend: str) -> None:
    U, D = len(batch.types), inputs.shape[-1]
    if inputs.shape != (batch.n_kept, D) or outputs.shape != (U, D):
        raise ValueError(
            f"vectors must be ({batch.n_kept}, D) and ({U}, D), not {tuple(inputs.shape)} and {tuple(outputs.shape)}"
        )
    allowed = (torch.float32, torch.float64) if backend == "reference" else (torch.float32,)
    if inputs.dtype not in allowed or outputs.dtype != inputs.dtype:
        raise ValueError(f"vectors must be float32, not {inputs.dtype} and {outputs.dtype}")

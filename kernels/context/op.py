"""The loss of context prediction as an autograd op over only the words of a batch, on every backend.

The op reads nothing but the vectors of the words of a `LocalBatch`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backends import OP
from .batch import LocalBatch
from .reference import reference_loss


def context_loss(inputs: Tensor, outputs: Tensor, batch: LocalBatch, backend: str = "auto") -> Tensor:
    """Return the mean loss () over the positive pairs; its gradients are dense in both arguments.

    inputs (n_kept, D), outputs (U, D): vectors of the batch's words, float32 (or float64 with the reference).
    Raises ValueError for tables of another shape or dtype, and what `choose_backend` raises.
    """
    chosen = OP.choose(inputs.device.type, inputs.dtype, backend).name
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
        compute = OP.load(backend, "context").loss_and_gradients
        loss, *gradients = compute(inputs.detach().contiguous(), outputs.detach().contiguous(), batch)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError("context_loss has no second derivative (create_graph=True was asked for)")
        d_inputs, d_outputs = ctx.saved_tensors
        return _times(upstream, d_inputs), _times(upstream, d_outputs), None, None


def _times(upstream: Tensor, gradient: Tensor) -> Tensor:
    """Return upstream () times a gradient.

    On a CPU this avoids torch, which would wake threads that then spin and occupy the next core.
    """
    if gradient.device.type != "cpu":
        return upstream * gradient
    return torch.from_numpy(gradient.numpy() * np.float32(upstream.item()))


def _check(inputs: Tensor, outputs: Tensor, batch: LocalBatch, backend: str) -> None:
    U, D = len(batch.types), inputs.shape[-1]
    if inputs.shape != (batch.n_kept, D) or outputs.shape != (U, D):
        raise ValueError(
            f"vectors must be ({batch.n_kept}, D) and ({U}, D), not {tuple(inputs.shape)} and {tuple(outputs.shape)}"
        )
    allowed = (torch.float32, torch.float64) if backend == "reference" else (torch.float32,)
    if inputs.dtype not in allowed or outputs.dtype != inputs.dtype:
        raise ValueError(f"vectors must be float32, not {inputs.dtype} and {outputs.dtype}")

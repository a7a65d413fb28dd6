"""What a backward pass asks of its upstream gradient before it uses it."""

from __future__ import annotations

import torch
from torch import Tensor


def is_batched(gradient: Tensor) -> bool:
    """Return whether it holds many gradients under vmap, of which kernels cannot read a number."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


def refuse_second_derivative() -> None:
    """Raises RuntimeError within a backward pass that autograd records."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "multitask_loss has no second derivative (create_graph=True was asked for); "
            'use backend="reference" for one'
        )

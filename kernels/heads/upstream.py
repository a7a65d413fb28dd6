"""What a backward pass asks of its upstream gradient before it uses it."""

from __future__ import annotations

from collections.abc import Sequence

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


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    """In-place version counter of each tensor, where torch keeps one; else 0."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def refuse_modified(targets: Sequence[Tensor], versions: list[int]) -> None:
    """Raises RuntimeError if targets were modified since they had these versions."""
    if versions_of(targets) != versions:
        raise RuntimeError("targets have been modified by an inplace operation since the loss was computed")

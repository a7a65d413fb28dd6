"""What a backward pass asks of its upstream gradient before it uses it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def is_batched(gradient: Tensor) -> bool:
    """Return whether it holds many gradients under vmap, of which kernels cannot read a number."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


def is_for_torch(upstream: Sequence[Tensor | None]) -> bool:
    """Return whether a backward pass is to be differentiated again, or has many gradients under vmap."""
    return torch.is_grad_enabled() or any(d is not None and is_batched(d) for d in upstream)


def gradients_by_torch(
    function: Callable[..., tuple[Tensor, ...]],
    given: Sequence[Tensor | None],
    needs: Sequence[bool],
    upstream: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of what a function of torch's operators makes of `given`, for those that need one."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        pairs = [(out, d) for out, d in zip(function(*given), upstream, strict=True) if d is not None]
        wanted = [tensor for tensor, need in zip(given, needs, strict=True) if need and tensor is not None]
        outputs, gradients = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=again))
    return tuple(next(found) if need else None for need in needs)


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

"""Check that the arguments of the fused op fit each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import HeadLayout


def check_arguments(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
) -> None:
    """Raise ValueError or TypeError, naming the argument, for one that does not fit; see `multitask_loss`."""
    K, S = len(layout), layout.width
    if features.dim() != 2:
        raise ValueError(f"features must be (N, D), not {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, not {features.dtype}")
    N, D = features.shape
    if D == 0:
        raise ValueError("features must have at least one column, but D is 0")
    if weight.shape != (S, D):
        raise ValueError(f"weight must be (S, D) = ({S}, {D}), not {tuple(weight.shape)}")
    if bias is not None and bias.shape != (S,):
        raise ValueError(f"bias must be (S,) = ({S},), not {tuple(bias.shape)}")
    for argument, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{argument} must be floating point, not {tensor.dtype}")
    if task_weights.shape != (K,):
        raise ValueError(f"task_weights must be (K,) = ({K},), not {tuple(task_weights.shape)}")
    if task_weights.dtype != torch.float32 and features.dtype != torch.float64:
        raise TypeError(f"task_weights must be float32, not {task_weights.dtype}")
    if len(targets) != K:
        raise ValueError(
            f"targets: {len(targets)} given, but there are {K} heads ({', '.join(layout.names)})"
        )
    for name, head, target in zip(layout.names, layout.heads, targets, strict=True):
        head.check_target_type(name, target)
        if head.kind.takes_classes:
            if target.shape != (N,):
                raise ValueError(f"targets of {name} must be (N,) = ({N},), not {tuple(target.shape)}")
        elif target.shape != (N, head.size):
            raise ValueError(
                f"targets of {name} must be (N, C) = ({N}, {head.size}), not {tuple(target.shape)}"
            )
        if target.device != features.device:
            raise ValueError(f"targets of {name} are on {target.device}, features on {features.device}")
    for argument, tensor in (("weight", weight), ("bias", bias), ("task_weights", task_weights)):
        if tensor is not None and tensor.device != features.device:
            raise ValueError(f"{argument} is on {tensor.device}, features are on {features.device}")

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
    _check_dense("features", features)
    N, D = features.shape
    if D == 0:
        raise ValueError("features must have at least one column, but D is 0")
    if weight.shape != (S, D):
        raise ValueError(f"weight must be (S, D) = ({S}, {D}), not {tuple(weight.shape)}")
    if bias is not None and bias.shape != (S,):
        raise ValueError(f"bias must be (S,) = ({S},), not {tuple(bias.shape)}")
    if not weight.is_floating_point():
        raise TypeError(f"weight must be floating point, not {weight.dtype}")
    if bias is not None and not bias.is_floating_point():
        raise TypeError(f"bias must be floating point, not {bias.dtype}")
    if task_weights.shape != (K,):
        raise ValueError(f"task_weights must be (K,) = ({K},), not {tuple(task_weights.shape)}")
    if task_weights.dtype != torch.float32 and features.dtype != torch.float64:
        raise TypeError(f"task_weights must be float32, not {task_weights.dtype}")
    if len(targets) != K:
        raise ValueError(
            f"targets: {len(targets)} given, but there are {K} heads ({', '.join(layout.names)})"
        )
    of_classes, device = (N,), features.device
    for k, (takes_classes, target) in enumerate(zip(layout.takes_classes, targets, strict=True)):
        wanted = of_classes if takes_classes else (N, layout.sizes[k])
        is_usual = target.dtype is torch.int64 if takes_classes else target.dtype.is_floating_point
        if not is_usual or target.shape != wanted or target.device != device:
            _check_target(layout, k, target, wanted, device)
        if target.layout is not torch.strided:
            _check_dense(f"targets of {layout.names[k]}", target)
    if weight.device != device:
        raise ValueError(f"weight is on {weight.device}, features are on {device}")
    if bias is not None and bias.device != device:
        raise ValueError(f"bias is on {bias.device}, features are on {device}")
    if task_weights.device != device:
        raise ValueError(f"task_weights is on {task_weights.device}, features are on {device}")


def _check_dense(argument: str, tensor: Tensor) -> None:
    """Raise TypeError for a sparse tensor."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"{argument} must be dense, not {tensor.layout}; pass tensor.to_dense()")


def _check_target(
    layout: HeadLayout, k: int, target: Tensor, wanted: tuple[int, ...], device: torch.device
) -> None:
    """Raise what `check_arguments` does for a target that does not fit."""
    name, head = layout.names[k], layout.heads[k]
    head.check_target_type(name, target)
    if target.shape != wanted:
        axes = "(N,)" if len(wanted) == 1 else "(N, C)"
        raise ValueError(f"targets of {name} must be {axes} = {wanted}, not {tuple(target.shape)}")
    if target.device != device:
        raise ValueError(f"targets of {name} are on {target.device}, features on {device}")

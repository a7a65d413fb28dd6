"""Targets as rows, and values of some tasks spread over all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.kernels import HeadSpec, MultitaskLoss


def flat_target(name: str, target: Tensor, head: HeadSpec, rows: torch.Size) -> Tensor:
    """(N,) or (N, C) targets of one head over features (*rows, D).

    Raises ValueError, naming it, for another shape, and TypeError for anything but a tensor.
    """
    check_tensor(name, target)
    wanted = rows if head.kind.takes_classes else (*rows, head.size)
    if target.shape != wanted:
        if head.size == 1 and target.shape == rows:
            target = target.unsqueeze(-1)
        else:  # checked before flattening: (T, N) would pass for (N, T)
            raise ValueError(f"targets of {name} must be {tuple(wanted)}, not {tuple(target.shape)}")
    return target if len(rows) == 1 else target.flatten(0, len(rows) - 1)


def check_tensor(name: str, target: Any) -> None:
    """Raises TypeError for targets of a head that are no tensor."""
    if not isinstance(target, Tensor):
        if target is None:
            raise TypeError(f"targets of {name} are None; leave {name} out of a batch that has none")
        raise TypeError(
            f"targets of {name} must be a tensor, not {type(target).__name__}; pass torch.as_tensor(target)"
        )


def check_target(name: str, target: Any, head: HeadSpec) -> None:
    """Raises TypeError for targets of a head that are no tensor, or of a type that it does not take."""
    check_tensor(name, target)
    head.check_target_type(name, target)


def check_features(features: Any) -> None:
    """Raises TypeError for features that are no tensor, and ValueError for those without an axis D."""
    if not isinstance(features, Tensor):
        raise TypeError(
            f"features must be a tensor, not {type(features).__name__}; pass torch.as_tensor(features)"
        )
    if features.dim() < 2:
        raise ValueError(f"features must be (N, D) or (N, T, D), not {tuple(features.shape)}")


def check_width(features: Tensor, width: int) -> None:
    """Raises ValueError for features of another D than the heads were made for."""
    if features.shape[-1] != width:
        raise ValueError(
            f"features have D = {features.shape[-1]}, and the heads were made for D = {width}; make them with "
            f"in_features={features.shape[-1]}"
        )


def sum_losses(parts: Sequence[MultitaskLoss]) -> MultitaskLoss:
    """Sum the losses of different tasks, each (K,) with zeros for the other tasks."""
    if len(parts) == 1:
        return parts[0]
    return MultitaskLoss(*(torch.stack(same).sum(0) for same in zip(*parts, strict=True)))


def spread_losses(out: MultitaskLoss, places: list[int], K: int) -> MultitaskLoss:
    """Spread the losses of K' tasks over K tasks: zeros for the absent ones."""
    return MultitaskLoss(out.total, spread(out.losses, places, K), spread(out.correct, places, K))


def spread(values: Tensor, places: list[int], K: int) -> Tensor:
    """(K,) with the values (K',) at their places, and zeros elsewhere."""
    of_task = [values.new_zeros(())] * K
    for place, value in zip(places, values.unbind(), strict=True):
        of_task[place] = value
    return torch.stack(of_task)

"""Task weights that are learnt: a schedule that is an nn.Module.

Its `weights(active)` are (K,) and carry a gradient; `penalty(active)`, if it has one, is added to the total loss (as
the logarithms of uncertainty weighting are, Kendall et al. 2018, equation 10); its parameters join the optimizer. Which
tasks are active its `task_weights` says, as any schedule's; the numbers there are not read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def learnt_schedule(schedule: object, device: torch.device) -> nn.Module | None:
    """The schedule itself, moved to `device`, where it learns its weights; None for any other.

    Raises TypeError for a module without `weights`.
    """
    if not isinstance(schedule, nn.Module):
        return None
    if not callable(getattr(schedule, "weights", None)):
        raise TypeError(
            f"the schedule {type(schedule).__name__} is a module, and so needs weights(active) -> (K,) tensor"
        )
    return schedule.to(device)


def learnt_weights(schedule: nn.Module, active: Sequence[str]) -> Tensor:
    """(K,) float32 with gradient. Raises ValueError for another shape."""
    weights: Tensor = schedule.weights(tuple(active))  # type: ignore[operator,assignment]
    if weights.shape != (len(active),):
        raise ValueError(f"the schedule's weights must be ({len(active)},), not {tuple(weights.shape)}")
    return weights.float()


def penalty(schedule: nn.Module, active: Sequence[str]) -> Tensor | None:
    """() what is added to the total loss, or None."""
    own = getattr(schedule, "penalty", None)
    return None if own is None else own(tuple(active))

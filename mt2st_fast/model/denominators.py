"""What losses are divided by: counted labels, numbers given from outside, and weights of single rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.kernels import HeadSpec

TokenWeights = Tensor | Mapping[str, Tensor] | None  # for all tasks on the features' rows, or by task
Reduction = Literal["mean", "sum", "none"]


def label_count(head: HeadSpec, target: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """() float32, the divisor of a head's mean loss: its number of labels, or the weights of their classes and rows."""
    flat = target.reshape(-1) if head.kind.takes_classes else target.reshape(-1, head.size)
    counts = head.kind.counts(flat, head, torch.float32)
    return counts.sum() if row_weights is None else (counts * row_weights.reshape(-1)).sum()


def quick_label_count(head: HeadSpec, target: Tensor) -> float | None:
    """Return what `label_count` does, without operators of torch, each of which takes longer than to count; or None.

    None for other targets than classes on a CPU, and with class weights.
    """
    if not head.kind.takes_classes or head.options.column_weights is not None:
        return None
    if target.dtype is not torch.int64 or target.device.type != "cpu":
        return None
    return float(np.count_nonzero(target.numpy() != head.ignore_index))


def weights_of_rows(token_weights: TokenWeights, task: str) -> Tensor | None:
    """Return the weights of one task, if there are any."""
    return token_weights.get(task) if isinstance(token_weights, Mapping) else token_weights


def as_number(given: float | Tensor, device: torch.device | None) -> Tensor:
    """() float32 on a device, where a tensor may stay on its own if that is None.

    A number is filled in: a CUDA graph cannot capture a copy to the device.
    """
    if isinstance(given, Tensor):
        return given.to(device, torch.float32).reshape(())
    return torch.full((), float(given), dtype=torch.float32, device=device)


def scale_of(divisor: Tensor, count: Tensor | None) -> Tensor:
    """() factor that turns a mean over `count` labels, or a sum if that is None, into a sum over the divisor.

    0 if there are no labels at all, here or anywhere: 0 / 0 would poison the sum.
    """
    part = torch.ones_like(divisor) if count is None else count
    return torch.where((divisor if count is None else part) == 0, 0.0, part / divisor)


def check_denominators(
    denominators: Mapping[str, float | Tensor] | None, reduction: str, *, of_rows: bool = True
) -> None:
    """Raises ValueError for an unknown reduction, for denominators that it cannot use, and for a negative number.

    of_rows: whether losses of rows are allowed.
    """
    if reduction == "none" and not of_rows:
        raise ValueError("reduction='none' gives losses per row and no total; call task_losses for them")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, not {reduction!r}")
    if not denominators:
        return
    if reduction != "mean":
        raise ValueError(
            f"denominators divide a sum, but reduction={reduction!r} does not divide; pass only one of them"
        )
    for name, value in denominators.items():
        if isinstance(value, Tensor):  # reading it would wait for the device
            if value.numel() != 1:
                raise ValueError(f"the denominator of {name} must be one number, not {tuple(value.shape)}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"the denominator of {name} must be finite and not negative, not {value!r}")

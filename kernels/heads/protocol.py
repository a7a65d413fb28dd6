"""What every plan of every backend offers to the op: one module `<backend>_<plan>.py` of these functions.

forward(features, weight, bias, targets, task_weights, layout, needs, skip_zero_weights) -> Forward
backward(residual, grad_total, features, weight, bias, task_weights, layout, needs, *, own) -> gradients
residual_like(features, weight, bias, layout, needs) -> Residual of empty tensors
RESIDUAL_IS_GRADIENT: whether backward hands the residual out, so that it serves only once
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Needs = tuple[bool, bool, bool]
Residual = tuple[Tensor, Tensor, Tensor]


class Forward(NamedTuple):
    """Losses of K heads, and three tensors of the backend's own that its backward pass starts from."""

    losses: Tensor  # (K,) float32, mean over the valid rows or elements
    correct: Tensor  # (K,) int64, rows classified right
    residual: Residual  # of `residual_like`'s shapes; empty where no gradient is needed

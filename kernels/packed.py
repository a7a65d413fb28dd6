"""What a backend hands back from the forward pass of the packed plan, and what it keeps for the backward pass."""

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

"""The oracle of convolutions: torch's own."""

from __future__ import annotations

import torch
from torch import Tensor


def conv1d(inputs: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Return the outputs (B, C, T) of inputs (B, E, L) for weight (C, E, K) and bias (C,)."""
    return torch.nn.functional.conv1d(inputs, weight, bias, stride, padding)

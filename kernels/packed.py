"""What every backend's packed plan hands from its forward to its backward pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PackedForward(NamedTuple):
    """Losses of all heads and, where asked for, the gradients that the backward pass scales.

    losses (K,) float32: mean over the valid rows or elements of each task, 0 without any.
    scale (K,) float32: 1 / the denominator of that mean, 0 without any.
    correct (K,) int64: rows classified right.
    logit_gradient: gradient of each task's *summed* loss by its logits, (N, S) in the features' dtype on a
        GPU (the Numba backend keeps it transposed), or None. Unscaled values stay near 1, where 1/N times
        them would be subnormal in float16.
    bias_gradient (S,) float32: its sum over the rows, or None.
    """

    losses: Tensor
    scale: Tensor
    correct: Tensor
    logit_gradient: Tensor | None
    bias_gradient: Tensor | None

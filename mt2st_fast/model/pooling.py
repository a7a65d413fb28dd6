"""The features of a whole sequence, pooled from those of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2st_fast.kernels import Pooling


def pooling_of(task: object) -> Pooling:
    """Return how a task pools the features of a sequence; "none" if it does not say."""
    found: Pooling = getattr(task, "pooling", "none")
    return found


def pool(features: Tensor, how: Pooling, mask: Tensor | None, task: str) -> Tensor:
    """(N, D) from features (N, T, D): those of the first token, or their mean; "none" returns the features unchanged.

    mask: (N, T), True for real tokens; without it all are real. A sequence without a real token gives 0, as a bag
    without words does. Raises ValueError, naming the task, for features without tokens and for a mask of another shape.
    """
    if how == "none":
        return features
    if features.dim() != 3:
        raise ValueError(
            f"{task} pools the tokens of a sequence ({how}): its features must be (N, T, D), not "
            f"{tuple(features.shape)}"
        )
    if mask is None:
        return features[:, 0] if how == "first" else features.mean(1)
    if mask.shape != features.shape[:2]:
        raise ValueError(f"mask must be (N, T) = {tuple(features.shape[:2])}, not {tuple(mask.shape)}")
    if mask.is_floating_point() and not mask.is_cuda and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "mask must contain only 0 and 1 (True for real tokens), not the values added to attention scores"
        )
    real = mask.to(torch.bool)
    if how == "first":  # which is not at place 0 if the padding is on the left
        found = features[torch.arange(len(features), device=features.device), real.int().argmax(1)]
        return torch.where(real.any(1, keepdim=True), found, 0)
    # Replaced, not multiplied by 0: features of padding may be anything, NaN for example.
    kept = torch.where(real.unsqueeze(2), features, 0)
    return kept.sum(1) / real.sum(1, keepdim=True).clamp_min(1).to(features.dtype)

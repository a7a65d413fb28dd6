"""The oracle: the loss of context prediction in plain torch, in any floating-point dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import TILE, ContextBatch, LocalBatch


def reference_loss(inputs: Tensor, outputs: Tensor, batch: ContextBatch | LocalBatch) -> Tensor:
    """Return the mean loss over the positive pairs, differentiable in both tables (V, D), on their device."""
    words, low, high, drawn = (
        torch.as_tensor(ids, device=inputs.device).long()
        for ids in (batch.words, batch.low, batch.high, batch.drawn)
    )
    N, M = len(words), drawn.shape[1]
    if not N:
        return 0 * (inputs.sum() + outputs.sum())
    i = torch.arange(N, device=inputs.device).unsqueeze(1)
    j = i + torch.arange(-batch.window, batch.window + 1, device=inputs.device)
    in_window = (low.unsqueeze(1) <= j) & (j < high.unsqueeze(1)) & (j != i)
    neighbours = words[j.clamp(0, N - 1)]  # (N, 2 window + 1)
    if batch.mode == "cbow":
        share = in_window.to(inputs.dtype) / in_window.sum(1, keepdim=True).clamp_min(1)
        h = (share.unsqueeze(2) * inputs[neighbours]).sum(1)
        positives, is_pair = words.unsqueeze(1), in_window.any(1, keepdim=True)
    else:
        h, positives, is_pair = inputs[words], neighbours, in_window
    noise = drawn.repeat_interleave(TILE, 0)[:N]
    others = (is_pair.unsqueeze(2) & (positives.unsqueeze(2) != noise.unsqueeze(1))).sum(1)  # (N, M)
    positive = is_pair * F.softplus(-(outputs[positives] * h.unsqueeze(1)).sum(2))
    negative = others * F.softplus((outputs[noise] * h.unsqueeze(1)).sum(2))
    return (positive.sum() + batch.negatives / M * negative.sum()) / is_pair.sum().clamp_min(1)

"""The oracle: the multi-task loss in plain torch, one linear layer and the loss of its kind a head.

Runs in every floating dtype, float64 included, on every device, with gradients of any order. Tests and
benchmarks measure the kernels against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import HeadLayout, HeadSpec


def multitask_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    skip_zero_weights: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, losses (K,), correct (K,) int64), with autograd through `total` and `losses`.

    With `skip_zero_weights` a head of weight 0 has loss 0 and correct 0.
    """
    losses, correct = [], []
    for (first, last, head), name, target in zip(layout, layout.names, targets, strict=True):
        check_targets(name, target, head)
        logits = F.linear(features, weight[first:last], None if bias is None else bias[first:last])
        losses.append(head_loss(logits, target, head))
        correct.append(head_correct(logits.detach(), target, head))
    losses_k, correct_k = torch.stack(losses), torch.stack(correct)
    if skip_zero_weights:
        # Not a product: the loss may be infinite.
        losses_k = torch.where(task_weights == 0, 0, losses_k)
        correct_k = torch.where(task_weights == 0, 0, correct_k)
    return torch.dot(task_weights.to(losses_k.dtype), losses_k), losses_k, correct_k


def head_loss(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
    """Mean loss () of one head from its logits (N, C) over the valid rows or elements; 0 without any.

    Computed in float32, or in float64 where the logits are.
    """
    return head.kind.loss(_exact(logits), target, head)


def row_losses(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, Tensor]:
    """The loss (N,) of every row of one head, and what each counts for (N,): the sums' quotient is `head_loss`.

    Computed in float32, or in float64 where the logits are.
    """
    exact = _exact(logits)
    return head.kind.row_losses(exact, target, head), head.kind.counts(target, head, exact.dtype)


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_targets(name: str, target: Tensor, head: HeadSpec) -> None:
    """Raises ValueError for a class outside [0, C) that is not ignored, and for a value outside the kind's bounds."""
    is_outside = head.is_outside(target)
    if is_outside is not None and is_outside.any():
        raise ValueError(head.refusal(name, target[is_outside][0].item()))


def head_correct(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
    """Rows () int64 that one head gets right: first maximum, or every valid label on its side of 0."""
    return head.kind.correct(logits, target, head)

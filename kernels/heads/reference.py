"""The oracle: the multi-task loss in plain torch, with a linear layer and a loss per head.

Runs in every floating dtype, float64 included, on every device, with gradients of any order. Tests and benchmarks
compare the kernels with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .kind import HeadSpec, refusal
from .layout import HeadLayout


def multitask_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    skip_zero_weights: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (total, losses (K,), correct (K,) int64), with autograd through `total` and `losses`.

    With `skip_zero_weights` a head of weight 0 has loss 0 and correct 0.
    """
    losses, correct = [], []
    for (first, last, head), name, target in zip(layout, layout.names, targets, strict=True):
        known, refused = accepted_targets(name, target, head)
        logits = F.linear(features, weight[first:last], None if bias is None else bias[first:last])
        loss = head_loss(logits, known, head)
        losses.append(loss if refused is None else torch.where(refused.any(), float("nan"), loss))
        correct.append(head_correct(logits.detach(), known, head))
    losses_k, correct_k = torch.stack(losses), torch.stack(correct)
    if skip_zero_weights:
        # Not a product with 0: the loss may be infinite.
        losses_k = torch.where(task_weights == 0, 0, losses_k)
        correct_k = torch.where(task_weights == 0, 0, correct_k)
    return torch.dot(task_weights.to(losses_k.dtype), losses_k), losses_k, correct_k


def head_loss(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
    """Mean loss () of one head over the valid rows or elements, from its logits (N, C); 0 if none are valid.

    Computed in float32, or in float64 if the logits are float64.
    """
    return head.kind.loss(_exact(logits), target, head)


def row_losses(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, Tensor]:
    """Return the loss of every row of one head (N,), and how much each row counts (N,).

    The quotient of their sums is `head_loss`. Computed in float32, or in float64 if the logits are float64.
    """
    exact = _exact(logits)
    return head.kind.row_losses(exact, target, head), head.kind.counts(target, head, exact.dtype)


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class AcceptedTargets(NamedTuple):
    """Targets that a head accepts, and the rows (N,) whose own targets it did not; None: it accepted all of them."""

    target: Tensor
    refused: Tensor | None


def accepted_targets(name: str, target: Tensor, head: HeadSpec) -> AcceptedTargets:
    """Raise ValueError for a class outside [0, C) that is not ignored, and for a value outside the kind's bounds.

    Elsewhere than on a CPU, looking for one would wait for the device: there it becomes a missing target of a row that
    is refused, whose loss has to be NaN.
    """
    target = head.comparable(target)
    is_outside = head.is_outside(target)
    if is_outside is None:
        return AcceptedTargets(target, None)
    if not _is_at_hand(target):
        if head.kind.takes_classes:
            return AcceptedTargets(torch.where(is_outside, head.ignore_index, target.long()), is_outside)
        return AcceptedTargets(target.masked_fill(is_outside, float("nan")), is_outside.any(1))
    if torch.compiler.is_compiling():
        return AcceptedTargets(_checked_op(target, is_outside, name, head.wanted_targets), None)
    if not _is_batched(is_outside):
        _refuse(target, is_outside, name, head.wanted_targets)
    return AcceptedTargets(target, None)


def _is_at_hand(values: Tensor) -> bool:
    return values.is_cpu


def _refuse(target: Tensor, is_outside: Tensor, name: str, wanted: str) -> None:
    if is_outside.any():
        raise ValueError(refusal(name, target[is_outside][0].item(), wanted))


# torch.compile cannot trace a look at values, but an op that returns something else than its arguments, for the loss.
@torch.library.custom_op("mt2st_fast::checked_targets", mutates_args=())
def _checked_op(target: Tensor, is_outside: Tensor, name: str, wanted: str) -> Tensor:
    _refuse(target, is_outside, name, wanted)
    return target.clone()


@_checked_op.register_fake
def _(target: Tensor, is_outside: Tensor, name: str, wanted: str) -> Tensor:
    return torch.empty_like(target)


@_checked_op.register_vmap
def _(_info: Any, in_dims: Any, target: Tensor, *_: Any) -> tuple[Tensor, Any]:
    return target, in_dims[0]


def _is_batched(values: Tensor) -> bool:
    """Return whether values are those of many calls under vmap, which cannot be looked at."""
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(values):  # grad around vmap
        values = functorch.get_unwrapped(values)
    return bool(functorch.is_batchedtensor(values))


def head_correct(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
    """Count the rows that one head gets right, () int64: first maximum, or every valid label on its side of 0."""
    return head.kind.correct(logits, target, head)

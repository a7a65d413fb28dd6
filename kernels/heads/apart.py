"""The losses of several heads from one pass over the features, each with a gradient of its own.

For methods that look at the gradient of every task. Autograd's record of one fused loss for each head costs several
times as much as small heads do; here the kernels make the gradients of all heads at once, and the record of a loss
only hands out its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import check_arguments
from .call import Apart, HeadsCall
from .chosen import chosen_backend, chosen_plan, takes_no_autograd
from .layout import HeadLayout
from .parts import gradient_parts, take_parameters
from .upstream import is_batched, refuse_second_derivative


def losses_apart(
    features: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor] | None,
    targets: Sequence[Tensor],
    scales: Tensor,
    layout: HeadLayout,
    *,
    backend: str = "auto",
    plan: str = "auto",
) -> list[Tensor] | None:
    """Return K losses () float32, that of head k scales[k] times its mean; None if only `multitask_loss` can do it.

    features: (..., D). The gradient of each loss flows to the features and to the parameters of its own head. Other
    arguments and errors are those of `multitask_loss`, with one tensor per head.
    """
    if scales.requires_grad or len(weight) < 2 or not takes_no_autograd(features):
        return None
    chosen = chosen_backend(features.device, features.dtype, backend)
    if chosen == "reference":
        return None
    with torch.no_grad():
        rows = features.flatten(0, -2)
        forward: Callable[[HeadsCall], Apart] | None = getattr(
            chosen_plan(chosen, plan, rows, layout), "forward_apart", None
        )
        if forward is None:
            return None
        parameters = take_parameters(weight, bias, layout)
        check_arguments(rows, parameters.weight, parameters.bias, targets, scales, layout)
        needs = (features.requires_grad, *parameters.needs)
        made = forward(
            HeadsCall(rows, parameters.weight, parameters.bias, targets, scales.contiguous(), layout, needs)
        )
        losses = made.losses * scales
        of_features: Sequence[Tensor | None] = made.features or (None,) * len(layout)
        of_weight = gradient_parts(made.weight if needs[1] else None, layout)
        of_bias = gradient_parts(made.bias if needs[2] else None, layout)
        own = [
            _Own(losses[k].clone(), [of_features[k], of_weight[k], of_bias[k]]) for k in range(len(layout))
        ]
    biases: Sequence[Tensor | None] = [None] * len(layout) if bias is None else bias
    return [_LossOfOne.apply(features, *each) for each in zip(weight, biases, own, strict=True)]


class _Own(NamedTuple):
    """What one head has made."""

    loss: Tensor  # (), with memory of its own
    gradients: list[Tensor | None]  # of features (N, D), weight and bias; None if not needed, or handed out


class _LossOfOne(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, own: _Own
    ) -> Tensor:
        """Return the loss; its gradients are made already."""
        # Saved so that autograd refuses a backward pass if one was modified in between, or the graph is freed.
        ctx.save_for_backward(features, weight, bias)
        ctx.gradients = own.gradients
        ctx.set_materialize_grads(False)
        return own.loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_loss is None:
            return None, None, None, None
        refuse_second_derivative()
        batched = is_batched(grad_loss)
        factor = grad_loss if batched else grad_loss.item()
        kept = batched or _keeps_graph()
        found: list[Tensor | None] = [None] * 4
        for i, like in enumerate(ctx.saved_tensors):
            gradient = ctx.gradients[i] if ctx.needs_input_grad[i] else None
            if gradient is None:
                continue
            if not kept:
                ctx.gradients[i] = None  # so that autograd need not copy what it adds to nothing
            found[i] = _scaled(gradient, factor, like, kept)
        return tuple(found)


def _scaled(gradient: Tensor, factor: float | Tensor, like: Tensor, kept: bool) -> Tensor:
    """Return the gradient times the upstream one; in new memory if it is `kept` for another backward pass."""
    if kept:
        gradient = gradient * factor
    elif factor != 1.0:
        gradient.mul_(factor)
    return gradient.to(like.dtype).view(like.shape)


def _keeps_graph() -> bool:
    """Return whether the backward pass that is under way may be followed by another one."""
    return torch._C._autograd._get_current_graph_task_keep_graph()

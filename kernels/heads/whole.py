"""The total of heads whose gradients are made already, for autograd: it only hands them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .call import Gradients, HeadsCall, Needs, Plan, Whole
from .known import Lookup
from .layout import HeadLayout
from .parts import gradient_parts, take_known_parameters
from .upstream import is_batched, refuse_modified, refuse_second_derivative, versions_of


def loss_of_whole(made: Whole, found: Lookup, layout: HeadLayout, plan: Plan, needs: Needs) -> Tensor:
    """Return the total with the gradients that `needs` asks for."""
    if True not in needs:
        return made.total
    first = 2 + len(layout)
    features, task_weights, *targets = found.tensors[:first]
    how = _How(targets, versions_of(targets), layout, plan, needs, found.n_weights)
    return _WholeLoss.apply(how, made, features, task_weights, *found.tensors[first:])  # type: ignore[no-any-return]


class _How(NamedTuple):
    """What a call has besides tensors with a gradient."""

    targets: Sequence[Tensor]
    versions: list[int]
    layout: HeadLayout
    plan: Plan
    needs: Needs
    n_weights: int


class _WholeLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, how: _How, made: Whole, features: Tensor, task_weights: Tensor, *parameters: Tensor
    ) -> Tensor:
        """Return the total. parameters: n_weights weights, and as many biases, if any."""
        # So that autograd refuses a backward pass if one was modified in between, and a second one of a freed graph.
        ctx.save_for_backward(features, task_weights, *parameters)
        # Not all of `made`: it holds the total, which holds this.
        ctx.how, ctx.gradients = how, made.gradients
        ctx.set_materialize_grads(False)
        return made.total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * len(ctx.needs_input_grad)
        refuse_second_derivative()
        features, task_weights, *parameters = ctx.saved_tensors
        how: _How = ctx.how
        # Handed out once: nobody may find them changed by what was done to them since.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _again(how, features, task_weights, parameters)
        d_features, d_weight, d_bias = _times(gradients, grad_total)
        has_bias = len(parameters) > how.n_weights
        if how.n_weights == 1:
            return None, None, d_features, None, d_weight, *((d_bias,) if has_bias else ())
        d_parts = gradient_parts(d_weight, how.layout)
        if has_bias:
            d_parts += gradient_parts(d_bias, how.layout)
        return None, None, d_features, None, *d_parts


def _times(gradients: Gradients, grad_total: Tensor) -> Gradients:
    if is_batched(grad_total):  # under vmap over several gradients
        d_features, d_weight, d_bias = (None if g is None else g * grad_total for g in gradients)
        return d_features, d_weight, d_bias
    upstream = grad_total.item()
    if upstream != 1.0:
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(upstream)
    return gradients


def _again(how: _How, features: Tensor, task_weights: Tensor, parameters: list[Tensor]) -> Gradients:
    """Return the gradients that were handed out, for a graph that was retained."""
    refuse_modified(how.targets, how.versions)
    weights, biases = parameters[: how.n_weights], parameters[how.n_weights :]
    rows, bias, _ = take_known_parameters(weights, biases or None, how.layout) if how.n_weights > 1 else (
        weights[0], biases[0] if biases else None, ()
    )  # fmt: skip
    call = HeadsCall(features, rows, bias, how.targets, task_weights, how.layout, how.needs)
    d_features, d_weight, d_bias = (
        gradient if needed else None
        for gradient, needed in zip(how.plan.forward(call).residual, how.needs, strict=True)
    )
    return d_features, d_weight, d_bias

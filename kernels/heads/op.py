"""The fused op: the weighted multi-task loss of all heads and its gradients, at once.

Checks the arguments, chooses backend and plan, and ties the backend's forward and backward passes into autograd. In
eager mode that is an autograd.Function; under torch.compile it is a pair of custom ops with fake kernels (in eager
mode the dispatcher would cost 40 microseconds a call).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..machine.templates import ONE
from . import reference
from .arguments import check_arguments
from .call import MOST_RESIDUAL, Forward, Given, Gradients, HeadsCall, Needs, Plan, Residual
from .chosen import chosen_backend, chosen_plan, is_autocast, takes_no_autograd
from .known import Known, Lookup, known_call, look_up, remember
from .layout import HeadLayout
from .parts import Parameters, Rows, gradient_parts, take_known_parameters, take_parameters
from .plans import check_plan
from .upstream import is_batched, refuse_modified, refuse_second_derivative, versions_of
from .whole import loss_of_whole


class MultitaskLoss(NamedTuple):
    """Result of the fused op."""

    total: Tensor  # () float32, sum over k of task_weights[k] * losses[k]; the only output with a gradient
    losses: Tensor  # (K,) float32
    correct: Tensor  # (K,) int64


def multitask_loss(
    features: Tensor,
    weight: Rows,
    bias: Rows | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    *,
    backend: str = "auto",
    plan: str = "auto",
) -> MultitaskLoss:
    """Compute the weighted multi-task loss of K linear heads over shared features.

    features: (N, D).
    weight, bias: either (S, D) and (S,), which hold the rows of all heads one after another as `layout` says, or one
    tensor (C, D) and (C,) per head. Tensors that `lay_adjacent` has placed are read in place.
    targets: K tensors, integers (N,) for a softmax head and floats (N, C) for the others.
    task_weights: (K,) float32 on the features' device.

    losses[k] is the mean over the valid rows of task k (valid elements for float targets), or 0 if there are none.
    total = sum_k task_weights[k] losses[k]; its gradient flows to features, weight, bias and task_weights. A head of
    weight exactly 0 is not computed: its loss and correct count are 0, unless task_weights needs a gradient.

    Under autocast the features are cast to the autocast dtype; the weight may stay float32.

    Raises ValueError or TypeError, naming the argument, for an argument that does not fit; ValueError for a class
    target outside [0, C) (on a GPU that task's loss is NaN instead, since checking would wait for the device);
    RuntimeError for an explicit backend that cannot run, and for a second derivative.
    """
    given = Given(features, weight, bias, targets, task_weights, layout, backend, plan)
    found = look_up(given)
    known = known_call(found)
    return _checked_loss(given, found) if known is None else _loss(given, known, found)


def _checked_loss(given: Given, found: Lookup | None) -> MultitaskLoss:
    """Compute the loss of a call of which nothing is known."""
    features, weight, bias, targets, task_weights, layout, backend, plan = given
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace would keep the loss of this batch as a constant; trace the logits of each task "
            "(MultiTaskHeads.logits), or use torch.compile"
        )
    parameters = take_parameters(weight, bias, layout)
    check_arguments(features, parameters.weight, parameters.bias, targets, task_weights, layout)
    # Like torch's own linear, leave float64 alone under autocast.
    if is_autocast(features.device) and features.dtype != torch.float64:
        features = features.to(torch.get_autocast_dtype(features.device.type))
    chosen = chosen_backend(features.device, features.dtype, backend)
    if chosen == "reference":
        check_plan(plan, chosen)
        return _by_reference(given._replace(features=features), parameters.by_autograd())
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "multitask_loss computes its gradients in kernels that torch.func transforms cannot see; "
            'use backend="reference" under torch.func, or loss.backward() without it'
        )
    needs = (features.requires_grad, *parameters.needs)
    if torch.compiler.is_compiling():
        total, losses, correct, *_ = _forward_op(
            features,
            parameters.weight,
            parameters.bias,
            list(targets),
            task_weights.contiguous(),
            layout.key,
            chosen,
            plan,
            list(needs if torch.is_grad_enabled() else NOTHING),
            _skips_zero_weights(task_weights),
        )
        return MultitaskLoss(total, losses, correct)
    known = remember(found, chosen_plan(chosen, plan, features, layout), needs, layout)
    return _loss(given._replace(features=features), known, found)


def _loss(given: Given, known: Known, found: Lookup | None) -> MultitaskLoss:
    features, weight, bias, targets, task_weights, layout, *_ = given
    # autograd's needs_input_grad is True even under no_grad.
    needs = known.needs if torch.is_grad_enabled() else NOTHING
    skips = _skips_zero_weights(task_weights)
    if known.at_once is not None and skips:
        assert found is not None
        made = known.at_once(found.tensors, found.n_weights, layout, needs, skips)
        if made is not None:
            return MultitaskLoss(
                loss_of_whole(made, found, layout, known.plan, needs), made.losses, made.correct
            )
    rows, biases, parts = take_known_parameters(weight, bias, layout)
    how = _How(targets, layout, known.plan, needs, skips)
    kept: list[Tensor] = []
    total = _FusedLoss.apply(features, rows, biases, task_weights.contiguous(), how, kept, *parts)
    losses, correct = kept
    return MultitaskLoss(total, losses, correct)


NOTHING = (False, False, False)


def _skips_zero_weights(task_weights: Tensor) -> bool:
    # A learned weight of 0 still needs the loss that it would scale: that loss is its gradient.
    return not (task_weights.requires_grad and torch.is_grad_enabled())


def _by_reference(given: Given, together: Parameters) -> MultitaskLoss:
    dtype, task_weights = given.features.dtype, given.task_weights.contiguous()
    weight, bias = together.weight.to(dtype), None if together.bias is None else together.bias.to(dtype)
    kind, is_meta = given.features.device.type, given.features.is_meta
    with nullcontext() if is_meta else torch.autocast(kind, enabled=False):
        total, losses, correct = reference.multitask_loss(
            given.features, weight, bias, given.targets, task_weights, given.layout,
            _skips_zero_weights(task_weights),
        )  # fmt: skip
    return MultitaskLoss(total, losses.detach(), correct)


class GradientsAtOnce(NamedTuple):
    """Losses, and the gradients of their weighted sum; None for what needs no gradient."""

    losses: Tensor  # (K,) float32
    features: Tensor | None  # (N, D)
    weights: Sequence[Tensor | None]  # K, each (C, D)
    biases: Sequence[Tensor | None]  # K, each (C,); empty without biases


def multitask_gradients(
    features: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor] | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    *,
    backend: str = "auto",
    plan: str = "auto",
) -> GradientsAtOnce | None:
    """Compute what `multitask_loss(...).total.backward()` would, without autograd; None if it takes autograd.

    On a CPU the kernels make the gradients together with the losses, and for small heads autograd's record of that
    costs more than both. Arguments and errors are those of `multitask_loss`, with one tensor per head.
    """
    if task_weights.requires_grad or not takes_no_autograd(features):
        return None
    found = look_up(Given(features, weight, bias, targets, task_weights, layout, backend, plan))
    known = known_call(found)
    if known is None:
        chosen = chosen_backend(features.device, features.dtype, backend)
        if chosen == "reference":
            return None
        parameters = take_parameters(weight, bias, layout)
        check_arguments(features, parameters.weight, parameters.bias, targets, task_weights, layout)
        needs = (features.requires_grad, *parameters.needs)
        known = remember(found, chosen_plan(chosen, plan, features, layout), needs, layout)
    if known.at_once is not None:
        assert found is not None
        made = known.at_once(found.tensors, found.n_weights, layout, known.needs, True)
        if made is not None:
            return _by_head(made.losses, made.gradients, layout, bias is not None)
    parameters = take_known_parameters(weight, bias, layout)
    with torch.no_grad():
        call = HeadsCall(
            features,
            parameters.weight,
            parameters.bias,
            targets,
            task_weights.contiguous(),
            layout,
            known.needs,
        )
        result = known.plan.forward(call)
        gradients = known.plan.backward(call, result.residual, ONE, own=True)
    return _by_head(result.losses, gradients, layout, bias is not None)


def _by_head(losses: Tensor, gradients: Gradients, layout: HeadLayout, has_bias: bool) -> GradientsAtOnce:
    d_features, d_weight, d_bias = gradients
    of_bias = gradient_parts(d_bias, layout) if has_bias else ()
    return GradientsAtOnce(losses, d_features, gradient_parts(d_weight, layout), of_bias)


class _How(NamedTuple):
    """What a call of the op has besides tensors with a gradient."""

    targets: Sequence[Tensor]
    layout: HeadLayout
    plan: Plan
    needs: Needs
    skip_zero_weights: bool


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        task_weights: Tensor,
        how: _How,
        made: list[Tensor],
        *parts: Tensor,
    ) -> Tensor:
        """Return the total; losses and correct, which have no gradient, are appended to `made`."""
        targets, layout, plan, needs, skip_zero_weights = how
        result = plan.forward(
            HeadsCall(features, weight, bias, targets, task_weights, layout, needs, skip_zero_weights)
        )
        losses, correct, ctx.residual, _ = result
        made += losses, correct
        # Save the parts as well, so that autograd refuses a backward pass if one was modified in between.
        ctx.save_for_backward(features, weight, bias, task_weights, losses, *parts)
        ctx.how, ctx.n_parts, ctx.versions = how, len(parts), versions_of(targets)
        ctx.set_materialize_grads(False)
        return _total(result, task_weights)

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * (6 + ctx.n_parts)
        refuse_second_derivative()
        features, weight, bias, task_weights, losses, *_ = ctx.saved_tensors
        d_task_weights = grad_total * losses if ctx.needs_input_grad[3] else None
        targets, layout, _, needs, skip_zero_weights = ctx.how
        d_features, d_weight, d_bias = None, None, None
        if True in needs:
            call = HeadsCall(features, weight, bias, targets, task_weights, layout, needs, skip_zero_weights)
            if is_batched(grad_total):
                # Under vmap over several gradients the kernels get 1: gradients are linear in the upstream one.
                one = torch.ones((), dtype=losses.dtype, device=losses.device)
                d_features, d_weight, d_bias = (
                    None if g is None else (g * grad_total).to(g.dtype) for g in _gradients(ctx, call, one)
                )
            else:
                d_features, d_weight, d_bias = _gradients(ctx, call, grad_total)
        if not ctx.n_parts:
            return d_features, d_weight, d_bias, d_task_weights, None, None
        d_parts = gradient_parts(d_weight, layout)
        if bias is not None:
            d_parts += gradient_parts(d_bias, layout)
        return d_features, None, None, d_task_weights, None, None, *d_parts


def _gradients(ctx: Any, call: HeadsCall, grad_total: Tensor) -> Gradients:
    if torch.is_autocast_enabled(call.features.device.type):
        # backward() inside an autocast region would round the GEMMs of the gradients to the autocast dtype.
        with torch.autocast(call.features.device.type, enabled=False):
            return _unrounded_gradients(ctx, call, grad_total)
    return _unrounded_gradients(ctx, call, grad_total)


def _unrounded_gradients(ctx: Any, call: HeadsCall, grad_total: Tensor) -> Gradients:
    plan: Plan = ctx.how.plan
    residual = ctx.residual
    if residual is None:
        # Only reached for a retained graph whose gradients were already handed out.
        refuse_modified(call.targets, ctx.versions)
        residual = plan.forward(call).residual
    if plan.RESIDUAL_IS_GRADIENT:
        ctx.residual = None
    return plan.backward(call, residual, grad_total, own=True)


def _total(result: Forward, task_weights: Tensor) -> Tensor:
    return torch.dot(task_weights, result.losses) if result.total is None else result.total


# --- under torch.compile -------------------------------------------------------------------------------


@torch.library.custom_op("mt2st_fast::multitask_forward", mutates_args=())
def _forward_op(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: list[Tensor],
    task_weights: Tensor,
    layout_key: str,
    backend: str,
    plan: str,
    needs: list[bool],
    skip_zero_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (total, losses, correct, and the three tensors of the backend's residual)."""
    layout = HeadLayout.from_key(layout_key)
    result = chosen_plan(backend, plan, features, layout).forward(
        HeadsCall(features, weight, bias, targets, task_weights, layout, _triple(needs), skip_zero_weights)
    )
    return (
        _total(result, task_weights),
        result.losses,
        result.correct,
        *_three(result.residual, result.losses),
    )


def _three(residual: Residual, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The residual and empty tensors after it: a custom op returns always as many, and none twice."""
    assert MOST_RESIDUAL == 3
    first, second, third = (*residual, *(like.new_empty(0) for _ in range(MOST_RESIDUAL - len(residual))))
    return first, second, third


@_forward_op.register_fake
def _(features, weight, bias, targets, task_weights, layout_key, backend, plan, needs, skip_zero_weights):  # type: ignore[no-untyped-def]
    layout = HeadLayout.from_key(layout_key)
    K = len(layout)
    as_float32 = {"dtype": torch.float32, "device": features.device}
    residual = chosen_plan(backend, plan, features, layout).residual_like(
        HeadsCall(features, weight, bias, targets, task_weights, layout, _triple(needs))
    )
    losses = torch.empty(K, **as_float32)
    correct = torch.empty(K, dtype=torch.int64, device=features.device)
    return torch.empty((), **as_float32), losses, correct, *_three(residual, losses)


@torch.library.custom_op("mt2st_fast::multitask_backward", mutates_args=())
def _backward_op(
    residual: list[Tensor],
    grad_total: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    task_weights: Tensor,
    layout_key: str,
    backend: str,
    plan: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (d_features, d_weight, d_bias), each empty if not needed."""
    layout = HeadLayout.from_key(layout_key)
    call = HeadsCall(features, weight, bias, (), task_weights, layout, _triple(needs))
    first, second, third = residual
    gradients = chosen_plan(backend, plan, features, layout).backward(
        call, (first, second, third), grad_total, own=False
    )
    d_features, d_weight, d_bias = (features.new_empty(0) if g is None else g for g in gradients)
    return d_features, d_weight, d_bias


@_backward_op.register_fake
def _(residual, grad_total, features, weight, bias, task_weights, layout_key, backend, plan, needs):  # type: ignore[no-untyped-def]
    wanted = zip((features, weight, bias), needs, strict=True)
    d_features, d_weight, d_bias = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if need else features.new_empty(0)
        for t, need in wanted
    )
    return d_features, d_weight, d_bias


def _triple(needs: Sequence[bool]) -> Needs:
    d_features, d_weight, d_bias = needs
    return d_features, d_weight, d_bias


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weight, bias, targets, task_weights, *ctx.how, _ = inputs
    ctx.needs = ctx.how[-1]
    _, losses, correct, *residual = output
    ctx.n_targets = len(targets)
    ctx.mark_non_differentiable(losses, correct, *residual)
    ctx.save_for_backward(features, weight, bias, task_weights, losses, *residual)


def _backward_of_op(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Any, ...]:
    features, weight, bias, task_weights, losses, *residual = ctx.saved_tensors
    gradients: list[Tensor | None] = [None, None, None]
    if any(ctx.needs):
        made = _backward_op(residual, grad_total, features, weight, bias, task_weights, *ctx.how)
        gradients = [g if need else None for g, need in zip(made, ctx.needs, strict=True)]
    d_task_weights = grad_total * losses if ctx.needs_input_grad[4] else None
    return *gradients, [None] * ctx.n_targets, d_task_weights, None, None, None, None, None


_forward_op.register_autograd(_backward_of_op, setup_context=_keep_for_backward)

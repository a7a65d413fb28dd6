"""The fused op: weighted multi-task loss and its gradients for all heads at once.

Checks the arguments, chooses backend and plan, and ties the backend's forward and backward pass into
autograd. In eager mode that is an autograd.Function; under torch.compile it is a pair of custom ops with
fake kernels (the dispatcher would cost eager mode 40 microseconds a call).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .choice import choose_backend, choose_plan
from .layout import HeadLayout, Kind
from .packed import PackedForward


class MultitaskLoss(NamedTuple):
    """What the fused op returns."""

    total: Tensor  # () float32, sum over k of task_weights[k] * losses[k]; the only output with a gradient
    losses: Tensor  # (K,) float32
    correct: Tensor  # (K,) int64


def multitask_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    *,
    backend: str = "auto",
    plan: str = "auto",
) -> MultitaskLoss:
    """Weighted multi-task loss of K linear heads over shared features.

    features (N, D), weight (S, D) and bias (S,) hold the heads' rows one after another as `layout` says;
    targets are K tensors, integers (N,) for a softmax head and floats (N, C) for the others; task_weights
    is (K,) float32 on the features' device. losses[k] is the mean over the valid rows of task k (valid
    elements for float targets), and 0 where there are none. total = sum_k task_weights[k] losses[k]; its
    gradient flows to features, weight, bias and task_weights.

    Under autocast the features are taken in the autocast dtype and the weight may stay float32.

    Raises ValueError or TypeError naming the argument that does not fit; ValueError for a class target
    outside [0, C) (on a GPU its task's loss is NaN instead: looking would wait for the device);
    RuntimeError for an explicit backend that cannot run, and for a second derivative.
    """
    _check(features, weight, bias, targets, task_weights, layout)
    # As in torch's own linear, autocast leaves float64 alone.
    if torch.is_autocast_enabled(features.device.type) and features.dtype != torch.float64:
        features = features.to(torch.get_autocast_dtype(features.device.type))
    choose_plan(plan)
    chosen = _chosen_backend(features.device, features.dtype, backend)
    if chosen == "reference":
        with torch.autocast(features.device.type, enabled=False):
            total, losses, correct = reference.multitask_loss(
                features,
                weight.to(features.dtype),
                None if bias is None else bias.to(features.dtype),
                targets,
                task_weights,
                layout,
            )
        return MultitaskLoss(total, losses.detach(), correct)
    # autograd's needs_input_grad says yes under no_grad, too.
    need_gradient = torch.is_grad_enabled() and (
        features.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if torch.compiler.is_compiling():
        total, losses, correct, *_ = _forward_op(
            features, weight, bias, list(targets), task_weights, layout.key, chosen, need_gradient
        )
        return MultitaskLoss(total, losses, correct)
    module = _backend_module(chosen)
    return MultitaskLoss(
        *_FusedLoss.apply(features, weight, bias, task_weights, targets, layout, module, need_gradient)
    )


# Dynamo would trace into the choice and warn of its cache.
@torch.compiler.assume_constant_result
def _chosen_backend(device: torch.device, dtype: torch.dtype, requested: str) -> str:
    return choose_backend(device, dtype, requested).name


@lru_cache
def _backend_module(name: str) -> ModuleType:
    """Triton and Numba take seconds to import: only the backend that is used pays."""
    return importlib.import_module(f".{name}_packed", __package__)


@lru_cache(maxsize=512)
def _columns(layout: HeadLayout, device: torch.device) -> Tensor:
    """(S,) the index k of the head that each packed column belongs to."""
    sizes = torch.tensor([head.size for head in layout.heads])
    return torch.repeat_interleave(torch.arange(len(layout)), sizes).to(device)


def _backward(
    module: ModuleType,
    layout: HeadLayout,
    grad_total: Tensor,
    features: Tensor,
    weight: Tensor,
    bias_dtype: torch.dtype | None,
    task_weights: Tensor,
    scale: Tensor,
    logit_gradient: Tensor,
    bias_gradient: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    # The upstream gradient is a scalar on the device: folded in here, it costs nothing per row.
    scale_k = grad_total * task_weights * scale
    column_scale = scale_k[_columns(layout, scale_k.device)]
    with _without_autocast(features.device.type):
        return module.packed_backward(
            features, weight, logit_gradient, bias_gradient, column_scale, needs, bias_dtype
        )


def _without_autocast(device_type: str) -> AbstractContextManager[None]:
    """backward() inside an autocast region would round the GEMMs of the gradients."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        task_weights: Tensor,
        targets: Sequence[Tensor],
        layout: HeadLayout,
        module: ModuleType,
        need_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: PackedForward = module.packed_forward(
            features, weight, bias, targets, layout, need_gradient=need_gradient
        )
        ctx.save_for_backward(
            features, weight, task_weights, result.losses, result.scale,
            result.logit_gradient, result.bias_gradient,
        )  # fmt: skip
        ctx.layout, ctx.module, ctx.bias_dtype = layout, module, bias.dtype if bias is not None else None
        ctx.mark_non_differentiable(result.losses, result.correct)
        ctx.set_materialize_grads(False)
        return torch.dot(task_weights, result.losses), result.losses, result.correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * 8
        _refuse_second_derivative()
        features, weight, task_weights, losses, scale, logit_gradient, bias_gradient = ctx.saved_tensors
        gradients: tuple[Tensor | None, ...] = (None, None, None)
        if any(ctx.needs_input_grad[:3]):
            gradients = _backward(
                ctx.module, ctx.layout, grad_total, features, weight, ctx.bias_dtype, task_weights, scale,
                logit_gradient, bias_gradient, ctx.needs_input_grad[:3],
            )  # fmt: skip
        d_task_weights = grad_total * losses if ctx.needs_input_grad[3] else None
        return *gradients, d_task_weights, None, None, None, None


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "multitask_loss has no second derivative (create_graph=True was asked for); "
            'use backend="reference" for one'
        )


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
    need_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(total, losses, correct, scale, logit gradient, bias gradient); the last two empty if not needed."""
    layout = HeadLayout.from_key(layout_key)
    result = _backend_module(backend).packed_forward(
        features, weight, bias, targets, layout, need_gradient=need_gradient
    )
    nothing = features.new_empty(0)
    return (
        torch.dot(task_weights, result.losses),
        result.losses,
        result.correct,
        result.scale,
        nothing if result.logit_gradient is None else result.logit_gradient,
        nothing.clone() if result.bias_gradient is None else result.bias_gradient,
    )


@_forward_op.register_fake
def _(features, weight, bias, targets, task_weights, layout_key, backend, need_gradient):  # type: ignore[no-untyped-def]
    layout = HeadLayout.from_key(layout_key)
    K, S = len(layout), layout.width
    shape, dtype = _backend_module(backend).residual(features.shape[0], S, features.dtype)
    as_float32 = {"dtype": torch.float32, "device": features.device}
    return (
        torch.empty((), **as_float32),
        torch.empty(K, **as_float32),
        torch.empty(K, dtype=torch.int64, device=features.device),
        torch.empty(K, **as_float32),
        torch.empty(shape, dtype=dtype, device=features.device) if need_gradient else features.new_empty(0),
        torch.empty(S, **as_float32) if need_gradient else features.new_empty(0),
    )


@torch.library.custom_op("mt2st_fast::multitask_backward", mutates_args=())
def _backward_op(
    grad_total: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    task_weights: Tensor,
    scale: Tensor,
    logit_gradient: Tensor,
    bias_gradient: Tensor,
    layout_key: str,
    backend: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_features, d_weight, d_bias), empty where not needed."""
    gradients = _backward(
        _backend_module(backend), HeadLayout.from_key(layout_key), grad_total, features, weight,
        None if bias is None else bias.dtype, task_weights, scale, logit_gradient, bias_gradient,
        (needs[0], needs[1], needs[2]),
    )  # fmt: skip
    d_features, d_weight, d_bias = (features.new_empty(0) if g is None else g for g in gradients)
    return d_features, d_weight, d_bias


@_backward_op.register_fake
def _(  # type: ignore[no-untyped-def]
    grad_total, features, weight, bias, task_weights, scale, logit_gradient, bias_gradient,
    layout_key, backend, needs,
):  # fmt: skip
    wanted = zip((features, weight, bias), needs, strict=True)
    d_features, d_weight, d_bias = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if need else features.new_empty(0)
        for t, need in wanted
    )
    return d_features, d_weight, d_bias


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, weight, bias, targets, task_weights, ctx.layout_key, ctx.backend, ctx.need_gradient = inputs
    _, losses, correct, scale, logit_gradient, bias_gradient = output
    ctx.n_targets = len(targets)
    ctx.mark_non_differentiable(losses, correct, scale, logit_gradient, bias_gradient)
    ctx.save_for_backward(features, weight, bias, task_weights, losses, scale, logit_gradient, bias_gradient)


def _backward_of_op(ctx: Any, grad_total: Tensor, *_: Any) -> tuple[Any, ...]:
    features, weight, bias, task_weights, losses, scale, logit_gradient, bias_gradient = ctx.saved_tensors
    needs = [bool(need) for need in ctx.needs_input_grad[:3]]
    gradients: list[Tensor | None] = [None, None, None]
    if any(needs):
        made = _backward_op(
            grad_total, features, weight, bias, task_weights, scale, logit_gradient, bias_gradient,
            ctx.layout_key, ctx.backend, needs,
        )  # fmt: skip
        gradients = [g if need else None for g, need in zip(made, needs, strict=True)]
    d_task_weights = grad_total * losses if ctx.needs_input_grad[4] else None
    return *gradients, [None] * ctx.n_targets, d_task_weights, None, None, None


_forward_op.register_autograd(_backward_of_op, setup_context=_keep_for_backward)


# --- checks --------------------------------------------------------------------------------------------


def _check(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
) -> None:
    K, S = len(layout), layout.width
    if features.dim() != 2:
        raise ValueError(f"features must be (N, D), not {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, not {features.dtype}")
    N, D = features.shape
    if weight.shape != (S, D):
        raise ValueError(f"weight must be (S, D) = ({S}, {D}), not {tuple(weight.shape)}")
    if bias is not None and bias.shape != (S,):
        raise ValueError(f"bias must be (S,) = ({S},), not {tuple(bias.shape)}")
    for argument, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{argument} must be floating point, not {tensor.dtype}")
    if task_weights.shape != (K,):
        raise ValueError(f"task_weights must be (K,) = ({K},), not {tuple(task_weights.shape)}")
    if task_weights.dtype != torch.float32 and features.dtype != torch.float64:
        raise TypeError(f"task_weights must be float32, not {task_weights.dtype}")
    if len(targets) != K:
        raise ValueError(f"targets: {len(targets)} given for {K} heads ({', '.join(layout.names)})")
    for name, head, target in zip(layout.names, layout.heads, targets, strict=True):
        if head.kind is Kind.SOFTMAX:
            if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
                raise TypeError(f"targets of {name} must be integers, not {target.dtype}")
            if target.shape != (N,):
                raise ValueError(f"targets of {name} must be (N,) = ({N},), not {tuple(target.shape)}")
        elif not target.is_floating_point():
            raise TypeError(f"targets of {name} must be floating point, not {target.dtype}")
        elif target.shape != (N, head.size):
            raise ValueError(
                f"targets of {name} must be (N, C) = ({N}, {head.size}), not {tuple(target.shape)}"
            )
        if target.device != features.device:
            raise ValueError(f"targets of {name} are on {target.device}, features on {features.device}")
    for argument, tensor in (("weight", weight), ("bias", bias), ("task_weights", task_weights)):
        if tensor is not None and tensor.device != features.device:
            raise ValueError(f"{argument} is on {tensor.device}, features are on {features.device}")

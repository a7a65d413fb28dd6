"""The packed plan on a GPU: one GEMM for all heads' logits, one segmented loss pass, one GEMM a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..call import Forward, Gradients, HeadsCall, Residual
from .loss_blocks import padded_width
from .loss_pass import segment_loss
from .tables import (
    head_tables,
)

RESIDUAL_IS_GRADIENT = False


def forward(call: HeadsCall) -> Forward:
    """Losses of all heads; the residual is (scale (K,), unscaled logit gradient, bias gradient (S,)).

    The logit gradient is the first S columns of a buffer (N, `padded_width`). Task weights enter in the
    backward pass; with `skip_zero_weights` a task of weight 0 has loss 0 and is not computed. Raises what
    `segment_loss` raises.
    """
    features, layout, needs = call.features, call.layout, call.needs
    S = layout.width
    buffer = features.new_empty(features.shape[0], padded_width(layout))
    logits = torch.mm(features, call.weight.to(features.dtype).t(), out=buffer[:, :S])
    need_gradient = any(needs)
    result = segment_loss(
        logits,
        call.bias,
        call.targets,
        layout,
        need_gradient=need_gradient,
        need_bias_gradient=needs[2],
        skip_by=call.task_weights if call.skip_zero_weights else None,
    )
    nothing = features.new_empty(0)
    if not need_gradient:
        return Forward(result.losses, result.correct, (nothing, nothing.clone(), nothing.clone()))
    bias_gradient = nothing if result.bias_gradient is None else result.bias_gradient
    return Forward(result.losses, result.correct, (result.scale, buffer, bias_gradient))


def residual_like(call: HeadsCall) -> Residual:
    """Empty tensors of the shapes and dtypes of the residual."""
    features, layout, needs = call.features, call.layout, call.needs
    nothing = features.new_empty(0)
    if not any(needs):
        return nothing, nothing.clone(), nothing.clone()
    return (
        features.new_empty(len(layout), dtype=torch.float32),
        features.new_empty(features.shape[0], padded_width(layout)),
        features.new_empty(layout.width, dtype=torch.float32) if needs[2] else nothing,
    )


def warm_up() -> None:
    """Nothing: a Triton kernel is compiled for the block sizes of a layout, so by that layout's first call."""


def backward(call: HeadsCall, residual: Residual, grad_total: Tensor, *, own: bool) -> Gradients:
    """(d_features, d_weight, d_bias), each None where it is not needed; the residual is left as it is."""
    del own
    scale, buffer, bias_gradient = residual
    # The upstream gradient is a scalar on the device: folded in here, it costs nothing per row.
    scale_k = grad_total * call.task_weights * scale
    column_scale = scale_k[head_tables(call.layout, scale_k.device).head_of_column]
    return _gradients(call, buffer[:, : call.layout.width], bias_gradient, column_scale)


def _gradients(
    call: HeadsCall, logit_gradient: Tensor, bias_gradient: Tensor, column_scale: Tensor
) -> Gradients:
    """Gradients of features (N, D), weight (S, D) and bias (S,), each None where it is not needed.

    column_scale (S,) float32 is what each column's task still has to be multiplied by: task weight,
    upstream gradient, 1/denominator. No argument is written to.
    """
    features, weight, bias = call.features, call.weight, call.bias
    need_features, need_weight, need_bias = call.needs
    d_features = d_weight = d_bias = None
    if need_features:
        d_features = feature_gradient(logit_gradient, weight, column_scale, features.dtype)
    if need_weight:
        d_weight = mm_float32(logit_gradient.t(), features).mul_(column_scale[:, None]).to(weight.dtype)
    if need_bias and bias is not None:
        d_bias = (column_scale * bias_gradient).to(bias.dtype)
    return d_features, d_weight, d_bias


def feature_gradient(dz: Tensor, weight: Tensor, column_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """dz (N, S) @ (column_scale[:, None] * weight) (S, D)."""
    if dtype is not torch.float16:
        return torch.mm(dz, (column_scale[:, None] * weight).to(dtype))
    # 1/N times a weight is subnormal in float16: the largest scale goes in after the product. A zero
    # largest scale means zero gradients.
    largest = column_scale.abs().amax()
    relative = column_scale / torch.where(largest > 0, largest, 1.0)
    return mm_float32(dz, (relative[:, None] * weight).to(dtype)).mul_(largest).to(dtype)


def mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b accumulated and returned in float32: a sum over all rows overflows float16."""
    if a.dtype is torch.float32:
        return torch.mm(a, b)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())

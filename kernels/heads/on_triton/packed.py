"""The packed plan on a GPU: one GEMM for all heads' logits, one segmented loss pass, one GEMM a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import HeadLayout
from ..protocol import Forward, Needs, Residual
from .loss_blocks import padded_width
from .loss_pass import segment_loss
from .tables import (
    head_tables,
)

RESIDUAL_IS_GRADIENT = False


def forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
    skip_zero_weights: bool = True,
) -> Forward:
    """Losses of all heads; the residual is (scale (K,), unscaled logit gradient, bias gradient (S,)).

    The logit gradient is the first S columns of a buffer (N, `padded_width`). Task weights enter in the
    backward pass; with `skip_zero_weights` a task of weight 0 has loss 0 and is not computed. Raises what
    `segment_loss` raises.
    """
    S = layout.width
    buffer = features.new_empty(features.shape[0], padded_width(layout))
    logits = torch.mm(features, weight.to(features.dtype).t(), out=buffer[:, :S])
    need_gradient = any(needs)
    result = segment_loss(
        logits,
        bias,
        targets,
        layout,
        need_gradient=need_gradient,
        need_bias_gradient=needs[2],
        skip_by=task_weights if skip_zero_weights else None,
    )
    nothing = features.new_empty(0)
    if not need_gradient:
        return Forward(result.losses, result.correct, (nothing, nothing.clone(), nothing.clone()))
    bias_gradient = nothing if result.bias_gradient is None else result.bias_gradient
    return Forward(result.losses, result.correct, (result.scale, buffer, bias_gradient))


def residual_like(
    features: Tensor, weight: Tensor, bias: Tensor | None, layout: HeadLayout, needs: Needs
) -> Residual:
    """Empty tensors of the shapes and dtypes of the residual."""
    nothing = features.new_empty(0)
    if not any(needs):
        return nothing, nothing.clone(), nothing.clone()
    return (
        features.new_empty(len(layout), dtype=torch.float32),
        features.new_empty(features.shape[0], padded_width(layout)),
        features.new_empty(layout.width, dtype=torch.float32) if needs[2] else nothing,
    )


def backward(
    residual: Residual,
    grad_total: Tensor,
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
    *,
    own: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(d_features, d_weight, d_bias), each None where `needs` is False; the residual is left as it is."""
    scale, buffer, bias_gradient = residual
    # The upstream gradient is a scalar on the device: folded in here, it costs nothing per row.
    scale_k = grad_total * task_weights * scale
    column_scale = scale_k[head_tables(layout, scale_k.device).head_of_column]
    bias_dtype = None if bias is None else bias.dtype
    logit_gradient = buffer[:, : layout.width]
    return packed_backward(features, weight, logit_gradient, bias_gradient, column_scale, needs, bias_dtype)


def packed_backward(
    features: Tensor,
    weight: Tensor,
    logit_gradient: Tensor,
    bias_gradient: Tensor,
    column_scale: Tensor,
    needs: tuple[bool, bool, bool],
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of features (N, D), weight (S, D) and bias (S,), each None where `needs` says so.

    column_scale (S,) float32 is what each column's task still has to be multiplied by: task weight,
    upstream gradient, 1/denominator. No argument is written to.
    """
    need_features, need_weight, need_bias = needs
    d_features = d_weight = d_bias = None
    if need_features:
        d_features = feature_gradient(logit_gradient, weight, column_scale, features.dtype)
    if need_weight:
        d_weight = mm_float32(logit_gradient.t(), features).mul_(column_scale[:, None]).to(weight.dtype)
    if need_bias:
        d_bias = (column_scale * bias_gradient).to(bias_dtype)
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

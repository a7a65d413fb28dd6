"""The packed plan on a GPU: one GEMM for all heads' logits, one launch for their losses, one GEMM per gradient.

cuBLAS uses its oldest kernels, four times as slow or worse, if a size is not a multiple of 16 bytes: so the S outputs
are padded in weight, logits and gradients alike.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...machine.launch import cdiv
from ..call import Forward, Gradients, HeadsCall, Residual
from ..layout import HeadLayout
from ..plans import Shape
from .chunk import Chunk
from .groups import Groups, group_heads
from .means import take_means
from .row_blocks import RowBlocks, row_blocks
from .row_losses import WIDEST, take_row_losses
from .tables import head_tables
from .targets import locate_targets
from .weights import Factors, finish_weight, padded_weight, scaled_weight

RESIDUAL_IS_GRADIENT = False
ALIGNMENT = 8  # outputs: 16 bytes in 16 bits


def padded_width(S: int) -> int:
    """Number of outputs of all heads, padded for the GEMMs."""
    return cdiv(S, ALIGNMENT) * ALIGNMENT


def forward(call: HeadsCall) -> Forward:
    """Compute the losses of all heads.

    The residual is (unscaled logit gradient (N, padded_width), scale (K,), parts of the bias gradient if it is needed).
    Task weights are applied in the backward pass; with `skip_zero_weights` a task of weight 0 has loss 0 and gradient
    0.
    """
    features, needs = call.features, call.needs
    if call.layout.widest > WIDEST:
        raise ValueError(
            f"plan=packed supports heads of at most {WIDEST:,} outputs, but one has {call.layout.widest:,}; use "
            "plan=auto"
        )
    weight = padded_weight(call.weight.contiguous(), padded_width(call.layout.width), features.dtype)
    logits = torch.mm(features, weight.t())
    sums, bias_parts = logit_losses(call, logits)
    means = take_means(sums, call.task_weights)
    residual: Residual = (
        (logits, means.scale, *(() if bias_parts is None else (bias_parts,))) if any(needs) else ()
    )
    return Forward(means.losses, means.correct, residual, means.total)


class LogitLosses(NamedTuple):
    """Sums (n_blocks, K, 3) over blocks of rows, and the parts (n_blocks, S) of the bias gradient, if needed."""

    sums: Tensor
    bias_parts: Tensor | None


def logit_losses(call: HeadsCall, logits: Tensor) -> LogitLosses:
    """Compute the losses from logits (N, padded_width) without bias; if needed, their gradient overwrites them."""
    layout, N, device = call.layout, len(logits), logits.device
    blocks, groups = blocks_of(call), _groups_of(layout)
    n_blocks = cdiv(N, blocks.rows(groups.columns))
    sums = torch.empty(n_blocks, len(layout), 3, dtype=torch.float32, device=device)
    bias_parts = (
        torch.empty(n_blocks, layout.width, dtype=torch.float32, device=device) if call.needs[2] else None
    )
    tables, targets = head_tables(layout, device), locate_targets(call.targets, layout, N)
    take_row_losses(
        Chunk(call, tables, targets, None, logits, 0, sums), groups, blocks, bias_parts, in_chunks=False
    )
    return LogitLosses(sums, bias_parts)


def blocks_of(call: HeadsCall) -> RowBlocks:
    """Return the sizes of the programs of a call."""
    (N, D), layout = call.features.shape, call.layout
    shape = Shape(N, D, layout.width, layout.widest, call.features.element_size())
    return row_blocks(shape, call.features.device)


@cache
def _groups_of(layout: HeadLayout) -> Groups:
    return group_heads(layout, range(len(layout)), padded_width(layout.width))


def residual_like(call: HeadsCall) -> Residual:
    """Return empty tensors of the shapes and dtypes of the residual."""
    features, layout, needs = call.features, call.layout, call.needs
    if not any(needs):
        return ()
    n_columns = padded_width(layout.width)
    logits, scale = (
        features.new_empty(features.shape[0], n_columns),
        features.new_empty(len(layout), dtype=torch.float32),
    )
    if not needs[2]:
        return logits, scale
    n_blocks = cdiv(len(features), blocks_of(call).rows(_groups_of(layout).columns))
    return logits, scale, logits.new_empty(n_blocks, layout.width, dtype=torch.float32)


def backward(call: HeadsCall, residual: Residual, grad_total: Tensor, *, own: bool) -> Gradients:
    """Return (d_features, d_weight, d_bias), each None if not needed; the residual is not modified."""
    del own
    dz, scale, *rest = residual
    features, weight, layout = call.features, call.weight.contiguous(), call.layout
    need_features, need_weight, need_bias = call.needs
    tables = head_tables(layout, features.device)
    factors = Factors(scale, call.task_weights, grad_total, tables.head_of_column)
    d_features = None
    if need_features:
        d_features = _times_scaled(dz, weight, features.dtype, factors)
    parts = mm_float32(dz.t(), features)[None] if need_weight else None
    found = finish_weight(parts, rest[0] if need_bias else None, factors, weight, call.bias)
    return d_features, *found


def _times_scaled(dz: Tensor, weight: Tensor, dtype: torch.dtype, factors: Factors) -> Tensor:
    """Return dz (N, rows) times the weight, scaled by row and padded to as many rows, (N, D)."""
    scaled, largest = scaled_weight(weight, dz.shape[1], dtype, factors)
    if largest is None:
        return torch.mm(dz, scaled)
    return mm_float32(dz, scaled).mul_(largest).to(dtype)


def mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b accumulated and returned in float32: a sum over all rows overflows float16."""
    if a.dtype is torch.float32:
        return torch.mm(a, b)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())

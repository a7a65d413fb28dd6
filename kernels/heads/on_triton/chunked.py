"""The chunked plan on a GPU, for vocabulary-sized heads: the packed plan over chunks of rows, one buffer.

Logits of all rows would not fit: a chunk's are made, turned into their gradient in place, used up by the two
gradients' GEMMs and overwritten by the next chunk's. Denominators are counted before, so the features'
gradient comes out scaled; the weight gradient is added up over the chunks in float32 and scaled at the end.

Every wide head has a buffer of its own width, in which it begins aligned; narrow heads beside it are a run of
their own. Each run adds its part to the features' gradient.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import Forward, Gradients, HeadsCall, Residual
from ..layout import HeadLayout
from .denominators import count_parts, mean_scale
from .loss_blocks import NARROW, padded_width, rows_per_program
from .loss_pass import run_loss_pass
from .loss_sums import LossParts, SegmentLoss, finalize
from .packed import mm_float32
from .tables import (
    head_tables,
    pack_targets,
)
from .upstream import times_upstream

# Bytes of a chunk's logits: 16,384 rows of 131,072 16-bit outputs.
BUDGET_BYTES = 4 << 30
# A chunk reads and writes the whole float32 weight gradient: with fewer rows that costs more than 6 % of
# the GEMMs on an H200.
MIN_ROWS = 4096
# A multiple of every tile of a GEMM, and of the rows of a program of the loss pass.
ROW_MULTIPLE = 128


def chunk_rows(n_rows: int, width: int, itemsize: int, budget_bytes: int = BUDGET_BYTES) -> int:
    """Rows of a chunk whose logits, rows of `width` elements of `itemsize` bytes, keep to the budget.

    Even chunks, as few as possible; MIN_ROWS rows even where the budget is smaller, and a multiple of
    ROW_MULTIPLE unless one chunk holds all.
    """
    most = max(MIN_ROWS, budget_bytes // (width * itemsize) // ROW_MULTIPLE * ROW_MULTIPLE)
    if n_rows <= most:
        return max(n_rows, 1)
    n_chunks = -(-n_rows // most)
    return -(-n_rows // n_chunks // ROW_MULTIPLE) * ROW_MULTIPLE


class Run(NamedTuple):
    """Neighbouring heads that are computed together: heads first..last of the layout, as one of their own."""

    first: int
    last: int
    layout: HeadLayout


@lru_cache(maxsize=256)
def split_runs(layout: HeadLayout) -> tuple[Run, ...]:
    """Every wide head alone, the narrow ones between them together."""
    bounds = {0, len(layout)}
    for k, head in enumerate(layout.heads):
        if head.size > NARROW:
            bounds |= {k, k + 1}
    edges = sorted(bounds)
    return tuple(
        Run(first, last, HeadLayout(layout.heads[first:last], layout.names[first:last]))
        for first, last in itertools.pairwise(edges)
    )


def forward(call: HeadsCall, budget_bytes: int = BUDGET_BYTES, least_rows: int | None = None) -> Forward:
    """Losses of all heads, and as residual the gradients of the total that are needed.

    A task of weight 0 that is skipped has loss 0 and gradient 0 (its GEMMs run: the host does not know its weight).
    `budget_bytes` bounds a chunk's logits as `chunk_rows` says; `least_rows` overrides what that chooses. The first
    call of a layout on a device copies its tables there: make it before a graph capture. Raises what `segment_loss`
    raises.
    """
    layout = call.layout
    gradients = residual_like(call)
    parts = []
    for i, run in enumerate(split_runs(layout)):
        heads, rows = slice(run.first, run.last), _rows_of(layout, run)
        of_run = call._replace(
            weight=call.weight[rows],
            bias=None if call.bias is None else call.bias[rows],
            targets=call.targets[heads],
            task_weights=call.task_weights[heads],
            layout=run.layout,
        )
        B = least_rows or chunk_rows(
            call.features.shape[0], padded_width(run.layout), call.features.element_size(), budget_bytes
        )
        d_features, d_weight, d_bias = gradients
        own = (
            d_features,
            d_weight[rows] if call.needs[1] else d_weight,
            d_bias[rows] if call.needs[2] else d_bias,
        )
        parts.append(_run_in_chunks(of_run, B, own, adds=i > 0))
    if len(parts) == 1:
        return Forward(parts[0].losses, parts[0].correct, gradients)
    losses, correct = torch.cat([part.losses for part in parts]), torch.cat([part.correct for part in parts])
    return Forward(losses, correct, gradients)


def _rows_of(layout: HeadLayout, run: Run) -> slice:
    first = layout.offsets[run.first]
    return slice(first, first + run.layout.width)


def _run_in_chunks(call: HeadsCall, B: int, gradients: Residual, *, adds: bool) -> SegmentLoss:
    """Losses of a run's heads; its gradients go to `gradients`, those of the features added if `adds`."""
    features, weight, layout, needs = call.features, call.weight, call.layout, call.needs
    (N, _), S, K = features.shape, layout.width, len(layout)
    d_features, d_weight, d_bias = gradients
    packed_targets = pack_targets(call.targets, layout, N, features.device)
    skip_by = call.task_weights if call.skip_zero_weights else None
    scale = call.task_weights * mean_scale(count_parts(packed_targets, layout, N, skip_by))
    column_scale = scale[head_tables(layout, features.device).head_of_column]
    own_weight = weight.to(features.dtype)
    scaled_weight, largest = (
        _scaled_weight(weight, column_scale, features.dtype) if needs[0] else (None, None)
    )

    # A power of two divides the rows of a chunk.
    per_program = 1 << (rows_per_program(min(B, N), K).bit_length() - 1)
    n_blocks = -(-N // per_program)
    sums = torch.empty(n_blocks, K, 3, dtype=torch.float32, device=features.device)
    buffer = features.new_empty(min(B, N), padded_width(layout))
    for gradient, need in ((d_weight, needs[1]), (d_bias, needs[2])):
        if need:
            gradient.zero_()
    for first in range(0, N, B):
        chunk = features[first : first + B]
        dz = torch.mm(chunk, own_weight.t(), out=buffer[: len(chunk), :S])
        bias_parts = run_loss_pass(
            dz,
            call.bias,
            packed_targets,
            layout,
            sums,
            per_program,
            need_gradient=any(needs),
            need_bias_gradient=needs[2],
            skip_by=skip_by,
            first_row=first,
        )
        if scaled_weight is not None:
            _store_features(d_features[first : first + B], dz, scaled_weight, largest, adds)
        if needs[1]:
            _add_weight(d_weight, dz, chunk)
        if bias_parts is not None:
            d_bias.add_(bias_parts.sum(0))
    if needs[1]:
        d_weight.mul_(column_scale[:, None])
    if needs[2]:
        d_bias.mul_(column_scale)
    return finalize(LossParts(sums, None), layout)


def _scaled_weight(weight: Tensor, column_scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """What dz is multiplied by for the features' gradient, and a last factor for float16.

    1/N times a weight is subnormal there: the largest scale comes after the product.
    """
    if dtype is not torch.float16:
        return (column_scale[:, None] * weight).to(dtype), None
    largest = column_scale.abs().amax()
    relative = column_scale / torch.where(largest > 0, largest, 1.0)
    return (relative[:, None] * weight).to(dtype), largest


def _store_features(
    out: Tensor, dz: Tensor, scaled_weight: Tensor, largest: Tensor | None, adds: bool
) -> None:
    """dz @ scaled_weight (times `largest`) into `out`, or added to what is there."""
    if largest is not None:
        product = mm_float32(dz, scaled_weight).mul_(largest)
        out.add_(product) if adds else out.copy_(product)
    elif adds:
        out.addmm_(dz, scaled_weight)
    else:
        torch.mm(dz, scaled_weight, out=out)


def _add_weight(d_weight: Tensor, dz: Tensor, chunk: Tensor) -> None:
    """d_weight (S, D) float32 += dz.T @ chunk.

    Not addmm with out_dtype, which not every torch has: the extra sum is one pass more over d_weight.
    """
    if dz.dtype is torch.float32:
        d_weight.addmm_(dz.t(), chunk)
    else:
        d_weight.add_(mm_float32(dz.t(), chunk))


# The residual is the gradient: once it is handed out, a second backward pass must make it anew.
RESIDUAL_IS_GRADIENT = True


def residual_like(call: HeadsCall) -> Residual:
    """Empty tensors of the shapes and dtypes of the residual.

    Gradients of float16 features wait in float32: a loss scale has to come before the rounding.
    """
    features, needs = call.features, call.needs
    dtype = torch.float32 if features.dtype is torch.float16 else features.dtype
    return (
        features.new_empty(features.shape if needs[0] else 0, dtype=dtype),
        features.new_empty(call.weight.shape if needs[1] else 0, dtype=torch.float32),
        features.new_empty(call.layout.width if needs[2] else 0, dtype=torch.float32),
    )


def backward(call: HeadsCall, residual: Residual, grad_total: Tensor, *, own: bool) -> Gradients:
    """(d_features, d_weight, d_bias), each None where it is not needed.

    With `own` the residual is nobody else's and may be handed out or overwritten.
    """
    d_features, d_weight, d_bias = (
        times_upstream(gradient, grad_total, t.dtype, own) if need else None  # type: ignore[union-attr]
        for gradient, t, need in zip(residual, call[:3], call.needs, strict=True)
    )
    return d_features, d_weight, d_bias


def warm_up() -> None:
    """Nothing: a Triton kernel is compiled for the block sizes of a layout, so by that layout's first call."""

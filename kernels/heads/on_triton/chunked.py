"""The chunked plan on a GPU, for vocabulary-sized heads: the packed plan over chunks of rows, one buffer.

Logits of all rows would not fit: a chunk's are made, turned into their gradient in place, used up by the two
gradients' GEMMs and overwritten by the next chunk's. Denominators are counted before, so the features'
gradient comes out scaled; the weight gradient is added up over the chunks in float32 and scaled at the end.

Every wide head has a buffer of its own width, in which it begins aligned; narrow heads beside it are a run of
their own: through the tile plan where that serves them, else in chunks like a wide one. Each run adds its
part to the features' gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import HeadLayout
from ..protocol import Forward, Needs, Residual
from . import tile as triton_tile
from .denominators import count_parts, mean_scale
from .loss_blocks import NARROW, padded_width, rows_per_program
from .loss_pass import run_loss_pass
from .loss_sums import LossParts, finalize
from .packed import mm_float32
from .tables import (
    head_tables,
    pack_targets,
)
from .tile import RESIDUAL_IS_GRADIENT, backward, residual_like

__all__ = ["RESIDUAL_IS_GRADIENT", "backward", "chunk_rows", "forward", "residual_like"]

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


def forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
    skip_zero_weights: bool = True,
    budget_bytes: int = BUDGET_BYTES,
    least_rows: int | None = None,
) -> Forward:
    """Losses of all heads, and as residual the gradients of the total that `needs` asks for.

    With `skip_zero_weights` a task of weight 0 has loss 0 and gradient 0 (its GEMMs run: the host does not
    know its weight). `budget_bytes` bounds a chunk's logits as `chunk_rows` says; `least_rows` overrides
    what that chooses. The first call of a layout on a device copies its tables there: make it before a
    graph capture. Raises what `segment_loss` raises.
    """
    d_features, d_weight, d_bias = residual_like(features, weight, bias, layout, needs)
    losses, correct = [], []
    for i, run in enumerate(split_runs(layout)):
        heads, rows = slice(run.first, run.last), _rows_of(layout, run)
        of_run = (
            features,
            weight[rows],
            None if bias is None else bias[rows],
            targets[heads],
            task_weights[heads],
        )
        if triton_tile.supports(run.layout, features.shape[1], features.dtype) is None:
            result = triton_tile.forward(*of_run, run.layout, needs, skip_zero_weights)
            part = result.residual
            if needs[0]:
                d_features = part[0] if i == 0 else d_features.add_(part[0])
            for whole, own, need in zip((d_weight, d_bias), part[1:], needs[1:], strict=True):
                if need:
                    whole[rows] = own
        else:
            B = least_rows or chunk_rows(
                features.shape[0], padded_width(run.layout), features.element_size(), budget_bytes
            )
            result = _run_in_chunks(
                *of_run, run.layout, needs, skip_zero_weights, B,
                (d_features, d_weight[rows] if needs[1] else d_weight, d_bias[rows] if needs[2] else d_bias),
                adds=i > 0,
            )  # fmt: skip
        losses.append(result.losses)
        correct.append(result.correct)
    if len(losses) == 1:
        return Forward(losses[0], correct[0], (d_features, d_weight, d_bias))
    return Forward(torch.cat(losses), torch.cat(correct), (d_features, d_weight, d_bias))


def _rows_of(layout: HeadLayout, run: Run) -> slice:
    first = layout.offsets[run.first]
    return slice(first, first + run.layout.width)


def _run_in_chunks(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
    skip_zero_weights: bool,
    B: int,
    gradients: Residual,
    *,
    adds: bool,
) -> Forward:
    """Losses of a run's heads; its gradients go to `gradients`, those of the features added if `adds`."""
    (N, _), S, K = features.shape, layout.width, len(layout)
    d_features, d_weight, d_bias = gradients
    packed_targets = pack_targets(targets, layout, N, features.device)
    skip_by = task_weights if skip_zero_weights else None
    scale = task_weights * mean_scale(count_parts(packed_targets, layout, N, skip_by))
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
            bias,
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
    result = finalize(LossParts(sums, None), layout)
    return Forward(result.losses, result.correct, gradients)


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

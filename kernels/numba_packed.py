"""The packed plan on a CPU: by chunks of rows, a GEMM for all heads' logits, the loss pass, a GEMM a gradient.

Denominators are counted first, so that a chunk's gradients come out scaled and its logits can be dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .layout import HeadLayout, HeadSpec, Kind
from .numba_loss_pass import HEAD_RECORD, mean_scale, segment_loss
from .packed import Forward, Needs, Residual


class _HeadTable(NamedTuple):
    """A layout as the arrays that the loss pass reads."""

    records: np.ndarray  # (K,) of HEAD_RECORD
    column_weights: np.ndarray  # (S,) float32
    no_bias: np.ndarray  # (S,) float32 zeros
    tile_rows: int


@lru_cache(maxsize=256)
def _head_table(layout: HeadLayout) -> _HeadTable:
    records = np.array(
        [
            (head.kind, first, head.size, head.ignore_index, head.label_smoothing, head.delta,
             sum(head.column_weights), head.class_weights is not None)
            for first, _, head in layout
        ],
        HEAD_RECORD,
    )  # fmt: skip
    columns = np.array([w for head in layout.heads for w in head.column_weights], np.float32)
    # The widest head's tile is swept four times: keep it within about a quarter of a 2 MiB cache, and
    # keep 16 rows, one cache line, at the least.
    widest = max(head.size for head in layout.heads)
    tile_rows = max(16, min(256, (1 << 17) // widest // 16 * 16))
    return _HeadTable(records, columns, np.zeros_like(columns), tile_rows)


# Below this many logits the start of a parallel region costs more than it saves.
PARALLEL_LOGITS = 1 << 15
# The logits of a chunk of rows are made, turned into gradients and used up while they are in cache.
CHUNK_BYTES = 4 << 20
# Rows of a tile lie a buffer's row apart: for a power of two they would fall into the same cache sets.
PADDING = 16


def chunk_rows(n_rows: int, width: int) -> int:
    """Rows whose logits are held at a time: even chunks within CHUNK_BYTES, but no sliver of a GEMM."""
    n_chunks = -(-n_rows * width * 4 // CHUNK_BYTES)
    return max(256, -(-n_rows // n_chunks // 16) * 16) if n_chunks > 1 else n_rows


def forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
) -> Forward:
    """Losses of all heads, and as residual the gradients of the total that `needs` asks for.

    The gradients are made at once, chunk by chunk, while the logits are in cache: what is kept is of the
    size of the inputs, and the logits are never held whole. bfloat16 and float16 are computed in float32.
    Raises ValueError for a class target outside [0, C) that is not ignore_index.
    """
    N, S = features.shape[0], layout.width
    table = _head_table(layout)
    held = [_kernel_target(t, head.kind) for t, head in zip(targets, layout.heads, strict=True)]
    addresses = np.array([target.data_ptr() for target in held], np.int64)
    scale, gradient_scale, outside = mean_scale(
        table.records, table.column_weights, addresses, N, task_weights.detach().numpy()
    )
    if outside[0] >= 0:
        _refuse_outside(layout, *outside.tolist())

    features32, weight32 = features.detach().float(), weight.detach().float()
    bias32 = table.no_bias if bias is None else bias.detach().float().contiguous().numpy()
    d_features = torch.empty(features32.shape if needs[0] else 0)
    d_weight = torch.zeros(weight32.shape if needs[1] else 0)
    loss_sums, correct, bias_gradient = (
        np.zeros(len(layout)),
        np.zeros(len(layout), np.int64),
        np.zeros(S, np.float32),
    )
    B = chunk_rows(max(N, 1), S)
    buffer = torch.empty(S, B + PADDING)
    for first in range(0, N, B):
        rows = min(B, N - first)
        chunk = features32[first : first + rows] if rows < N else features32
        logits = buffer[:, :rows]
        torch.mm(weight32, chunk.t(), out=logits)
        part = segment_loss(
            buffer.numpy(), bias32, first, rows, table.tile_rows, table.records, table.column_weights, addresses,
            N, gradient_scale, any(needs), parallel=rows > table.tile_rows and rows * S >= PARALLEL_LOGITS,
        )  # fmt: skip
        if needs[0]:
            torch.mm(logits.t(), weight32, out=d_features[first : first + rows] if rows < N else d_features)
        if needs[1]:
            d_weight.addmm_(logits, chunk)
        loss_sums, correct, bias_gradient = loss_sums + part[0], correct + part[1], bias_gradient + part[2]
    return Forward(
        losses=torch.from_numpy((loss_sums * scale).astype(np.float32)),
        correct=torch.from_numpy(correct),
        # In float32: a loss scale has to come before the rounding to float16, or small gradients are lost.
        residual=(d_features, d_weight, torch.from_numpy(bias_gradient) if needs[2] else torch.empty(0)),
    )


def warm_up() -> None:
    """Compile both variants of the loss pass, or load them from Numba's cache: they serve every layout."""
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 3), HeadSpec(Kind.SQUARED, 1)))
    table = _head_table(layout)
    classes, values = np.zeros(2, np.int64), np.zeros((2, 1), np.float32)
    addresses = np.array([classes.ctypes.data, values.ctypes.data], np.int64)
    mean_scale(table.records, table.column_weights, addresses, 2, np.ones(2, np.float32))
    for parallel in (False, True):
        segment_loss(
            np.zeros((4, 2), np.float32), table.no_bias, 0, 2, 16, table.records, table.column_weights, addresses, 2,
            np.ones(2, np.float32), True, parallel=parallel,
        )  # fmt: skip


def residual_like(
    features: Tensor, weight: Tensor, bias: Tensor | None, layout: HeadLayout, needs: Needs
) -> Residual:
    """Empty tensors of the shapes and dtypes of the residual."""
    wanted = zip((features, weight, bias), needs, strict=True)
    d_features, d_weight, d_bias = (
        torch.empty(t.shape if need else 0, dtype=torch.float32, device=features.device)  # type: ignore[union-attr]
        for t, need in wanted
    )
    return d_features, d_weight, d_bias


# The residual is the gradient: once it is handed out, a second backward pass must make it anew.
RESIDUAL_IS_GRADIENT = True


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
    """(d_features, d_weight, d_bias), each None where `needs` is False.

    With `own` the residual is nobody else's and may be handed out or overwritten.
    """
    upstream = grad_total.item()
    d_features, d_weight, d_bias = (
        _scaled(gradient, upstream, own).to(t.dtype) if need else None  # type: ignore[union-attr]
        for gradient, t, need in zip(residual, (features, weight, bias), needs, strict=True)
    )
    return d_features, d_weight, d_bias


def _scaled(gradient: Tensor, upstream: float, own: bool) -> Tensor:
    if not own:
        return gradient * upstream
    return gradient if upstream == 1.0 else gradient.mul_(upstream)


def _kernel_target(target: Tensor, kind: Kind) -> Tensor:
    dtype = torch.int64 if kind is Kind.SOFTMAX else torch.float32
    return target if target.dtype is dtype and target.is_contiguous() else target.to(dtype).contiguous()


def _refuse_outside(layout: HeadLayout, k: int, target: int) -> None:
    head = layout.heads[k]
    raise ValueError(
        f"targets of {layout.names[k]}: {target} lies outside [0, {head.size}) "
        f"and is not ignore_index {head.ignore_index}"
    )

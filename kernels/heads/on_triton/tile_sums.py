"""The last step of the tile plan on a GPU: its programs' sums to losses and to weight and bias gradients.

The sums are added in a fixed order, losses in float64: the same bits every call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import on_device_of
from ..layout import HeadLayout
from .denominators import MAX_PARTS
from .tables import (
    head_tables,
)


@triton.jit
def _denominator(p_counts, k, n_parts, MAX_PARTS: tl.constexpr):
    o_p = tl.arange(0, MAX_PARTS)
    b_part = tl.load(p_counts + k * n_parts + o_p, mask=o_p < n_parts, other=0.0)
    return tl.sum(b_part.to(tl.float64), axis=0)


@triton.jit(do_not_specialize=["S", "K", "n_parts", "n_programs", "n_columns"])
def tile_sums_kernel(
    p_counts,  # (K, n_parts) float32
    p_sums,  # (n_programs, K, 2) float32: loss, correct
    p_weight_parts,  # (n_programs, S, D) float32
    p_bias_parts,  # (n_programs, S) float32
    p_task_weights,  # (K,) float32
    p_head_of_column,  # (S,) int64
    p_losses,  # (K,) float32
    p_correct,  # (K,) int64
    p_d_weight,  # (S, D) float32
    p_d_bias,  # (S,) float32
    S,
    K,
    n_parts,
    n_programs,
    n_columns,  # S where d_weight is wanted, else 0
    D: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """The first K programs sum a task each, the next ones BLOCK_E weights of a column, the last a bias each."""
    i = tl.program_id(0)
    n_weight = n_columns * tl.cdiv(D, BLOCK_E)
    if i < K:
        b_loss = tl.zeros((BLOCK_R,), tl.float64)
        b_correct = tl.zeros((BLOCK_R,), tl.float64)
        for o_first in range(0, n_programs, BLOCK_R):
            o_r = o_first + tl.arange(0, BLOCK_R)
            p_sum = p_sums + (o_r * K + i) * 2
            b_loss += tl.load(p_sum, mask=o_r < n_programs, other=0.0).to(tl.float64)
            b_correct += tl.load(p_sum + 1, mask=o_r < n_programs, other=0.0).to(tl.float64)
        loss = tl.sum(b_loss, axis=0)
        denominator = _denominator(p_counts, i, n_parts, MAX_PARTS)
        m_any = denominator > 0.0
        # loss * 0 keeps the NaN of a task whose only targets are out of range.
        tl.store(p_losses + i, tl.where(m_any, loss / tl.where(m_any, denominator, 1.0), loss * 0.0))
        tl.store(p_correct + i, tl.sum(b_correct, axis=0).to(tl.int64))
    else:
        is_weight = i - K < n_weight
        i_s = tl.where(is_weight, (i - K) // tl.cdiv(D, BLOCK_E), i - K - n_weight)
        k = tl.load(p_head_of_column + i_s)
        denominator = _denominator(p_counts, k, n_parts, MAX_PARTS)
        m_any = denominator > 0.0
        weight = tl.load(p_task_weights + k).to(tl.float64)
        scale = tl.where(m_any, weight / tl.where(m_any, denominator, 1.0), 0.0).to(tl.float32)
        b_total = tl.zeros((BLOCK_R, BLOCK_E), tl.float32)
        if is_weight:
            o_e = (i - K) % tl.cdiv(D, BLOCK_E) * BLOCK_E + tl.arange(0, BLOCK_E)
            p_column = p_weight_parts + i_s.to(tl.int64) * D + o_e
            for o_first in range(0, n_programs, BLOCK_R):
                o_r = o_first + tl.arange(0, BLOCK_R)
                m = (o_r < n_programs)[:, None] & (o_e < D)[None, :]
                b_total += tl.load(p_column[None, :] + o_r.to(tl.int64)[:, None] * S * D, mask=m, other=0.0)
            tl.store(p_d_weight + i_s.to(tl.int64) * D + o_e, scale * tl.sum(b_total, axis=0), mask=o_e < D)
        else:
            b_bias = tl.zeros((BLOCK_R,), tl.float32)
            for o_first in range(0, n_programs, BLOCK_R):
                o_r = o_first + tl.arange(0, BLOCK_R)
                b_bias += tl.load(p_bias_parts + o_r * S + i_s, mask=o_r < n_programs, other=0.0)
            tl.store(p_d_bias + i_s, scale * tl.sum(b_bias, axis=0))


BLOCKS = {"BLOCK_R": 64, "BLOCK_E": 64}
WARPS = 4


class TileParts(NamedTuple):
    """What the programs leave; gradients unscaled, None where not wanted."""

    sums: Tensor  # (n_programs, K, 2) float32: loss, correct
    weight: Tensor | None  # (n_programs, S, D) float32
    bias: Tensor | None  # (n_programs, S) float32


def add_parts(
    parts: TileParts,
    counts: Tensor,
    task_weights: Tensor,
    layout: HeadLayout,
    D: int,
    d_weight: Tensor,
    d_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """(losses (K,) float32, correct (K,) int64); writes d_weight (S, D) and d_bias (S,) where parts hold theirs.

    counts (K, n_parts) are the parts of the denominators, task_weights (K,) float32 is contiguous.
    """
    sums, weight_parts, bias_parts = parts
    n_programs, K, _ = sums.shape
    S = layout.width
    losses = torch.empty(K, dtype=torch.float32, device=sums.device)
    correct = torch.empty(K, dtype=torch.int64, device=sums.device)
    n_columns = 0 if weight_parts is None else S
    n_bias = 0 if bias_parts is None else S
    # An argument that no program reads still needs a pointer of the same type.
    with on_device_of(sums):
        tile_sums_kernel[(K + n_columns * triton.cdiv(D, BLOCKS["BLOCK_E"]) + n_bias,)](
            counts,
            sums,
            sums if weight_parts is None else weight_parts,
            sums if bias_parts is None else bias_parts,
            task_weights,
            head_tables(layout, sums.device).head_of_column,
            losses,
            correct,
            d_weight,
            d_bias,
            S,
            K,
            counts.shape[1],
            n_programs,
            n_columns,
            D=D,
            MAX_PARTS=MAX_PARTS,
            **BLOCKS,
            num_warps=WARPS,
        )
    return losses, correct


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What `add_parts` launches: (name, kernel, signature, constexprs, options)."""
    signature = {
        **dict.fromkeys(("p_counts", "p_sums", "p_weight_parts", "p_bias_parts", "p_task_weights"), "*fp32"),
        **dict.fromkeys(("p_head_of_column", "p_correct"), "*i64"),
        **dict.fromkeys(("p_losses", "p_d_weight", "p_d_bias"), "*fp32"),
        **dict.fromkeys(("S", "K", "n_parts", "n_programs", "n_columns"), "i32"),
    }
    constexprs = {"D": 768, "MAX_PARTS": MAX_PARTS, **BLOCKS}
    return [("tile sums", tile_sums_kernel, signature, constexprs, {"num_warps": WARPS})]


VARIANTS = _variants()
# `triton_tile.supports` says why.
NVIDIA_ONLY = True

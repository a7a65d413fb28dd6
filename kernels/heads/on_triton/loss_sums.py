"""The last step of the loss pass on a GPU: sums of blocks of rows to mean losses, scales and the bias gradient.

Added in float64 (the bias gradient in float32) in a fixed order: two calls give the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import on_device_of
from ..layout import HeadLayout


@triton.jit(do_not_specialize=["S", "K", "n_blocks"])
def finalize_kernel(
    p_parts,  # (n_blocks, K, 3) float32
    p_bias_parts,  # (n_blocks, S) float32
    p_losses,  # (K,) float32
    p_scale,  # (K,) float32
    p_correct,  # (K,) int64
    p_bias_gradient,  # (S,) float32
    S,
    K,
    n_blocks,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The first K programs sum one task each, the others BLOCK_S columns of the bias gradient each."""
    i = tl.program_id(0)
    if i < K:
        b_loss = tl.zeros((BLOCK_P,), tl.float64)
        b_denominator = tl.zeros((BLOCK_P,), tl.float64)
        b_correct = tl.zeros((BLOCK_P,), tl.float64)
        for o_first in range(0, n_blocks, BLOCK_P):
            o_p = o_first + tl.arange(0, BLOCK_P)
            m_p = o_p < n_blocks
            p_part = p_parts + (o_p.to(tl.int64) * K + i) * 3
            b_loss += tl.load(p_part, mask=m_p, other=0.0).to(tl.float64)
            b_denominator += tl.load(p_part + 1, mask=m_p, other=0.0).to(tl.float64)
            b_correct += tl.load(p_part + 2, mask=m_p, other=0.0).to(tl.float64)
        loss = tl.sum(b_loss, axis=0)
        denominator = tl.sum(b_denominator, axis=0)
        m_any = denominator > 0.0
        # loss * 0 keeps the NaN of a task whose only targets are out of range.
        tl.store(p_losses + i, tl.where(m_any, loss / tl.where(m_any, denominator, 1.0), loss * 0.0))
        tl.store(p_scale + i, tl.where(m_any, 1.0 / tl.where(m_any, denominator, 1.0), 0.0))
        tl.store(p_correct + i, tl.sum(b_correct, axis=0).to(tl.int64))
    else:
        o_s = (i - K) * BLOCK_S + tl.arange(0, BLOCK_S)
        m_s = o_s < S
        b_total = tl.zeros((BLOCK_R, BLOCK_S), tl.float32)
        for o_first in range(0, n_blocks, BLOCK_R):
            o_r = o_first + tl.arange(0, BLOCK_R)
            p_block = p_bias_parts + o_r.to(tl.int64)[:, None] * S + o_s[None, :]
            b_total += tl.load(p_block, mask=(o_r < n_blocks)[:, None] & m_s[None, :], other=0.0)
        tl.store(p_bias_gradient + o_s, tl.sum(b_total, axis=0), mask=m_s)


BLOCKS = {"BLOCK_P": 256, "BLOCK_R": 64, "BLOCK_S": 32}
WARPS = 4


class LossParts(NamedTuple):
    """Sums of blocks of rows, for `finalize`."""

    sums: Tensor  # (n_blocks, K, 3) float32: loss, denominator, correct
    bias: Tensor | None  # (n_blocks, S) float32


class SegmentLoss(NamedTuple):
    """losses (K,) float32, scale (K,) float32, correct (K,) int64, bias_gradient (S,) float32 or None.

    scale is 1 / denominator: what the unscaled gradients of a head still have to be multiplied by.
    """

    losses: Tensor
    scale: Tensor
    correct: Tensor
    bias_gradient: Tensor | None


def finalize(parts: LossParts, layout: HeadLayout) -> SegmentLoss:
    """Mean losses, scales, correct counts and the bias gradient from the sums of blocks."""
    sums, bias_parts = parts
    n_blocks, K, _ = sums.shape
    S = layout.width
    if bias_parts is not None and len(bias_parts) != n_blocks:
        raise ValueError(f"{len(bias_parts)} blocks of bias gradients for {n_blocks} blocks of sums")
    losses, scale = (torch.empty(K, dtype=torch.float32, device=sums.device) for _ in range(2))
    correct = torch.empty(K, dtype=torch.int64, device=sums.device)
    bias_gradient = None
    if bias_parts is not None:
        bias_gradient = torch.empty(S, dtype=torch.float32, device=sums.device)
    n_bias = 0 if bias_parts is None else triton.cdiv(S, BLOCKS["BLOCK_S"])
    with on_device_of(sums):
        finalize_kernel[(K + n_bias,)](
            sums,
            sums if bias_parts is None else bias_parts,
            losses,
            scale,
            correct,
            losses if bias_gradient is None else bias_gradient,
            S,
            K,
            n_blocks,
            **BLOCKS,
            num_warps=WARPS,
        )
    return SegmentLoss(losses, scale, correct, bias_gradient)


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What `finalize` launches: (name, kernel, signature, constexprs, options)."""
    signature = {
        **dict.fromkeys(("p_parts", "p_bias_parts", "p_losses", "p_scale"), "*fp32"),
        "p_correct": "*i64",
        "p_bias_gradient": "*fp32",
        **dict.fromkeys(("S", "K", "n_blocks"), "i32"),
    }
    return [("sums", finalize_kernel, signature, BLOCKS, {"num_warps": WARPS})]


VARIANTS = _variants()

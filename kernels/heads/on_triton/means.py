"""From sums over blocks of rows to mean losses, their weighted total and the scales of the gradients, in one launch.

Added in float64 in a fixed order: two calls give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Sample, Variant, next_power_of_2, types_of


@triton.jit(do_not_specialize=["K", "n_blocks"])
def mean_kernel(
    p_sums,  # (n_blocks, K, 3) float32: loss, denominator, correct
    p_task_weights,  # (K,) float32
    p_total,  # () float32
    p_losses,  # (K,) float32
    p_scale,  # (K,) float32
    p_correct,  # (K,) int64
    K,
    n_blocks,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Single program."""
    o_k = tl.arange(0, BLOCK_K)
    m_k = o_k < K
    b_loss = tl.zeros((BLOCK_P, BLOCK_K), tl.float64)
    b_denominator = tl.zeros((BLOCK_P, BLOCK_K), tl.float64)
    b_correct = tl.zeros((BLOCK_P, BLOCK_K), tl.float64)
    for o_first in range(0, n_blocks, BLOCK_P):
        o_p = o_first + tl.arange(0, BLOCK_P)
        m = (o_p < n_blocks)[:, None] & m_k[None, :]
        p_sum = p_sums + (o_p.to(tl.int64)[:, None] * K + o_k[None, :]) * 3
        b_loss += tl.load(p_sum, mask=m, other=0.0).to(tl.float64)
        b_denominator += tl.load(p_sum + 1, mask=m, other=0.0).to(tl.float64)
        b_correct += tl.load(p_sum + 2, mask=m, other=0.0).to(tl.float64)
    b_sum = tl.sum(b_loss, axis=0)
    b_of = tl.sum(b_denominator, axis=0)
    m_any = b_of > 0.0
    b_inverse = tl.where(m_any, 1.0 / tl.where(m_any, b_of, 1.0), 0.0)
    # sum * 0 keeps the NaN of a task whose only targets are out of range.
    b_mean = tl.where(m_any, b_sum * b_inverse, b_sum * 0.0).to(tl.float32)
    tl.store(p_losses + o_k, b_mean, mask=m_k)
    tl.store(p_scale + o_k, b_inverse.to(tl.float32), mask=m_k)
    tl.store(p_correct + o_k, tl.sum(b_correct, axis=0).to(tl.int64), mask=m_k)
    b_weight = tl.load(p_task_weights + o_k, mask=m_k, other=0.0).to(tl.float32)
    tl.store(p_total, tl.sum(tl.where(m_k, b_weight * b_mean, 0.0), axis=0))


# (numbers added at a time, warps): each time waits for memory, so many blocks are added in few, large steps.
FEW, MANY = (1024, 4), (4096, 8)


class Means(NamedTuple):
    """total () float32, losses (K,) float32, correct (K,) int64, scale (K,) float32: 1 / denominator, or 0."""

    total: Tensor
    losses: Tensor
    correct: Tensor
    scale: Tensor


def take_means(sums: Tensor, task_weights: Tensor) -> Means:
    """Reduce sums (n_blocks, K, 3) float32 over blocks of rows: loss, denominator and correct rows of each head."""
    n_blocks, K, _ = sums.shape
    device = sums.device
    total = torch.empty((), dtype=torch.float32, device=device)
    losses, scale = (torch.empty(K, dtype=torch.float32, device=device) for _ in range(2))
    correct = torch.empty(K, dtype=torch.int64, device=device)
    _variant(K, step_of(K, n_blocks)).launch(
        1, (sums, task_weights, total, losses, scale, correct), (K, n_blocks)
    )
    return Means(total, losses, correct, scale)


def step_of(K: int, n_blocks: int) -> tuple[int, int]:
    """FEW or MANY."""
    return FEW if n_blocks * next_power_of_2(K) <= FEW[0] else MANY


@cache
def _variant(K: int, step: tuple[int, int]) -> Variant:
    numbers, warps = step
    columns = next_power_of_2(K)
    blocks = {"BLOCK_P": max(1, numbers // columns), "BLOCK_K": columns}
    return Variant(mean_kernel, blocks, {"num_warps": warps})


def samples() -> Iterator[Sample]:
    """Yield variants that `take_means` launches."""
    types = types_of(
        "*fp32 p_sums p_task_weights p_total p_losses p_scale", "*i64 p_correct", "i32 K n_blocks"
    )
    for K in (1, 5, 16):
        for step in (FEW, MANY):
            yield Sample(f"{K} heads, {step[0]} at a time", _variant(K, step), types)

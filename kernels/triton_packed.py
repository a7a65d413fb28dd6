"""The packed plan on a GPU: one GEMM for all heads' logits, one segmented loss pass, one GEMM a gradient.

The loss pass turns logits z (N, S) into gradients dz (N, S) in place; head k owns the columns from its
offset on, C of them. Its formulas are torch.nn.functional's, unscaled (the gradient of the sum over rows):

    SOFTMAX  loss_n = (1-e) w_y (lse - z_y) + e/C sum_c w_c (lse - z_c),     lse = log sum_c exp z_c
             dz_c   = (1-e) w_y (p_c - [c = y]) + e/C (p_c sum_c w_c - w_c),  p = softmax z
    BINARY   loss   = (1-y) z + l (log1p exp(-|z|) + max(-z, 0)),             l = 1 + (q-1) y
             dz     = l sigmoid(z) - q y
    SQUARED  loss   = (z-y)^2                                                 dz = 2 (z-y)
    HUBER    loss   = (z-y)^2 / 2 where |z-y| <= d, else d (|z-y| - d/2)      dz = z-y clamped to [-d, d]

with smoothing e, class weights w, positive weights q. A mean divides by the sum of w_y over valid rows
(SOFTMAX) or by the number of targets that are not NaN. A class index outside [0, C) that is not the
ignore_index makes the task's loss NaN, adds no gradient and touches no memory: raising would have to wait
for the device.

Sums are float32 in a fixed order: partial sums of a block of rows, then one kernel that adds the blocks in
float64 (the bias gradient in float32). No atomics, so two calls give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import HeadLayout, Kind
from .protocol import Forward, Needs, Residual

SOFTMAX: tl.constexpr = tl.constexpr(int(Kind.SOFTMAX))
BINARY: tl.constexpr = tl.constexpr(int(Kind.BINARY))
SQUARED: tl.constexpr = tl.constexpr(int(Kind.SQUARED))

# Columns of the two tables that describe a head to the kernel.
KIND: tl.constexpr = tl.constexpr(0)
OFFSET: tl.constexpr = tl.constexpr(1)
SIZE: tl.constexpr = tl.constexpr(2)
TARGET: tl.constexpr = tl.constexpr(3)  # row of the class targets, or first column of the dense ones
IGNORE: tl.constexpr = tl.constexpr(4)
N_INTEGERS: tl.constexpr = tl.constexpr(5)
SMOOTHING: tl.constexpr = tl.constexpr(0)
DELTA: tl.constexpr = tl.constexpr(1)
WEIGHT_SUM: tl.constexpr = tl.constexpr(2)
N_FLOATS: tl.constexpr = tl.constexpr(3)


@triton.jit
def _log1p(b_u):
    """log(1 + u) for u in [0, 1] as 2 atanh(u / (2 + u)): keeps the tail that float32's 1 + u drops."""
    b_s = b_u / (2.0 + b_u)
    b_q = b_s * b_s
    b_p = 1.0 / 15.0
    b_p = b_p * b_q + 1.0 / 13.0
    b_p = b_p * b_q + 1.0 / 11.0
    b_p = b_p * b_q + 1.0 / 9.0
    b_p = b_p * b_q + 1.0 / 7.0
    b_p = b_p * b_q + 1.0 / 5.0
    b_p = b_p * b_q + 1.0 / 3.0
    return 2.0 * b_s + 2.0 * b_s * b_q * b_p


@triton.jit
def _load_logits(p_rows, p_bias, o_c, m_rows, m_c, HAS_BIAS: tl.constexpr):
    """(BLOCK_N, BLOCK_C) float32 logits with their bias; 0 where masked."""
    b_z = tl.load(p_rows[:, None] + o_c[None, :], mask=m_rows[:, None] & m_c[None, :], other=0.0)
    b_z = b_z.to(tl.float32)
    if HAS_BIAS:
        b_z += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    return b_z


@triton.jit
def _softmax_rows(
    p_rows,
    p_bias,
    p_weights,
    p_targets,
    p_bias_part,
    o_n,
    m_n,
    i_trip,
    C,
    ignore_index,
    smoothing,
    weight_sum,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(loss, denominator, correct) of a block of rows; pointers are already moved to the head."""
    b_y = tl.load(p_targets + o_n, mask=m_n, other=0)
    m_used = m_n & (b_y != ignore_index)
    m_valid = m_used & (b_y >= 0) & (b_y < C)
    b_y = tl.where(m_valid, b_y, 0).to(tl.int32)
    b_target_w = tl.load(p_weights + b_y, mask=m_valid, other=0.0)
    b_target_z = tl.load(p_rows + b_y, mask=m_valid, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_target_z += tl.load(p_bias + b_y, mask=m_valid, other=0.0).to(tl.float32)

    # Every lane keeps a running maximum and sum of its own columns: nothing crosses threads in the loop.
    b_lane_max = tl.full((BLOCK_N, BLOCK_C), float("-inf"), tl.float32)
    b_lane_sum = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    b_lane_gap = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)  # w_c (z_y - z_c)
    b_lane_beats = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)  # a column that wins over the target
    for o_first in range(0, C, BLOCK_C):
        o_c = o_first + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_z = _load_logits(p_rows, p_bias, o_c, m_valid, m_c, HAS_BIAS)
        b_gap = b_target_z[:, None] - b_z
        if smoothing > 0.0:
            b_lane_gap += tl.load(p_weights + o_c, mask=m_c, other=0.0)[None, :] * b_gap
        # The first maximum wins, so an equal logit beats the target only from the left.
        m_beats = (b_gap < 0.0) | ((b_gap == 0.0) & (o_c[None, :] < b_y[:, None]))
        b_lane_beats |= (m_beats & m_c[None, :]).to(tl.int32)
        b_z = tl.where(m_c[None, :], b_z, float("-inf"))
        # One exponential serves both cases. Two of -inf give 1 rather than NaN; the sum that this spoils
        # is multiplied by exp(-inf) when a finite logit comes.
        b_decay = tl.where(b_z == b_lane_max, 1.0, tl.exp(-tl.abs(b_z - b_lane_max)))
        m_new = b_z > b_lane_max
        b_lane_sum = tl.where(m_new, b_lane_sum * b_decay + 1.0, b_lane_sum + b_decay)
        b_lane_max = tl.where(m_new, b_z, b_lane_max)

    b_max = tl.max(b_lane_max, axis=1)
    b_sum = tl.sum(b_lane_sum * tl.exp(b_lane_max - b_max[:, None]), axis=1)
    b_nll = b_max - b_target_z + tl.log(b_sum)
    b_loss = (1.0 - smoothing) * b_target_w * b_nll
    if smoothing > 0.0:
        b_loss += smoothing / C * (weight_sum * b_nll + tl.sum(b_lane_gap, axis=1))
    b_loss = tl.where(m_valid, b_loss, tl.where(m_used, float("nan"), 0.0))
    loss = tl.sum(b_loss, axis=0)
    denominator = tl.sum(b_target_w, axis=0)
    correct = tl.sum((m_valid & (tl.max(b_lane_beats, axis=1) == 0)).to(tl.float32), axis=0)

    if NEED_GRADIENT:
        # A target's logit was read by another thread than the one that overwrites it.
        tl.debug_barrier()
        b_pull = (1.0 - smoothing) * b_target_w
        spread = smoothing / C
        b_scale = (b_pull + spread * weight_sum) / b_sum
        for o_first in range(0, C, BLOCK_C):
            o_c = o_first + tl.arange(0, BLOCK_C)
            m_c = o_c < C
            b_z = _load_logits(p_rows, p_bias, o_c, m_valid, m_c, HAS_BIAS)
            b_w = tl.load(p_weights + o_c, mask=m_c, other=0.0)
            m_hit = o_c[None, :] == b_y[:, None]
            b_p = tl.exp(b_z - b_max[:, None])
            b_dz = b_p * b_scale[:, None] - tl.where(m_hit, b_pull[:, None], 0.0) - spread * b_w[None, :]
            b_dz = tl.where(m_valid[:, None] & m_c[None, :], b_dz, 0.0)
            _store_gradient(p_rows, p_bias_part, b_dz, o_c, m_n, m_c, i_trip)
    return loss, denominator, correct


@triton.jit
def _dense_rows(
    p_rows,
    p_bias,
    p_weights,
    p_targets,
    p_bias_part,
    m_n,
    i_trip,
    C,
    kind,
    delta,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(loss, denominator, correct) of a block of rows; p_targets (BLOCK_N,) points at each row's first."""
    b_loss = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    b_count = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)
    b_wrong = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)
    for o_first in range(0, C, BLOCK_C):
        o_c = o_first + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_z = _load_logits(p_rows, p_bias, o_c, m_n, m_c, HAS_BIAS)
        m_inside = m_n[:, None] & m_c[None, :]
        b_y = tl.load(p_targets[:, None] + o_c[None, :], mask=m_inside, other=float("nan"))
        m_valid = b_y == b_y
        b_y = tl.where(m_valid, b_y, 0.0)
        if kind == BINARY:
            b_q = tl.load(p_weights + o_c, mask=m_c, other=0.0)[None, :]
            b_l = 1.0 + (b_q - 1.0) * b_y
            b_u = tl.exp(-tl.abs(b_z))
            b_element = (1.0 - b_y) * b_z + b_l * (_log1p(b_u) + tl.maximum(-b_z, 0.0))
            b_dz = b_l * (tl.where(b_z >= 0.0, 1.0, b_u) / (1.0 + b_u)) - b_q * b_y
            b_wrong |= (((b_z > 0.0) != (b_y > 0.5)) & m_valid).to(tl.int32)
        else:
            b_error = b_z - b_y
            b_size = tl.abs(b_error)
            if kind == SQUARED:
                b_element = b_error * b_error
                b_dz = 2.0 * b_error
            else:
                m_far = b_size > delta
                b_element = tl.where(m_far, delta * (b_size - 0.5 * delta), 0.5 * b_error * b_error)
                b_dz = tl.where(m_far, tl.where(b_error > 0.0, delta, -delta), b_error)
        b_loss += tl.where(m_valid, b_element, 0.0)
        b_count += m_valid.to(tl.int32)
        if NEED_GRADIENT:
            b_dz = tl.where(m_valid, b_dz, 0.0)
            _store_gradient(p_rows, p_bias_part, b_dz, o_c, m_n, m_c, i_trip)
    b_row_count = tl.sum(b_count, axis=1)
    m_right = (b_row_count > 0) & (tl.max(b_wrong, axis=1) == 0) & (kind == BINARY)
    loss = tl.sum(tl.sum(b_loss, axis=1), axis=0)
    count = tl.sum(b_row_count, axis=0).to(tl.float32)
    return loss, count, tl.sum(m_right.to(tl.float32), axis=0)


@triton.jit
def _store_gradient(p_rows, p_bias_part, b_dz, o_c, m_n, m_c, i_trip):
    """Overwrite a block of logits with its gradient; add its sum over the rows to the program's."""
    b_before = tl.load(p_bias_part + o_c, mask=m_c & (i_trip > 0), other=0.0)
    tl.store(p_bias_part + o_c, b_before + tl.sum(b_dz, axis=0), mask=m_c)
    p_dz = p_rows[:, None] + o_c[None, :]
    tl.store(p_dz, b_dz.to(p_rows.dtype.element_ty), mask=m_n[:, None] & m_c[None, :])


# Sizes stay unspecialized: they differ between the last batch, phases and layouts, and no load of a
# ragged segment could use what a divisible size tells.
@triton.jit(do_not_specialize=["N", "S", "K", "n_blocks", "n_trips", "n_dense"])
def segment_loss_kernel(
    p_logits,  # (N, S), overwritten with its gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_classes,  # (classification heads, N) int64
    p_dense,  # (N, n_dense) float32
    p_integers,  # (K, N_INTEGERS) int64
    p_floats,  # (K, N_FLOATS) float32
    p_weights,  # (S,) float32
    p_parts,  # (3, K, n_blocks) float32: loss, denominator, correct
    p_bias_parts,  # (n_blocks, S) float32
    N,
    S,
    K,
    n_blocks,
    n_trips,
    n_dense,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: one head of n_trips blocks of BLOCK_N rows, one block after the other."""
    # One grid axis: the others end at 65,535. Heads vary fastest, so neighbours share rows in cache.
    i_k = tl.program_id(0) % K
    i_n = (tl.program_id(0) // K).to(tl.int64)
    kind = tl.load(p_integers + i_k * N_INTEGERS + KIND)
    offset = tl.load(p_integers + i_k * N_INTEGERS + OFFSET)
    C = tl.load(p_integers + i_k * N_INTEGERS + SIZE).to(tl.int32)
    target = tl.load(p_integers + i_k * N_INTEGERS + TARGET)
    p_bias_part = p_bias_parts + i_n * S + offset

    loss = 0.0
    denominator = 0.0
    correct = 0.0
    for i_trip in range(n_trips):
        o_n = (i_n * n_trips + i_trip) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        p_rows = p_logits + o_n * S + offset
        if kind == SOFTMAX:
            block_loss, block_denominator, block_correct = _softmax_rows(
                p_rows,
                p_bias + offset,
                p_weights + offset,
                p_classes + target * N,
                p_bias_part,
                o_n,
                m_n,
                i_trip,
                C,
                tl.load(p_integers + i_k * N_INTEGERS + IGNORE),
                tl.load(p_floats + i_k * N_FLOATS + SMOOTHING),
                tl.load(p_floats + i_k * N_FLOATS + WEIGHT_SUM),
                HAS_BIAS,
                NEED_GRADIENT,
                BLOCK_N,
                BLOCK_C,
            )
        else:
            block_loss, block_denominator, block_correct = _dense_rows(
                p_rows,
                p_bias + offset,
                p_weights + offset,
                p_dense + o_n * n_dense + target,
                p_bias_part,
                m_n,
                i_trip,
                C,
                kind,
                tl.load(p_floats + i_k * N_FLOATS + DELTA),
                HAS_BIAS,
                NEED_GRADIENT,
                BLOCK_N,
                BLOCK_C,
            )
        loss += block_loss
        denominator += block_denominator
        correct += block_correct
        # The next block adds to the bias gradient that other threads may have written.
        tl.debug_barrier()
    p_part = p_parts + i_k.to(tl.int64) * n_blocks + i_n
    tl.store(p_part, loss)
    tl.store(p_part + K.to(tl.int64) * n_blocks, denominator)
    tl.store(p_part + 2 * K.to(tl.int64) * n_blocks, correct)


@triton.jit(do_not_specialize=["S", "K", "n_blocks"])
def finalize_kernel(
    p_parts,  # (3, K, n_blocks) float32
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
        p_part = p_parts + i.to(tl.int64) * n_blocks
        plane = K.to(tl.int64) * n_blocks
        b_loss = tl.zeros((BLOCK_P,), tl.float64)
        b_denominator = tl.zeros((BLOCK_P,), tl.float64)
        b_correct = tl.zeros((BLOCK_P,), tl.float64)
        for o_first in range(0, n_blocks, BLOCK_P):
            o_p = o_first + tl.arange(0, BLOCK_P)
            m_p = o_p < n_blocks
            b_loss += tl.load(p_part + o_p, mask=m_p, other=0.0).to(tl.float64)
            b_denominator += tl.load(p_part + plane + o_p, mask=m_p, other=0.0).to(tl.float64)
            b_correct += tl.load(p_part + 2 * plane + o_p, mask=m_p, other=0.0).to(tl.float64)
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


class Blocks(NamedTuple):
    """Rows and columns that one program of the loss pass holds at a time, and its warps."""

    rows: int
    columns: int
    warps: int


FINALIZE_BLOCKS = {"BLOCK_P": 256, "BLOCK_R": 64, "BLOCK_S": 32}
FINALIZE_WARPS = 4


def choose_blocks(largest: int) -> Blocks:
    """Blocks for a layout whose largest head has `largest` outputs.

    A table, not an autotuner: that needs a driver to choose and stalls inside a graph capture. Every thread
    holds 1 or 2 logits: more rows a thread spill mask registers on gfx942 (with 4 logits) or vector
    registers on sm_80 (16 columns, 2 logits), and cost a Hopper multiprocessor a third of its warps.
    """
    if largest <= 32:
        return Blocks(8, 16 if largest <= 16 else 32, 4)
    return Blocks(4, 64, 4) if largest <= 64 else Blocks(4, 128, 8)


def choose_trips(N: int, K: int, rows: int) -> int:
    """Blocks of rows that one program takes one after the other.

    16 to 64 rows a program keep the (n_blocks, S) partial bias gradients at 3 to 12 % of 16-bit logits; as
    few of them as still leave work for every multiprocessor of a large GPU.
    """
    per_program = min(64, max(16, N * K // 2048))
    return max(1, per_program // rows)


class SegmentLoss(NamedTuple):
    """losses (K,) float32, scale (K,) float32, correct (K,) int64, bias_gradient (S,) float32 or None."""

    losses: Tensor
    scale: Tensor
    correct: Tensor
    bias_gradient: Tensor | None


def segment_loss(
    logits: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    layout: HeadLayout,
    *,
    need_gradient: bool,
    blocks: Blocks | None = None,
) -> SegmentLoss:
    """Losses of all heads from their logits (N, S), bias (S,) not yet added; see `SegmentLoss`.

    `targets` are K tensors: integers (N,) for SOFTMAX heads, floats (N, C) for the others, NaN = missing.
    With `need_gradient`, `logits` is overwritten with its unscaled gradient, else it is left alone and there
    is no bias gradient. `blocks` overrides the table.

    The first call of a layout on a device copies its tables there: make it before a graph capture.
    Raises ValueError for shapes that do not fit the layout and for logits that are not row-major.
    """
    S, K = layout.width, len(layout)
    if logits.dim() != 2 or logits.shape[1] != S or not logits.is_contiguous():
        raise ValueError(
            f"logits must be contiguous (N, {S}), not {tuple(logits.shape)} with strides {logits.stride()}"
        )
    if bias is not None and bias.shape != (S,):
        raise ValueError(f"bias must be ({S},), not {tuple(bias.shape)}")
    N = logits.shape[0]
    largest = max(head.size for head in layout.heads)
    blocks = blocks or choose_blocks(largest)
    n_trips = choose_trips(N, K, blocks.rows)
    n_blocks = triton.cdiv(N, blocks.rows * n_trips)
    tables = _head_tables(layout, logits.device)
    classes, dense = _pack_targets(targets, layout, N, logits.device)

    def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    parts = fresh(3, K, n_blocks)
    losses, scale, correct = fresh(K), fresh(K), fresh(K, dtype=torch.int64)
    # An argument that a variant never reads still needs a pointer of the same type.
    bias_parts = fresh(n_blocks, S) if need_gradient else parts
    bias_gradient = fresh(S) if need_gradient else None
    with _on_device_of(logits):
        if N:
            segment_loss_kernel[(n_blocks * K,)](
                logits,
                tables.weights if bias is None else bias.contiguous(),
                tables.integers if classes is None else classes,
                tables.floats if dense is None else dense,
                tables.integers,
                tables.floats,
                tables.weights,
                parts,
                bias_parts,
                N,
                S,
                K,
                n_blocks,
                n_trips,
                0 if dense is None else dense.shape[1],
                HAS_BIAS=bias is not None,
                NEED_GRADIENT=need_gradient,
                BLOCK_N=blocks.rows,
                BLOCK_C=blocks.columns,
                num_warps=blocks.warps,
            )
        n_bias = triton.cdiv(S, FINALIZE_BLOCKS["BLOCK_S"]) if need_gradient else 0
        finalize_kernel[(K + n_bias,)](
            parts,
            bias_parts,
            losses,
            scale,
            correct,
            losses if bias_gradient is None else bias_gradient,
            S,
            K,
            n_blocks,
            **FINALIZE_BLOCKS,
            num_warps=FINALIZE_WARPS,
        )
    return SegmentLoss(losses, scale, correct, bias_gradient)


class _HeadTables(NamedTuple):
    integers: Tensor  # (K, N_INTEGERS) int64
    floats: Tensor  # (K, N_FLOATS) float32
    weights: Tensor  # (S,) float32


@lru_cache(maxsize=64)
def _head_tables(layout: HeadLayout, device: torch.device) -> _HeadTables:
    """The layout as the kernel reads it."""
    integers: list[list[int]] = []
    floats: list[list[float]] = []
    weights: list[float] = []
    n_classes = n_dense = 0
    for first, last, head in layout:
        target = n_classes if head.kind is Kind.SOFTMAX else n_dense
        n_classes += head.kind is Kind.SOFTMAX
        n_dense += 0 if head.kind is Kind.SOFTMAX else last - first
        integers.append([int(head.kind), first, head.size, target, head.ignore_index])
        floats.append([head.label_smoothing, head.delta, sum(head.column_weights)])
        weights.extend(head.column_weights)
    # Cached for later calls, so never an inference tensor.
    with torch.inference_mode(False):
        return _HeadTables(
            torch.tensor(integers, dtype=torch.int64, device=device),
            torch.tensor(floats, dtype=torch.float32, device=device),
            torch.tensor(weights, dtype=torch.float32, device=device),
        )


def _pack_targets(
    targets: Sequence[Tensor], layout: HeadLayout, N: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(classification heads, N) int64 and (N, columns of the others) float32; None where there is none."""
    classes, dense = [], []
    for name, head, target in zip(layout.names, layout.heads, targets, strict=True):
        expected = (N,) if head.kind is Kind.SOFTMAX else (N, head.size)
        if target.shape != expected or target.device != device:
            raise ValueError(
                f"the target of {name} must be {expected} on {device}, "
                f"not {tuple(target.shape)} on {target.device}"
            )
        if target.is_floating_point() is (head.kind is Kind.SOFTMAX):
            raise ValueError(f"the target of {name} is {target.dtype}, which {head.kind.name} cannot take")
        if head.kind is Kind.SOFTMAX:
            classes.append(target.to(torch.int64))
        else:
            dense.append(target.to(torch.float32))
    # A single head's target needs no copy.
    stacked = (torch.stack(classes) if len(classes) > 1 else classes[0].contiguous()) if classes else None
    beside = (torch.cat(dense, dim=1) if len(dense) > 1 else dense[0].contiguous()) if dense else None
    return stacked, beside


def _on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which may not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def forward(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    layout: HeadLayout,
    needs: Needs,
) -> Forward:
    """Losses of all heads; the residual is (scale (K,), unscaled logit gradient (N, S), bias gradient (S,)).

    Task weights enter in the backward pass. Raises what `segment_loss` raises.
    """
    logits = torch.mm(features, weight.to(features.dtype).t())
    result = segment_loss(logits, bias, targets, layout, need_gradient=any(needs))
    if result.bias_gradient is None:
        nothing = features.new_empty(0)
        return Forward(result.losses, result.correct, (nothing, nothing.clone(), nothing.clone()))
    return Forward(result.losses, result.correct, (result.scale, logits, result.bias_gradient))


def residual_like(
    features: Tensor, weight: Tensor, bias: Tensor | None, layout: HeadLayout, needs: Needs
) -> Residual:
    """Empty tensors of the shapes and dtypes of the residual."""
    if not any(needs):
        return features.new_empty(0), features.new_empty(0), features.new_empty(0)
    return (
        features.new_empty(len(layout), dtype=torch.float32),
        features.new_empty(features.shape[0], layout.width),
        features.new_empty(layout.width, dtype=torch.float32),
    )


RESIDUAL_IS_GRADIENT = False


def warm_up() -> None:
    """Nothing: a Triton kernel is compiled for the block sizes of a layout, so by that layout's first call."""


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
    scale, logit_gradient, bias_gradient = residual
    # The upstream gradient is a scalar on the device: folded in here, it costs nothing per row.
    scale_k = grad_total * task_weights * scale
    column_scale = scale_k[_head_of_column(layout, scale_k.device)]
    bias_dtype = None if bias is None else bias.dtype
    return packed_backward(features, weight, logit_gradient, bias_gradient, column_scale, needs, bias_dtype)


@lru_cache(maxsize=512)
def _head_of_column(layout: HeadLayout, device: torch.device) -> Tensor:
    """(S,) the index k of the head that each packed column belongs to."""
    sizes = torch.tensor([head.size for head in layout.heads])
    return torch.repeat_interleave(torch.arange(len(layout)), sizes).to(device)


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
        d_features = _feature_gradient(logit_gradient, weight, column_scale, features.dtype)
    if need_weight:
        d_weight = _mm_float32(logit_gradient.t(), features).mul_(column_scale[:, None]).to(weight.dtype)
    if need_bias:
        d_bias = (column_scale * bias_gradient).to(bias_dtype)
    return d_features, d_weight, d_bias


def _feature_gradient(dz: Tensor, weight: Tensor, column_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """dz (N, S) @ (column_scale[:, None] * weight) (S, D)."""
    if dtype is not torch.float16:
        return torch.mm(dz, (column_scale[:, None] * weight).to(dtype))
    # 1/N times a weight is subnormal in float16: the largest scale goes in after the product. A zero
    # largest scale means zero gradients.
    largest = column_scale.abs().amax()
    relative = column_scale / torch.where(largest > 0, largest, 1.0)
    return _mm_float32(dz, (relative[:, None] * weight).to(dtype)).mul_(largest).to(dtype)


def _mm_float32(a: Tensor, b: Tensor) -> Tensor:
    """a @ b accumulated and returned in float32: a sum over all rows overflows float16."""
    if a.dtype is torch.float32:
        return torch.mm(a, b)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What `segment_loss` launches: (name, kernel, signature, constexprs, options) for each variant."""
    variants = []
    cases = [(dtype, largest, True, True) for dtype in ("fp32", "bf16", "fp16") for largest in (16, 64, 1000)]
    cases += [("bf16", 32, True, True), ("bf16", 64, False, True), ("bf16", 1000, True, False)]
    for dtype, largest, has_bias, need_gradient in cases:
        blocks = choose_blocks(largest)
        signature = {
            "p_logits": f"*{dtype}",
            "p_bias": f"*{dtype}" if has_bias else "*fp32",
            "p_classes": "*i64",
            "p_dense": "*fp32",
            "p_integers": "*i64",
            "p_floats": "*fp32",
            "p_weights": "*fp32",
            "p_parts": "*fp32",
            "p_bias_parts": "*fp32",
            **dict.fromkeys(("N", "S", "K", "n_blocks", "n_trips", "n_dense"), "i32"),
        }
        constexprs = {
            "HAS_BIAS": has_bias,
            "NEED_GRADIENT": need_gradient,
            "BLOCK_N": blocks.rows,
            "BLOCK_C": blocks.columns,
        }
        name = (
            f"{dtype} C<={largest}{'' if has_bias else ' no bias'}{'' if need_gradient else ' no gradient'}"
        )
        variants.append((name, segment_loss_kernel, signature, constexprs, {"num_warps": blocks.warps}))
    signature = {
        **dict.fromkeys(("p_parts", "p_bias_parts", "p_losses", "p_scale"), "*fp32"),
        "p_correct": "*i64",
        "p_bias_gradient": "*fp32",
        **dict.fromkeys(("S", "K", "n_blocks"), "i32"),
    }
    variants.append(("sums", finalize_kernel, signature, FINALIZE_BLOCKS, {"num_warps": FINALIZE_WARPS}))
    return variants


VARIANTS = _variants()

"""The segmented loss pass on a GPU: logits of all heads (N, S) to losses and, in place, to their gradient.

Head k owns the columns from its offset on, C of them. The formulas are torch.nn.functional's, unscaled (the
gradient of the sum over rows):

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
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import HeadLayout
from .triton_heads import (
    BINARY,
    DELTA,
    IGNORE,
    INDEX,
    KIND,
    N_FLOATS,
    N_INTEGERS,
    OFFSET,
    SIZE,
    SMOOTHING,
    SOFTMAX,
    TARGET,
    WEIGHT_SUM,
    PackedTargets,
    dense_elements,
    head_tables,
    launch_options,
    on_device_of,
    pack_targets,
)


@triton.jit
def _load_logits(p_rows, p_bias, o_c, m_rows, m_c, m_load, HAS_BIAS: tl.constexpr, ALIGNED: tl.constexpr):
    """(BLOCK_N, BLOCK_C) float32 logits with their bias; 0 where masked by m_rows or m_c."""
    b_z = tl.load(p_rows[:, None] + o_c[None, :], mask=m_rows[:, None] & m_load[None, :], other=0.0)
    b_z = b_z.to(tl.float32)
    if ALIGNED:
        # What lies between the head's end and the next multiple of 16 may be anything, NaN included.
        b_z = tl.where(m_c[None, :], b_z, 0.0)
    if HAS_BIAS:
        b_z += tl.load(p_bias + o_c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    return b_z


@triton.jit
def _store_gradient(
    p_rows, p_bias_part, b_dz, o_c, m_n, m_c, m_load, i_trip, NEED_BIAS_GRADIENT: tl.constexpr
):
    """Overwrite a block of logits with its gradient, 0 outside m_c; add its column sums to the program's."""
    if NEED_BIAS_GRADIENT:
        b_before = tl.load(p_bias_part + o_c, mask=m_c & (i_trip > 0), other=0.0)
        tl.store(p_bias_part + o_c, b_before + tl.sum(b_dz, axis=0), mask=m_c)
    p_dz = p_rows[:, None] + o_c[None, :]
    tl.store(p_dz, b_dz.to(p_rows.dtype.element_ty), mask=m_n[:, None] & m_load[None, :])


@triton.jit
def _softmax_rows(
    p_rows,
    p_bias,
    p_weights,
    p_targets,
    p_bias_part,
    m_n,
    m_active,
    i_trip,
    C,
    C_load,
    ignore_index,
    smoothing,
    weight_sum,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    NEED_BIAS_GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(loss, denominator, correct) of a block of rows; pointers are already moved to the head.

    p_targets (BLOCK_N,) points at the rows' classes. A row that is not in m_active is not read; its gradient is 0.
    """
    b_y = tl.load(p_targets, mask=m_active, other=0)
    m_used = m_active & (b_y != ignore_index)
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
    b_lane_first = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)  # the first column of the lane's maximum
    # Rows without a label are common (an auxiliary task that few rows carry): no sweep where all are.
    C_used = tl.where(tl.max(m_valid.to(tl.int32), axis=0) > 0, C, 0)
    for o_first in range(0, C_used, BLOCK_C):
        o_c = o_first + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_z = _load_logits(p_rows, p_bias, o_c, m_valid, m_c, o_c < C_load, HAS_BIAS, ALIGNED)
        if smoothing > 0.0:
            b_w = tl.load(p_weights + o_c, mask=m_c, other=0.0)
            b_lane_gap += b_w[None, :] * (b_target_z[:, None] - b_z)
        b_z = tl.where(m_c[None, :], b_z, float("-inf"))
        # One exponential serves both cases. Two of -inf give 1 rather than NaN; the sum that this spoils
        # is multiplied by exp(-inf) when a finite logit comes.
        b_decay = tl.where(b_z == b_lane_max, 1.0, tl.exp(-tl.abs(b_z - b_lane_max)))
        m_new = b_z > b_lane_max
        b_lane_sum = tl.where(m_new, b_lane_sum * b_decay + 1.0, b_lane_sum + b_decay)
        b_lane_max = tl.where(m_new, b_z, b_lane_max)
        b_lane_first = tl.where(m_new, o_c[None, :], b_lane_first)

    b_max = tl.max(b_lane_max, axis=1)
    b_sum = tl.sum(b_lane_sum * tl.exp(b_lane_max - b_max[:, None]), axis=1)
    b_nll = b_max - b_target_z + tl.log(b_sum)
    b_loss = (1.0 - smoothing) * b_target_w * b_nll
    if smoothing > 0.0:
        b_loss += smoothing / C * (weight_sum * b_nll + tl.sum(b_lane_gap, axis=1))
    b_loss = tl.where(m_valid, b_loss, tl.where(m_used, float("nan"), 0.0))
    loss = tl.sum(b_loss, axis=0)
    denominator = tl.sum(b_target_w, axis=0)
    # The first maximum of the row counts, as torch.argmax has it.
    b_first = tl.min(tl.where(b_lane_max == b_max[:, None], b_lane_first, C), axis=1)
    correct = tl.sum((m_valid & (b_first == b_y)).to(tl.float32), axis=0)

    if NEED_GRADIENT:
        # A target's logit was read by another thread than the one that overwrites it.
        tl.debug_barrier()
        b_pull = (1.0 - smoothing) * b_target_w
        spread = smoothing / C
        b_scale = (b_pull + spread * weight_sum) / b_sum
        for o_first in range(0, C, BLOCK_C):
            o_c = o_first + tl.arange(0, BLOCK_C)
            m_c = o_c < C
            b_z = _load_logits(p_rows, p_bias, o_c, m_valid, m_c, o_c < C_load, HAS_BIAS, ALIGNED)
            b_w = tl.load(p_weights + o_c, mask=m_c, other=0.0)
            m_hit = o_c[None, :] == b_y[:, None]
            b_p = tl.exp(b_z - b_max[:, None])
            b_dz = b_p * b_scale[:, None] - tl.where(m_hit, b_pull[:, None], 0.0) - spread * b_w[None, :]
            b_dz = tl.where(m_valid[:, None] & m_c[None, :], b_dz, 0.0)
            _store_gradient(
                p_rows, p_bias_part, b_dz, o_c, m_n, m_c, o_c < C_load, i_trip, NEED_BIAS_GRADIENT
            )
    return loss, denominator, correct


@triton.jit
def _dense_rows(
    p_rows,
    p_bias,
    p_weights,
    p_targets,
    p_bias_part,
    m_n,
    m_active,
    i_trip,
    C,
    C_load,
    kind,
    delta,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    NEED_BIAS_GRADIENT: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(loss, denominator, correct) of a block of rows; p_targets (BLOCK_N,) points at each row's first.

    A row that is not in m_active is not read; its gradient is 0.
    """
    b_loss = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    b_count = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)
    b_wrong = tl.zeros((BLOCK_N, BLOCK_C), tl.int32)
    for o_first in range(0, C, BLOCK_C):
        o_c = o_first + tl.arange(0, BLOCK_C)
        m_c = o_c < C
        b_z = _load_logits(p_rows, p_bias, o_c, m_active, m_c, o_c < C_load, HAS_BIAS, ALIGNED)
        m_inside = m_active[:, None] & m_c[None, :]
        b_y = tl.load(p_targets[:, None] + o_c[None, :], mask=m_inside, other=float("nan"))
        m_valid = b_y == b_y
        b_y = tl.where(m_valid, b_y, 0.0)
        b_q = tl.load(p_weights + o_c, mask=m_c, other=0.0)[None, :]
        b_element, b_dz, b_element_wrong = dense_elements(b_z, b_y, b_q, m_valid, kind, delta)
        b_loss += b_element
        b_count += m_valid.to(tl.int32)
        b_wrong |= b_element_wrong
        if NEED_GRADIENT:
            _store_gradient(
                p_rows, p_bias_part, b_dz, o_c, m_n, m_c, o_c < C_load, i_trip, NEED_BIAS_GRADIENT
            )
    b_row_count = tl.sum(b_count, axis=1)
    m_right = (b_row_count > 0) & (tl.max(b_wrong, axis=1) == 0) & (kind == BINARY)
    loss = tl.sum(tl.sum(b_loss, axis=1), axis=0)
    count = tl.sum(b_row_count, axis=0).to(tl.float32)
    return loss, count, tl.sum(m_right.to(tl.float32), axis=0)


# Sizes stay unspecialized: they differ between the last batch, phases and layouts; what a divisible row
# stride tells, ALIGNED says.
@triton.jit(
    do_not_specialize=[
        "N", "first_row", "row_stride", "class_stride", "n_dense", "S", "K", "n_heads", "n_trips",
    ]
)  # fmt: skip
def segment_loss_kernel(
    p_logits,  # (N, row_stride), overwritten with its gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_classes,  # (classification heads, class_stride) int64
    p_dense,  # (class_stride, n_dense) float32
    p_integers,  # (n_heads, N_INTEGERS) int64: the heads that this launch computes
    p_floats,  # (n_heads, N_FLOATS) float32
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_parts,  # (blocks of all launches, K, 3) float32: loss, denominator, correct
    p_bias_parts,  # (blocks of this launch, S) float32
    N,
    first_row,  # the row of the targets that row 0 of the logits belongs to
    row_stride,
    class_stride,
    n_dense,
    S,
    K,
    n_heads,
    n_trips,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    NEED_BIAS_GRADIENT: tl.constexpr,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: one head of n_trips blocks of BLOCK_N rows, one block after the other.

    ALIGNED: the row stride and the heads' offsets are multiples of 16, and so is the number of columns up to
    the next head or the end of the row: loads and stores are as wide as the hardware's.
    """
    # One grid axis: the others end at 65,535. Heads vary fastest, so neighbours share rows in cache.
    i_head = tl.program_id(0) % n_heads
    i_n = (tl.program_id(0) // n_heads).to(tl.int64)
    i_k = tl.load(p_integers + i_head * N_INTEGERS + INDEX)
    kind = tl.load(p_integers + i_head * N_INTEGERS + KIND)
    offset = tl.load(p_integers + i_head * N_INTEGERS + OFFSET)
    C = tl.load(p_integers + i_head * N_INTEGERS + SIZE).to(tl.int32)
    target = tl.load(p_integers + i_head * N_INTEGERS + TARGET)
    C_load = C
    if ALIGNED:
        # Nothing changes but what the compiler knows: it widens an access only by proven divisors.
        row_stride = row_stride // 16 * 16
        offset = offset // 16 * 16
        C_load = (C + 15) // 16 * 16
    N_active = N
    if SKIP_ZERO_WEIGHTS:
        N_active = tl.where(tl.load(p_task_weights + i_k) != 0.0, N, 0)
    p_bias_part = p_bias_parts + i_n * S + offset

    loss = 0.0
    denominator = 0.0
    correct = 0.0
    for i_trip in range(n_trips):
        o_n = (i_n * n_trips + i_trip) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        m_active = o_n < N_active
        p_rows = p_logits + o_n * row_stride + offset
        if kind == SOFTMAX:
            block_loss, block_denominator, block_correct = _softmax_rows(
                p_rows,
                p_bias + offset,
                p_weights + offset,
                p_classes + target * class_stride + first_row + o_n,
                p_bias_part,
                m_n,
                m_active,
                i_trip,
                C,
                C_load,
                tl.load(p_integers + i_head * N_INTEGERS + IGNORE),
                tl.load(p_floats + i_head * N_FLOATS + SMOOTHING),
                tl.load(p_floats + i_head * N_FLOATS + WEIGHT_SUM),
                HAS_BIAS,
                NEED_GRADIENT,
                NEED_BIAS_GRADIENT,
                ALIGNED,
                BLOCK_N,
                BLOCK_C,
            )
        else:
            block_loss, block_denominator, block_correct = _dense_rows(
                p_rows,
                p_bias + offset,
                p_weights + offset,
                p_dense + (first_row + o_n) * n_dense + target,
                p_bias_part,
                m_n,
                m_active,
                i_trip,
                C,
                C_load,
                kind,
                tl.load(p_floats + i_head * N_FLOATS + DELTA),
                HAS_BIAS,
                NEED_GRADIENT,
                NEED_BIAS_GRADIENT,
                ALIGNED,
                BLOCK_N,
                BLOCK_C,
            )
        loss += block_loss
        denominator += block_denominator
        correct += block_correct
        # The next block adds to the bias gradient that other threads may have written.
        tl.debug_barrier()
    i_block = first_row // (n_trips * BLOCK_N) + i_n
    p_part = p_parts + (i_block * K + i_k) * 3
    tl.store(p_part, loss)
    tl.store(p_part + 1, denominator)
    tl.store(p_part + 2, correct)


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


class Blocks(NamedTuple):
    """Rows and columns that one program of the loss pass holds at a time, its warps and registers."""

    rows: int
    columns: int
    warps: int
    registers: int  # a thread may use on NVIDIA
    aligned: bool = False  # the head lies so that accesses may be wide: see `segment_loss_kernel`

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told. AMD's knows no limit of registers."""
        return launch_options(self.warps, self.registers)


FINALIZE_BLOCKS = {"BLOCK_P": 256, "BLOCK_R": 64, "BLOCK_S": 32}
FINALIZE_WARPS = 4
# Elements to whose multiples a row of logits is padded and an aligned head begins: 32 bytes of 16-bit ones.
ALIGNMENT = 16
# Heads of more outputs than this are swept in wide blocks of their own launch.
NARROW = 128


def choose_blocks(largest: int, aligned: bool = False) -> Blocks:
    """Blocks for heads of at most `largest` outputs.

    A table, not an autotuner: that needs a driver to choose and stalls inside a graph capture. Every thread
    holds 1 or 2 logits: more rows a thread spill mask registers on gfx942 (with 4 logits), and cost a Hopper
    multiprocessor a third of its warps. Threads of aligned heads hold 4 of a row side by side: 8 bytes or
    more an access. Left alone, ptxas spills a few scalars to win another warp: the limits stop that.
    """
    if aligned:
        return Blocks(1, 512, 4, 96, aligned=True)
    if largest <= 16:
        return Blocks(8, 16, 4, 64)
    if largest <= 32:
        return Blocks(8, 32, 4, 72)
    return Blocks(4, 64, 4, 80) if largest <= 64 else Blocks(8, 64, 8, 80)


class Group(NamedTuple):
    """Heads that one launch computes: their rows of the tables, and its blocks."""

    integers: Tensor  # (n_heads, N_INTEGERS) int64
    floats: Tensor  # (n_heads, N_FLOATS) float32
    blocks: Blocks


def _group(layout: HeadLayout, members: Sequence[int], blocks: Blocks, device: torch.device) -> Group:
    tables = head_tables(layout, device)
    # Cached for later calls, so never an inference tensor.
    with torch.inference_mode(False):
        rows = torch.tensor(members, device=device)
        return Group(tables.integers[rows], tables.floats[rows], blocks)


def is_aligned(layout: HeadLayout, k: int, row_stride: int) -> bool:
    """Whether head k begins at a multiple of ALIGNMENT and owns its columns up to the next multiple."""
    first = layout.offsets[k]
    if first % ALIGNMENT or row_stride % ALIGNMENT:
        return False
    return k == len(layout) - 1 or layout.heads[k].size % ALIGNMENT == 0


@lru_cache(maxsize=256)
def head_groups(layout: HeadLayout, row_stride: int, device: torch.device) -> tuple[Group, ...]:
    """Narrow heads together, wide ones by whether they are aligned: at most three launches."""
    narrow: list[int] = []
    aligned: list[int] = []
    ragged: list[int] = []
    for k, head in enumerate(layout.heads):
        if head.size <= NARROW:
            narrow.append(k)
        else:
            (aligned if is_aligned(layout, k, row_stride) else ragged).append(k)
    return tuple(
        _group(layout, members, choose_blocks(max(layout.heads[k].size for k in members), wide), device)
        for members, wide in ((narrow, False), (aligned, True), (ragged, False))
        if members
    )


def padded_width(layout: HeadLayout) -> int:
    """Elements of a row of a logits buffer: the layout's outputs and what pads them to wide accesses.

    Narrow heads alone gain nothing from padding.
    """
    S = layout.width
    if max(head.size for head in layout.heads) <= NARROW:
        return S
    return triton.cdiv(S, ALIGNMENT) * ALIGNMENT


def rows_per_program(N: int, K: int) -> int:
    """Rows that one program takes, a block after the other: a multiple of 8, as few as fill a large GPU.

    8 to 64 rows keep the (n_blocks, S) partial bias gradients, written and read, at 2 to 12 % of what moves
    16-bit logits in and out.
    """
    return min(64, max(8, N * K // 2048)) // 8 * 8


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


def segment_loss(
    logits: Tensor,
    bias: Tensor | None,
    targets: Sequence[Tensor],
    layout: HeadLayout,
    *,
    need_gradient: bool,
    need_bias_gradient: bool | None = None,
    skip_by: Tensor | None = None,
    blocks: Blocks | None = None,
) -> SegmentLoss:
    """Losses of all heads from their logits (N, S), bias (S,) not yet added; see `SegmentLoss`.

    `targets` are K tensors: integers (N,) for SOFTMAX heads, floats (N, C) for the others, NaN = missing.
    With `need_gradient`, `logits` is overwritten with its unscaled gradient, else it is left alone and there
    is no bias gradient; `need_bias_gradient` says so apart where it differs. A head k with skip_by[k] == 0
    (K task weights, float32) has loss 0, correct 0, scale 0 and gradient 0. `blocks` overrides the table.

    A row of `logits` may be longer than S (`padded_width`): a view of the first S columns of a buffer. What
    lies between may be overwritten. The first call of a layout on a device copies its tables there: make it
    before a graph capture.
    Raises ValueError for shapes that do not fit the layout and for rows that are not contiguous.
    """
    N = logits.shape[0]
    need_bias_gradient = need_gradient if need_bias_gradient is None else need_bias_gradient
    per_program = rows_per_program(N, len(layout))
    n_blocks = triton.cdiv(N, per_program)
    sums = torch.empty(n_blocks, len(layout), 3, dtype=torch.float32, device=logits.device)
    bias_parts = run_loss_pass(
        logits,
        bias,
        pack_targets(targets, layout, N, logits.device),
        layout,
        sums,
        per_program,
        need_gradient=need_gradient,
        need_bias_gradient=need_bias_gradient,
        skip_by=skip_by,
        blocks=blocks,
    )
    return finalize(LossParts(sums, bias_parts), layout)


def run_loss_pass(
    logits: Tensor,
    bias: Tensor | None,
    targets: PackedTargets,
    layout: HeadLayout,
    sums: Tensor,
    per_program: int,
    *,
    need_gradient: bool,
    need_bias_gradient: bool,
    skip_by: Tensor | None,
    first_row: int = 0,
    blocks: Blocks | None = None,
) -> Tensor | None:
    """The sums of the rows of `logits`, which are rows first_row.. of `targets`; the bias gradient's parts.

    `per_program` rows (of `rows_per_program`) make a block. Their sums go to the blocks of `sums`
    from first_row / per_program on, so first_row must be a multiple of that. Raises as `segment_loss` does.
    """
    N, S, K = logits.shape[0], layout.width, len(layout)
    if logits.dim() != 2 or logits.shape[1] != S or logits.stride(1) != 1 or logits.stride(0) < S:
        raise ValueError(
            f"logits must be (N, {S}) of contiguous rows, not {tuple(logits.shape)} with strides {logits.stride()}"
        )
    if bias is not None and bias.shape != (S,):
        raise ValueError(f"bias must be ({S},), not {tuple(bias.shape)}")
    if first_row % per_program:
        raise ValueError(f"first_row {first_row} is not a multiple of {per_program}")
    n_blocks = triton.cdiv(N, per_program)
    bias_parts = None
    if need_bias_gradient:
        bias_parts = torch.empty(n_blocks, S, dtype=torch.float32, device=logits.device)
    if not N:
        return bias_parts
    tables = head_tables(layout, logits.device)
    groups = head_groups(layout, logits.stride(0), logits.device)
    if blocks is not None:
        groups = (_group(layout, range(K), blocks, logits.device),)
    classes, dense = targets
    # An argument that a variant never reads still needs a pointer of the same type.
    with on_device_of(logits):
        for integers, floats, block in groups:
            segment_loss_kernel[(n_blocks * len(integers),)](
                logits,
                tables.column_weights if bias is None else bias.contiguous(),
                tables.integers if classes is None else classes,
                tables.floats if dense is None else dense,
                integers,
                floats,
                tables.column_weights,
                tables.floats if skip_by is None else skip_by.contiguous(),
                sums,
                sums if bias_parts is None else bias_parts,
                N,
                first_row,
                logits.stride(0),
                0 if classes is None else classes.shape[1],
                0 if dense is None else dense.shape[1],
                S,
                K,
                len(integers),
                per_program // block.rows,
                HAS_BIAS=bias is not None,
                NEED_GRADIENT=need_gradient,
                NEED_BIAS_GRADIENT=need_bias_gradient,
                SKIP_ZERO_WEIGHTS=skip_by is not None,
                ALIGNED=block.aligned,
                BLOCK_N=block.rows,
                BLOCK_C=block.columns,
                **block.options,
            )
    return bias_parts


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
    n_bias = 0 if bias_parts is None else triton.cdiv(S, FINALIZE_BLOCKS["BLOCK_S"])
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
            **FINALIZE_BLOCKS,
            num_warps=FINALIZE_WARPS,
        )
    return SegmentLoss(losses, scale, correct, bias_gradient)


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What `segment_loss` launches: (name, kernel, signature, constexprs, options) for each variant."""
    wide, ragged = choose_blocks(1000, aligned=True), choose_blocks(1000)
    cases = [
        *((dtype, choose_blocks(C), "") for dtype in ("fp32", "bf16", "fp16") for C in (16, 64)),
        *((dtype, wide, "") for dtype in ("fp32", "bf16", "fp16")),
        ("bf16", choose_blocks(32), ""),
        ("bf16", ragged, ""),
        ("bf16", choose_blocks(64), "no bias"),
        ("bf16", wide, "no bias gradient"),
        ("bf16", ragged, "no gradient"),
    ]
    variants = []
    for dtype, blocks, without in cases:
        has_bias, need_gradient = without != "no bias", without != "no gradient"
        signature = {
            "p_logits": f"*{dtype}",
            "p_bias": f"*{dtype}" if has_bias else "*fp32",
            **dict.fromkeys(("p_classes", "p_integers"), "*i64"),
            **dict.fromkeys(("p_dense", "p_floats", "p_weights", "p_task_weights"), "*fp32"),
            **dict.fromkeys(("p_parts", "p_bias_parts"), "*fp32"),
            **dict.fromkeys(("N", "first_row", "row_stride", "class_stride", "n_dense"), "i32"),
            **dict.fromkeys(("S", "K", "n_heads", "n_trips"), "i32"),
        }
        constexprs = {
            "HAS_BIAS": has_bias,
            "NEED_GRADIENT": need_gradient,
            "NEED_BIAS_GRADIENT": has_bias and need_gradient and not without,
            "SKIP_ZERO_WEIGHTS": True,
            "ALIGNED": blocks.aligned,
            "BLOCK_N": blocks.rows,
            "BLOCK_C": blocks.columns,
        }
        name = " ".join([dtype, f"{blocks.rows}x{blocks.columns}", *(["aligned"] * blocks.aligned), without])
        variants.append((name.rstrip(), segment_loss_kernel, signature, constexprs, blocks.options))
    signature = {
        **dict.fromkeys(("p_parts", "p_bias_parts", "p_losses", "p_scale"), "*fp32"),
        "p_correct": "*i64",
        "p_bias_gradient": "*fp32",
        **dict.fromkeys(("S", "K", "n_blocks"), "i32"),
    }
    variants.append(("sums", finalize_kernel, signature, FINALIZE_BLOCKS, {"num_warps": FINALIZE_WARPS}))
    return variants


VARIANTS = _variants()

"""Losses of wide softmax heads on a GPU, and their gradient in place of the logits; formulas are in head_losses.py.

A long row does not fit a program's registers, so it is swept twice: for the maximum and the sum of exponentials, then
for the gradient. Both sweeps read 16 bytes per thread at a time. A head may begin and end at any column, so they cover
the columns from its first multiple of 8 to its last; the edges, at most 7 columns each, stay in registers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import triton
import triton.language as tl

from ...machine.launch import (
    Sample,
    Variant,
    cdiv,
    gpu_family,
    launch_options,
    next_power_of_2,
    types_of,
)
from ..kind import HeadSpec, Kind
from ..layout import HeadLayout
from .chunk import INTEGERS, Chunk, Specialization, chunk_types
from .constants import IGNORE, N_CONSTANTS, OFFSET, SIZE, SMOOTHING, WEIGHT_SUM, WEIGHTED
from .groups import stored_end
from .sample_heads import heads_of
from .targets import load_classes, target_of

ONE_BLOCK = 2048  # outputs up to which a program holds a head's whole row
LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)  # of float32


@triton.jit
def _load(p_rows, o_s, m_rows, m_s):
    """Load (BLOCK_N, BLOCK_C) logits as stored, -inf where masked, which adds nothing to a sum."""
    return tl.load(p_rows[:, None] + o_s[None, :], mask=m_rows[:, None] & m_s[None, :], other=float("-inf"))


@triton.jit
def _with_bias(b_raw, p_bias, o_s, m_s, HAS_BIAS: tl.constexpr):
    b_z = b_raw.to(tl.float32)
    if HAS_BIAS:
        b_z += tl.load(p_bias + o_s, mask=m_s, other=0.0).to(tl.float32)[None, :]
    return b_z


@triton.jit
def _sweep_sums(
    p_rows, p_bias, p_weights, m_valid, b_target_z, first, last,
    HAS_BIAS: tl.constexpr, IS_SMOOTHED: tl.constexpr, IS_WEIGHTED: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Return (maximum, sum of exponentials, column of first maximum, sum of w_c (z_y - z_c)) of columns first..last."""
    # Every lane keeps a running maximum and sum of its own columns: nothing crosses threads in the loop. The maximum
    # starts at a finite number, from which -inf can be subtracted.
    b_lane_max = tl.full((BLOCK_N, BLOCK_C), LOWEST, tl.float32)
    b_lane_sum = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    # The start of the block that holds the lane's maximum.
    b_lane_block = tl.zeros((BLOCK_N, BLOCK_C), tl.int32) + first
    b_lane_gap = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    o_lane = tl.arange(0, BLOCK_C)
    b_next = _load(p_rows, first + o_lane, m_valid, first + o_lane < last)
    for o_first in range(first, last, BLOCK_C):
        o_s = o_first + o_lane
        m_s = o_s < last
        b_raw = b_next
        # Loaded while this block is computed.
        b_next = _load(p_rows, o_s + BLOCK_C, m_valid, o_s + BLOCK_C < last)
        b_z = _with_bias(b_raw, p_bias, o_s, m_s, HAS_BIAS)
        if IS_SMOOTHED:
            b_gap = b_target_z[:, None] - b_z
            if IS_WEIGHTED:
                b_gap *= tl.load(p_weights + o_s, mask=m_s, other=0.0)[None, :]
            b_lane_gap += tl.where(m_s[None, :], b_gap, 0.0)
        # One exponential serves both cases.
        b_decay = tl.exp(-tl.abs(b_z - b_lane_max))
        m_new = b_z > b_lane_max
        b_lane_sum = tl.where(m_new, b_lane_sum * b_decay + 1.0, b_lane_sum + b_decay)
        b_lane_block = tl.where(m_new, o_first, b_lane_block)
        b_lane_max = tl.where(m_new, b_z, b_lane_max)
    b_max = tl.max(b_lane_max, axis=1)
    b_sum = tl.sum(b_lane_sum * tl.exp(b_lane_max - b_max[:, None]), axis=1)
    m_max = b_lane_max == b_max[:, None]
    b_first = tl.min(tl.where(m_max, b_lane_block + o_lane[None, :], 0x7FFFFFFF), axis=1)
    return b_max, b_sum, b_first, tl.sum(b_lane_gap, axis=1)


@triton.jit
def _block_sums(
    b_z, p_weights, b_target_z, o_s, m_s, IS_SMOOTHED: tl.constexpr, IS_WEIGHTED: tl.constexpr
):  # fmt: skip
    """Return what `_sweep_sums` returns, for a single block of columns."""
    b_max = tl.maximum(tl.max(b_z, axis=1), LOWEST)
    b_sum = tl.sum(tl.exp(b_z - b_max[:, None]), axis=1)
    b_first = tl.min(tl.where(b_z == b_max[:, None], o_s[None, :], 0x7FFFFFFF), axis=1)
    b_gap = tl.zeros_like(b_max)
    if IS_SMOOTHED:
        b_column_gap = b_target_z[:, None] - b_z
        if IS_WEIGHTED:
            b_column_gap *= tl.load(p_weights + o_s, mask=m_s, other=0.0)[None, :]
        b_gap = tl.sum(tl.where(m_s[None, :], b_column_gap, 0.0), axis=1)
    return b_max, b_sum, b_first, b_gap


@triton.jit
def _gradient(
    b_z, p_weights, o_s, m_s, m_valid, b_max, b_factor, spread, IS_SMOOTHED: tl.constexpr, IS_WEIGHTED: tl.constexpr
):  # fmt: skip
    """Return the scaled gradient without the target's pull; 0 where not valid."""
    b_dz = tl.exp(b_z - b_max[:, None]) * b_factor[:, None]
    if IS_SMOOTHED:
        if IS_WEIGHTED:
            b_dz -= spread * tl.load(p_weights + o_s, mask=m_s, other=0.0)[None, :]
        else:
            b_dz -= spread
    return tl.where(m_valid[:, None] & m_s[None, :], b_dz, 0.0)


@triton.jit
def _sweep_gradient(
    p_rows, p_bias, p_weights, m_n, m_valid, b_max, b_factor, spread, first, last,
    HAS_BIAS: tl.constexpr, IS_SMOOTHED: tl.constexpr, IS_WEIGHTED: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Overwrite columns first..last with their gradient without the target's pull."""
    o_lane = tl.arange(0, BLOCK_C)
    b_next = _load(p_rows, first + o_lane, m_valid, first + o_lane < last)
    for o_first in range(first, last, BLOCK_C):
        o_s = o_first + o_lane
        m_s = o_s < last
        b_raw = b_next
        b_next = _load(p_rows, o_s + BLOCK_C, m_valid, o_s + BLOCK_C < last)
        b_z = _with_bias(b_raw, p_bias, o_s, m_s, HAS_BIAS)
        b_dz = _gradient(b_z, p_weights, o_s, m_s, m_valid, b_max, b_factor, spread, IS_SMOOTHED, IS_WEIGHTED)
        p_dz = p_rows[:, None] + o_s[None, :]
        tl.store(p_dz, b_dz.to(p_rows.dtype.element_ty), mask=m_n[:, None] & m_s[None, :])


@triton.jit(do_not_specialize=[*INTEGERS, "n_trips"])
def wide_softmax_kernel(
    p_logits,  # (n_rows, row_stride), overwritten with its gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_scale,  # (K,) float32, the factor of a head's gradient
    p_sums,  # (n_blocks, K, 3) float32: loss, denominator, correct
    N, n_rows, first_row, row_stride, row_floats,
    address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
    address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    n_trips,
    HEADS: tl.constexpr, N_HEADS: tl.constexpr, HAS_BIAS: tl.constexpr, NEED_GRADIENT: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr, SKIP_ZERO_WEIGHTS: tl.constexpr,
    HEAD: tl.constexpr,
    END_STORED: tl.constexpr,  # one past the head's last column, or past the row's padding after it
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: n_trips blocks of BLOCK_N rows of the head HEAD, one block after the other."""
    AT: tl.constexpr = HEAD * N_CONSTANTS
    offset: tl.constexpr = HEADS[AT + OFFSET]
    C: tl.constexpr = HEADS[AT + SIZE]
    end: tl.constexpr = offset + C
    smoothing: tl.constexpr = HEADS[AT + SMOOTHING]
    weight_sum: tl.constexpr = HEADS[AT + WEIGHT_SUM]
    spread: tl.constexpr = smoothing / C
    IS_SMOOTHED: tl.constexpr = smoothing > 0.0
    IS_WEIGHTED: tl.constexpr = HEADS[AT + WEIGHTED] != 0
    first: tl.constexpr = (offset + 7) // 8 * 8
    last: tl.constexpr = end // 8 * 8
    IS_ONE_BLOCK: tl.constexpr = last - first <= BLOCK_C
    HAS_EDGES: tl.constexpr = (first != offset) | (last != END_STORED)
    # No change in value, but it proves divisibility to the compiler, which widens an access only then.
    row_stride = row_stride // 16 * 16
    i_block = tl.program_id(0)
    addresses = (
        address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
        address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    )  # fmt: skip
    address = target_of(HEAD, addresses, N, HEADS, SIDE_BY_SIDE)
    o_s = first + tl.arange(0, BLOCK_C)
    m_s = o_s < last
    o_i = tl.arange(0, 16)
    o_edge = tl.where(o_i < 8, first, last) - 8 + o_i
    m_edge = tl.where(o_i < 8, o_edge >= offset, o_edge < end)
    m_edge_stored = tl.where(o_i < 8, o_edge >= offset, o_edge < END_STORED)
    n_active = n_rows
    if SKIP_ZERO_WEIGHTS:
        n_active = tl.where(tl.load(p_task_weights + HEAD) != 0.0, n_rows, 0)
    loss = 0.0
    denominator = 0.0
    correct = 0.0
    for i_trip in range(n_trips):
        o_n = (i_block * n_trips + i_trip) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = o_n < n_rows
        b_y, m_used, m_valid = load_classes(address, first_row + o_n, o_n < n_active, C, HEADS[AT + IGNORE])
        p_rows = p_logits + o_n.to(tl.int64) * row_stride
        o_y = offset + tl.where(m_valid, b_y, 0)
        b_target_w = m_valid.to(tl.float32)
        if IS_WEIGHTED:
            b_target_w = tl.load(p_weights + o_y, mask=m_valid, other=0.0)
        b_target_z = tl.load(p_rows + o_y, mask=m_valid, other=0.0).to(tl.float32)
        if HAS_BIAS:
            b_target_z += tl.load(p_bias + o_y, mask=m_valid, other=0.0).to(tl.float32)
        if HAS_EDGES:
            b_edge = _with_bias(_load(p_rows, o_edge, m_valid, m_edge), p_bias, o_edge, m_edge, HAS_BIAS)

        if IS_ONE_BLOCK:
            b_z = _with_bias(_load(p_rows, o_s, m_valid, m_s), p_bias, o_s, m_s, HAS_BIAS)
            b_max, b_sum, b_first, b_gap = _block_sums(
                b_z, p_weights, b_target_z, o_s, m_s, IS_SMOOTHED, IS_WEIGHTED
            )
        else:
            # Rows without a label are common (an auxiliary task that few rows carry): skip the sweep if no row has one.
            last_used = tl.where(tl.max(m_valid.to(tl.int32), axis=0) > 0, last, first)
            b_max, b_sum, b_first, b_gap = _sweep_sums(
                p_rows, p_bias, p_weights, m_valid, b_target_z, first, last_used, HAS_BIAS, IS_SMOOTHED, IS_WEIGHTED,
                BLOCK_N, BLOCK_C,
            )  # fmt: skip
        if HAS_EDGES:
            b_inner_max = b_max
            b_max = tl.maximum(b_max, tl.max(b_edge, axis=1))
            b_sum *= tl.exp(b_inner_max - b_max)
            b_sum += tl.sum(tl.exp(b_edge - b_max[:, None]), axis=1)
            b_first = tl.where(b_inner_max == b_max, b_first, 0x7FFFFFFF)
            b_edge_first = tl.min(tl.where(b_edge == b_max[:, None], o_edge[None, :], 0x7FFFFFFF), axis=1)
            b_first = tl.minimum(b_first, b_edge_first)
            if IS_SMOOTHED:
                b_edge_gap = b_target_z[:, None] - b_edge
                if IS_WEIGHTED:
                    b_edge_gap *= tl.load(p_weights + o_edge, mask=m_edge, other=0.0)[None, :]
                b_gap += tl.sum(tl.where(m_edge[None, :], b_edge_gap, 0.0), axis=1)
        b_sum = tl.where(m_valid, b_sum, 1.0)
        # Like torch.argmax, take the first maximum of the row.
        m_right = m_valid & (b_first == o_y)

        b_nll = b_max - b_target_z + tl.log(b_sum)
        b_loss = (1.0 - smoothing) * b_target_w * b_nll
        if IS_SMOOTHED:
            b_loss += spread * (weight_sum * b_nll + b_gap)
        b_loss = tl.where(m_valid, b_loss, tl.where(m_used, float("nan"), 0.0))
        loss += tl.sum(b_loss, axis=0)
        denominator += tl.sum(b_target_w, axis=0)
        correct += tl.sum(m_right.to(tl.float32), axis=0)

        if NEED_GRADIENT:
            scale = tl.load(p_scale + HEAD)
            b_pull = (1.0 - smoothing) * b_target_w * scale
            b_factor = (b_pull + spread * weight_sum * scale) / b_sum
            own_spread = spread * scale
            # A target's logit may be read by another thread than the one that overwrites it: finish all reads first.
            tl.debug_barrier()
            if IS_ONE_BLOCK:
                b_dz = _gradient(
                    b_z, p_weights, o_s, m_s, m_valid, b_max, b_factor, own_spread, IS_SMOOTHED, IS_WEIGHTED
                )
                p_dz = p_rows[:, None] + o_s[None, :]
                tl.store(p_dz, b_dz.to(p_logits.dtype.element_ty), mask=m_n[:, None] & m_s[None, :])
            else:
                _sweep_gradient(
                    p_rows, p_bias, p_weights, m_n, m_valid, b_max, b_factor, own_spread, first, last,
                    HAS_BIAS, IS_SMOOTHED, IS_WEIGHTED, BLOCK_C,
                )  # fmt: skip
            if HAS_EDGES:
                b_dz = _gradient(
                    b_edge,
                    p_weights,
                    o_edge,
                    m_edge,
                    m_valid,
                    b_max,
                    b_factor,
                    own_spread,
                    IS_SMOOTHED,
                    IS_WEIGHTED,
                )
                p_dz = p_rows[:, None] + o_edge[None, :]
                tl.store(p_dz, b_dz.to(p_logits.dtype.element_ty), mask=m_n[:, None] & m_edge_stored[None, :])
            # Another thread may have stored the sweep's result at the target: it must be written before this one.
            tl.debug_barrier()
            b_dy = tl.exp(b_target_z - b_max) * b_factor - b_pull
            if IS_SMOOTHED:
                b_dy -= own_spread * b_target_w
            tl.store(p_rows + o_y, b_dy.to(p_logits.dtype.element_ty), mask=m_valid)
    p_sum = p_sums + (i_block.to(tl.int64) * N_HEADS + HEAD) * 3
    tl.store(p_sum, loss)
    tl.store(p_sum + 1, denominator)
    tl.store(p_sum + 2, correct)


class Blocks(NamedTuple):
    """Rows and columns that a program sweeps at a time, its warps, and the most registers per thread on NVIDIA."""

    rows: int
    columns: int
    warps: int
    registers: int

    @property
    def options(self) -> dict[str, int]:
        """Options for the compiler. AMD's has no register limit."""
        return launch_options(self.warps, self.registers)


def choose_blocks(
    size: int, itemsize: int, is_smoothed: bool, has_bias: bool, is_weighted: bool, family: str
) -> Blocks:
    """Blocks for a head of `size` outputs: a table, as an autotuner does not work in a graph capture.

    Rows of up to ONE_BLOCK outputs stay in registers. A program waits for memory most of the time, so the limit of
    registers is the lowest without spills: twice as many programs run at a time as where the compiler chooses; for a
    B200, it has not been looked for. For a vocabulary, a whole multiprocessor takes one row, so that the rows in flight
    on all of them (132 of 304 KB on an H200) may stay in the L2 cache between the sweeps. A thread has 8 lanes; 16 hide
    more memory latency, but fit an A100's or H100's registers only with 16-bit logits, a bias, and no smoothing, and
    never a B200's.
    """
    if size <= ONE_BLOCK:
        columns = next_power_of_2(size)
        if family == "blackwell":
            return Blocks(1, columns, columns // 256, 128)
        if columns > 1024 or (is_weighted and is_smoothed):
            return Blocks(1, columns, columns // 256, 80)
        return Blocks(1, columns, columns // 256, 72 if is_weighted else 64)
    if size <= 4096:
        return Blocks(1, 1024, 4, 112)
    if size <= 32768:
        return Blocks(1, 2048, 8, 112)
    if itemsize == 2 and has_bias and not is_smoothed and family != "blackwell":
        return Blocks(1, 8192, 16, 128)
    return Blocks(1, 4096, 16, 112)


def launch(chunk: Chunk, k: int, rows: int) -> None:
    """Compute the losses of head k of a chunk, `rows` of its rows per program."""
    head = chunk.call.layout.heads[k]
    blocks = choose_blocks(
        head.size, chunk.logits.element_size(), head.label_smoothing > 0, chunk.call.bias is not None,
        head.options.column_weights is not None, gpu_family(chunk.logits.device),
    )  # fmt: skip
    _variant(chunk.specialization, k, chunk.logits.shape[1], blocks).launch(
        cdiv(len(chunk.logits), rows), chunk.tensors, (*chunk.integers, rows // blocks.rows)
    )


@cache
def _variant(specialization: Specialization, k: int, n_columns: int, blocks: Blocks) -> Variant:
    """Return the kernel for a head whose layout is padded to n_columns."""
    end = stored_end(specialization.layout, k, n_columns)
    own = {"HEAD": k, "END_STORED": end, "BLOCK_N": blocks.rows, "BLOCK_C": blocks.columns}
    return Variant(wide_softmax_kernel, {**specialization.constexprs, **own}, blocks.options)


def samples_for(family: str) -> Iterator[Sample]:
    """Yield variants that are launched on a family of GPUs."""
    cases = [
        *itertools.product(("fp32", "bf16", "fp16"), (1001, 3001, 150_001), (0.0, 0.1), ("",)),
        *itertools.product(("bf16",), (150, 2001, 30_001), (0.0, 0.1), ("",)),
        *itertools.product(("bf16",), (1001, 150_001), (0.0, 0.1), ("no gradient", "no bias", "weighted")),
        *itertools.product(("fp32", "bf16"), (1008, 151_936), (0.0,), ("", "aligned")),
        ("fp32", 150, 0.1, "weighted"),
        ("bf16", 1001, 0.0, "many"),
    ]
    for dtype, size, smoothing, how in cases:
        has_bias, gradient = how != "no bias", how != "no gradient"
        weights = tuple(float(c % 3) for c in range(size)) if how == "weighted" else None
        wide = HeadSpec(Kind.SOFTMAX, size, label_smoothing=smoothing, class_weights=weights)
        beside = heads_of((), "many") if how == "many" else (HeadSpec(Kind.SOFTMAX, 3),)
        layout = HeadLayout((wide, wide) if how == "aligned" else (*beside, wide))
        k, n_columns = (0, 2 * size) if how == "aligned" else (len(beside), cdiv(layout.width, 8) * 8)
        blocks = choose_blocks(
            size, 4 if dtype == "fp32" else 2, smoothing > 0, has_bias, weights is not None, family
        )
        specialization = Specialization(layout, has_bias, gradient, how == "many", True)
        smoothed = " smoothed" if smoothing else ""
        yield Sample(
            f"{dtype} {size:,} {blocks.rows}x{blocks.columns}{smoothed} {how}".rstrip(),
            _variant(specialization, k, n_columns, blocks),
            chunk_types(dtype, None if has_bias else "fp32") | types_of("i32 n_trips"),
        )

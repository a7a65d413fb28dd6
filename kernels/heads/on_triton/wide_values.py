"""Losses of wide elementwise heads on a GPU, and their gradient in place, one block of columns at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import triton
import triton.language as tl

from ...machine.launch import Sample, Variant, cdiv, launch_options, types_of
from ..kind import HeadSpec, Kind
from ..layout import HeadLayout
from .chunk import INTEGERS, Chunk, Specialization, chunk_types
from .constants import KIND, N_CONSTANTS, OFFSET, SIZE
from .elements import dense_elements
from .groups import stored_end
from .head_losses import options_at
from .sample_heads import heads_of
from .targets import load_values, target_of

COLUMNS, WARPS, REGISTERS = 512, 4, 96


@triton.jit(do_not_specialize=[*INTEGERS, "n_trips"])
def wide_values_kernel(
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
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: n_trips rows of the head HEAD, one row after the other."""
    AT: tl.constexpr = HEAD * N_CONSTANTS
    offset: tl.constexpr = HEADS[AT + OFFSET]
    C: tl.constexpr = HEADS[AT + SIZE]
    i_block = tl.program_id(0)
    addresses = (
        address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
        address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    )  # fmt: skip
    address = target_of(HEAD, addresses, N, HEADS, SIDE_BY_SIDE)
    stride = row_floats if SIDE_BY_SIDE else C
    numbers = options_at(HEADS, HEAD)
    n_active = n_rows
    if SKIP_ZERO_WEIGHTS:
        n_active = tl.where(tl.load(p_task_weights + HEAD) != 0.0, n_rows, 0)
    loss = 0.0
    denominator = 0.0
    correct = 0.0
    for i_trip in range(n_trips):
        o_n = i_block * n_trips + i_trip + tl.arange(0, 1)
        m_n = o_n < n_rows
        p_rows = p_logits + o_n.to(tl.int64) * row_stride
        b_loss = tl.zeros((1, BLOCK_C), tl.float32)
        b_count = tl.zeros((1, BLOCK_C), tl.int32)
        b_wrong = tl.zeros((1, BLOCK_C), tl.int32)
        for o_first in range(offset, END_STORED, BLOCK_C):
            o_s = o_first + tl.arange(0, BLOCK_C)
            m_s = o_s < offset + C
            m_inside = (o_n < n_active)[:, None] & m_s[None, :]
            p_z = p_rows[:, None] + o_s[None, :]
            b_z = tl.load(p_z, mask=m_inside, other=0.0).to(tl.float32)
            if HAS_BIAS:
                b_z += tl.load(p_bias + o_s, mask=m_s, other=0.0).to(tl.float32)[None, :]
            b_t = load_values(address, stride, first_row + o_n, o_s - offset, m_inside)
            m_known = b_t == b_t
            b_t = tl.where(m_known, b_t, 0.0)
            b_w = tl.load(p_weights + o_s, mask=m_s, other=0.0)[None, :]
            b_element, b_dz, b_element_wrong = dense_elements(
                b_z, b_t, b_w, m_known, HEADS[AT + KIND], numbers
            )
            b_loss += b_element
            b_count += m_known.to(tl.int32)
            b_wrong |= b_element_wrong
            if NEED_GRADIENT:
                b_dz *= tl.load(p_scale + HEAD)
                m_stored = m_n[:, None] & (o_s < END_STORED)[None, :]
                tl.store(p_z, b_dz.to(p_logits.dtype.element_ty), mask=m_stored)
        b_row_count = tl.sum(b_count, axis=1)
        m_right = (b_row_count > 0) & (tl.max(b_wrong, axis=1) == 0)
        loss += tl.sum(tl.sum(b_loss, axis=1), axis=0)
        denominator += tl.sum(b_row_count, axis=0).to(tl.float32)
        correct += tl.sum(m_right.to(tl.float32), axis=0)
    p_sum = p_sums + (i_block.to(tl.int64) * N_HEADS + HEAD) * 3
    tl.store(p_sum, loss)
    tl.store(p_sum + 1, denominator)
    tl.store(p_sum + 2, correct)


def launch(chunk: Chunk, k: int, rows: int) -> None:
    """Compute the losses of head k of a chunk, `rows` of its rows per program."""
    _variant(chunk.specialization, k, chunk.logits.shape[1]).launch(
        cdiv(len(chunk.logits), rows), chunk.tensors, (*chunk.integers, rows)
    )


@cache
def _variant(specialization: Specialization, k: int, n_columns: int) -> Variant:
    """Return the kernel for a head whose layout is padded to n_columns."""
    end = stored_end(specialization.layout, k, n_columns)
    constexprs = {**specialization.constexprs, "HEAD": k, "END_STORED": end, "BLOCK_C": COLUMNS}
    return Variant(wide_values_kernel, constexprs, launch_options(WARPS, REGISTERS))


def samples() -> Iterator[Sample]:
    """Yield variants that are launched."""
    for dtype, kind, what in itertools.product(
        ("fp32", "bf16", "fp16"), (Kind.BINARY, Kind.HUBER), ("", "many")
    ):
        beside = heads_of((3, 3, 3, 3), what)
        layout = HeadLayout((*beside, HeadSpec(kind, 5001)))
        specialization = Specialization(layout, True, True, what == "many", True)
        variant = _variant(specialization, len(beside), cdiv(layout.width, 8) * 8)
        yield Sample(
            f"{dtype} {kind.name} {what}".rstrip(), variant, chunk_types(dtype) | types_of("i32 n_trips")
        )

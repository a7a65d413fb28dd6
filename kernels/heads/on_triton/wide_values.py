"""Losses of wide elementwise heads on a GPU, and their gradient over the logits, a block of columns after the other."""

from __future__ import annotations

from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Variant, launch_options
from .chunk import INTEGERS, Chunk, signature
from .elements import dense_elements
from .tables import KIND, N_FLOATS, N_INTEGERS, OFFSET, SIZE, load_options
from .targets import load_values, target_of

COLUMNS, WARPS, REGISTERS = 512, 4, 96


@triton.jit(do_not_specialize=[*INTEGERS, "n_heads", "n_trips"])
def wide_values_kernel(
    p_logits,  # (n_rows, row_stride), overwritten with its gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_integers,  # (K, N_INTEGERS) int64
    p_floats,  # (K, N_FLOATS) float32
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_scale,  # (K,) float32, what a head's gradient is multiplied by
    p_sums,  # (n_blocks, K, 3) float32: loss, denominator, correct
    p_heads,  # (n_heads,) int64: the heads that this launch computes
    N,
    n_rows,
    first_row,
    row_stride,
    S,
    K,
    n_columns,
    row_floats,
    address_0,
    address_1,
    address_2,
    address_3,
    address_4,
    address_5,
    address_6,
    address_7,
    address_8,
    address_9,
    address_10,
    address_11,
    address_12,
    address_13,
    address_14,
    address_15,
    n_heads,
    n_trips,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: n_trips rows of one head, one row after the other."""
    i_block = tl.program_id(0) // n_heads
    i_k = tl.load(p_heads + tl.program_id(0) % n_heads)
    p_head = p_integers + i_k * N_INTEGERS
    addresses = (
        address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
        address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    )  # fmt: skip
    address, stride = target_of(i_k, p_head, addresses, N, row_floats, SIDE_BY_SIDE)
    kind = tl.load(p_head + KIND).to(tl.int32)
    offset = tl.load(p_head + OFFSET).to(tl.int32)
    end = offset + tl.load(p_head + SIZE).to(tl.int32)
    # What follows the last head pads the row.
    end_stored = tl.where(end == S, n_columns, end)
    options = load_options(p_floats + i_k * N_FLOATS)
    n_active = n_rows
    if SKIP_ZERO_WEIGHTS:
        n_active = tl.where(tl.load(p_task_weights + i_k) != 0.0, n_rows, 0)
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
        for o_first in range(offset, end_stored, BLOCK_C):
            o_s = o_first + tl.arange(0, BLOCK_C)
            m_s = o_s < end
            m_inside = (o_n < n_active)[:, None] & m_s[None, :]
            p_z = p_rows[:, None] + o_s[None, :]
            b_z = tl.load(p_z, mask=m_inside, other=0.0).to(tl.float32)
            if HAS_BIAS:
                b_z += tl.load(p_bias + o_s, mask=m_s, other=0.0).to(tl.float32)[None, :]
            b_t = load_values(address, stride, first_row + o_n, o_s - offset, m_inside)
            m_known = b_t == b_t
            b_t = tl.where(m_known, b_t, 0.0)
            b_w = tl.load(p_weights + o_s, mask=m_s, other=0.0)[None, :]
            b_element, b_dz, b_element_wrong = dense_elements(b_z, b_t, b_w, m_known, kind, options)
            b_loss += b_element
            b_count += m_known.to(tl.int32)
            b_wrong |= b_element_wrong
            if NEED_GRADIENT:
                b_dz *= tl.load(p_scale + i_k)
                m_stored = m_n[:, None] & (o_s < end_stored)[None, :]
                tl.store(p_z, b_dz.to(p_logits.dtype.element_ty), mask=m_stored)
        b_row_count = tl.sum(b_count, axis=1)
        m_right = (b_row_count > 0) & (tl.max(b_wrong, axis=1) == 0)
        loss += tl.sum(tl.sum(b_loss, axis=1), axis=0)
        denominator += tl.sum(b_row_count, axis=0).to(tl.float32)
        correct += tl.sum(m_right.to(tl.float32), axis=0)
    p_sum = p_sums + (i_block.to(tl.int64) * K + i_k) * 3
    tl.store(p_sum, loss)
    tl.store(p_sum + 1, denominator)
    tl.store(p_sum + 2, correct)


def launch(chunk: Chunk, heads: Tensor, rows: int) -> None:
    """The losses of these heads (n,) int64 of a chunk, `rows` of it to a program."""
    n_heads = len(heads)
    _variant(*chunk.constexprs.values()).launch(
        triton.cdiv(len(chunk.logits), rows) * n_heads,
        (*chunk.tensors, heads),
        (*chunk.integers, n_heads, rows),
    )


@cache
def _variant(has_bias: bool, gradient: bool, side_by_side: bool, skip: bool) -> Variant:
    constexprs = _constexprs(has_bias, gradient, side_by_side, skip)
    return Variant(wide_values_kernel, constexprs, launch_options(WARPS, REGISTERS))


def _constexprs(has_bias: bool, gradient: bool, side_by_side: bool, skip: bool) -> dict[str, Any]:
    return {
        "HAS_BIAS": has_bias, "NEED_GRADIENT": gradient, "SIDE_BY_SIDE": side_by_side, "SKIP_ZERO_WEIGHTS": skip,
        "BLOCK_C": COLUMNS,
    }  # fmt: skip


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What is launched: (name, kernel, signature, constexprs, options)."""
    variants = []
    for dtype in ("fp32", "bf16", "fp16"):
        types = {**signature(dtype), "p_heads": "*i64", **dict.fromkeys(("n_heads", "n_trips"), "i32")}
        constexprs = _constexprs(True, True, False, True)
        variants.append((dtype, wide_values_kernel, types, constexprs, launch_options(WARPS, REGISTERS)))
    return variants


VARIANTS = _variants()

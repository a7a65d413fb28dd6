"""Losses of narrow heads next to wide ones on a GPU, and their scaled gradient in place: one launch for all.

A program holds some rows of a few adjacent heads, as wide as these are together.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Variant, cdiv
from ..kind import HeadSpec, Kind
from ..layout import HeadLayout
from .chunk import INTEGERS, Chunk, Specialization, signature
from .groups import (
    BEGIN,
    FIRST_COLUMN,
    FIRST_HEAD,
    LAST_COLUMN,
    LAST_HEAD,
    N_BOUNDS,
    Groups,
    group_heads,
)
from .head_losses import head_losses
from .row_blocks import RowBlocks
from .sample_heads import KINDS, heads_of

# A limit of 80 registers, at which a multiprocessor holds as many warps of rows of the packed plan, spills here.
BLOCKS = RowBlocks(1024, 4, 96)


@triton.jit(do_not_specialize=[*INTEGERS, "S"])
def narrow_kernel(
    p_logits,  # (n_rows, row_stride), overwritten with its gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_scale,  # (K,) float32, the factor of a head's gradient
    p_sums,  # (n_blocks, K, 3) float32: loss, denominator, correct
    p_head_of_column,  # (S,) int64
    N,
    n_rows,
    first_row,
    row_stride,
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
    S,
    HEADS: tl.constexpr,
    N_HEADS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
    GROUPS: tl.constexpr,
    N_GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program: BLOCK_N rows of a group of heads. Groups vary fastest, so adjacent programs share rows in cache."""
    # No change in value, but it proves divisibility to the compiler, which only then gives a thread one row's stretch:
    # with elements of several rows, a thread took 189 registers.
    row_stride = row_stride // 16 * 16
    i_block = tl.program_id(0) // N_GROUPS
    o_n = i_block * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n_rows
    # Rows past the end of the chunk get a target index past the end of the batch.
    o_target = tl.where(m_n, first_row + o_n, N)
    addresses = (
        address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
        address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    )  # fmt: skip
    for g in tl.static_range(N_GROUPS):
        if tl.program_id(0) % N_GROUPS == g:
            # Columns of the group, and of the row's padding; other programs write the other columns.
            o_s = GROUPS[g * N_BOUNDS + BEGIN] + tl.arange(0, BLOCK_S)
            m_own = (o_s >= GROUPS[g * N_BOUNDS + FIRST_COLUMN]) & (o_s < GROUPS[g * N_BOUNDS + LAST_COLUMN])
            m_s = m_own & (o_s < S)
            p_z = p_logits + o_n.to(tl.int64)[:, None] * row_stride + o_s[None, :]
            # Read 16 bytes at a time, columns of a neighbour's head included, which other programs may be writing.
            m_read = o_s < (GROUPS[g * N_BOUNDS + LAST_COLUMN] + 7) // 8 * 8
            b_z = tl.load(p_z, mask=m_n[:, None] & m_read[None, :], other=0.0).to(tl.float32)
            b_z = tl.where(m_s[None, :], b_z, 0.0)
            if HAS_BIAS:
                b_z += tl.load(p_bias + o_s, mask=m_s, other=0.0).to(tl.float32)[None, :]
            b_dz = head_losses(
                b_z, o_target, m_n, o_s, p_weights, p_task_weights, p_sums + i_block.to(tl.int64) * N_HEADS * 3,
                addresses, N, row_floats, HEADS, GROUPS[g * N_BOUNDS + FIRST_HEAD],
                GROUPS[g * N_BOUNDS + LAST_HEAD], SIDE_BY_SIDE, SKIP_ZERO_WEIGHTS,
            )  # fmt: skip
            if NEED_GRADIENT:
                b_k = tl.load(p_head_of_column + o_s, mask=m_s, other=0)
                b_scale = tl.load(p_scale + b_k, mask=m_s, other=0.0)
                b_dz = tl.where(m_s[None, :], b_dz * b_scale[None, :], 0.0)
                tl.store(p_z, b_dz.to(p_logits.dtype.element_ty), mask=m_n[:, None] & m_own[None, :])


def rows_of(groups: Groups) -> int:
    """Number of rows of a program."""
    return BLOCKS.rows(groups.columns)


def launch(chunk: Chunk, groups: Groups, head_of_column: Tensor) -> None:
    """Compute the losses of these heads of a chunk."""
    _variant(chunk.specialization, groups).launch(
        cdiv(len(chunk.logits), rows_of(groups)) * groups.n,
        (*chunk.tensors, head_of_column),
        (*chunk.integers, chunk.call.layout.width),
    )


@cache
def _variant(specialization: Specialization, groups: Groups) -> Variant:
    return Variant(
        narrow_kernel, constexprs_of(specialization, groups), BLOCKS.options(specialization.layout)
    )


def constexprs_of(specialization: Specialization, groups: Groups) -> dict[str, Any]:
    """Return the compile-time arguments."""
    return {
        **specialization.constexprs, "GROUPS": groups.bounds, "N_GROUPS": groups.n, "BLOCK_N": rows_of(groups),
        "BLOCK_S": groups.columns,
    }  # fmt: skip


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Variants that are launched: (name, kernel, signature, constexprs, options)."""
    variants = []
    for dtype, widest, what in itertools.product(("fp32", "bf16", "fp16"), (17, 100), KINDS):
        layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 1000), *heads_of((widest, 30, 13, 5), what)))
        groups = group_heads(layout, range(1, len(layout)), cdiv(layout.width, 8) * 8)
        types = {**signature(dtype), "p_head_of_column": "*i64", "S": "i32"}
        constexprs = constexprs_of(Specialization(layout, True, True, what == "many", True), groups)
        name = f"{dtype} {rows_of(groups)}x{groups.columns} {what}".rstrip()
        variants.append((name, narrow_kernel, types, constexprs, BLOCKS.options(layout)))
    return variants


VARIANTS = _variants()

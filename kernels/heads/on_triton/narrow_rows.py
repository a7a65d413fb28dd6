"""Losses of narrow heads beside wide ones on a GPU, and their scaled gradient over the logits: one launch for them all.

A program holds some rows of a few neighbouring heads, as wide as these are together.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Variant, launch_options
from ..layout import HeadLayout
from .chunk import INTEGERS, Chunk, signature
from .head_losses import head_losses

FIRST_HEAD: tl.constexpr = tl.constexpr(0)
LAST_HEAD: tl.constexpr = tl.constexpr(1)
BEGIN: tl.constexpr = tl.constexpr(2)
FIRST_COLUMN: tl.constexpr = tl.constexpr(3)
LAST_COLUMN: tl.constexpr = tl.constexpr(4)
N_BOUNDS: tl.constexpr = tl.constexpr(5)

ALIGNED_COLUMNS = 8  # a program begins at a multiple: 16 bytes of 16-bit logits
GROUP_COLUMNS = 64  # heads of fewer outputs share a program
ELEMENTS = 512  # of a program, 4 a thread


@triton.jit(do_not_specialize=[*INTEGERS, "n_groups"])
def narrow_kernel(
    p_logits,  # (n_rows, row_stride), overwritten with its gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_integers,  # (K, N_INTEGERS) int64
    p_floats,  # (K, N_FLOATS) float32
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_scale,  # (K,) float32, what a head's gradient is multiplied by
    p_sums,  # (n_blocks, K, 3) float32: loss, denominator, correct
    p_groups,  # (n_groups, N_BOUNDS) int32
    p_head_of_column,  # (S,) int64
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
    n_groups,
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
    HAS_VALUES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program: BLOCK_N rows of a group of heads. Groups vary fastest, so neighbours share rows in cache."""
    row_stride = row_stride // 16 * 16
    i_block = tl.program_id(0) // n_groups
    p_group = p_groups + tl.program_id(0) % n_groups * N_BOUNDS
    first_column, last_column = tl.load(p_group + FIRST_COLUMN), tl.load(p_group + LAST_COLUMN)
    o_n = i_block * BLOCK_N + tl.arange(0, BLOCK_N)
    o_s = tl.multiple_of(tl.load(p_group + BEGIN), 8) + tl.arange(0, BLOCK_S)
    m_n = o_n < n_rows
    m_own = (o_s >= first_column) & (o_s < last_column)
    m_s = m_own & (o_s < S)
    p_z = p_logits + o_n.to(tl.int64)[:, None] * row_stride + o_s[None, :]
    b_z = tl.load(p_z, mask=m_n[:, None] & m_s[None, :], other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_z += tl.load(p_bias + o_s, mask=m_s, other=0.0).to(tl.float32)[None, :]
    addresses = (
        address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
        address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    )  # fmt: skip
    b_dz = head_losses(
        b_z, tl.where(m_n, first_row + o_n, N), m_n, o_s, tl.load(p_group + FIRST_HEAD), tl.load(p_group + LAST_HEAD),
        p_integers, p_floats, p_weights, p_task_weights, p_sums + i_block.to(tl.int64) * K * 3,
        addresses, N, row_floats, HAS_VALUES, SIDE_BY_SIDE, SKIP_ZERO_WEIGHTS,
    )  # fmt: skip
    if NEED_GRADIENT:
        b_k = tl.load(p_head_of_column + o_s, mask=m_s, other=0)
        b_dz *= tl.load(p_scale + b_k, mask=m_s, other=0.0)[None, :]
        tl.store(p_z, b_dz.to(p_logits.dtype.element_ty), mask=m_n[:, None] & m_own[None, :])


class Groups(NamedTuple):
    """Which heads and columns each program takes, and the rows and columns that one holds."""

    bounds: Tensor  # (n_groups, N_BOUNDS) int32
    rows: int
    columns: int
    has_values: bool  # whether the targets of one of the heads are floats


def narrow_groups(
    layout: HeadLayout, members: Sequence[int], n_columns: int, device: torch.device
) -> Groups | None:
    """Neighbours among `members` together up to GROUP_COLUMNS; None without members.

    The layout's last head, if it is one, has what pads a row up to n_columns, too.
    """
    if not members:
        return None
    most = max(GROUP_COLUMNS, *(triton.next_power_of_2(layout.heads[k].size) for k in members))
    bounds: list[list[int]] = []
    for k in members:
        first = layout.offsets[k]
        last = n_columns if k == len(layout) - 1 else first + layout.heads[k].size
        if bounds and bounds[-1][1] == k and last - bounds[-1][2] <= most:
            bounds[-1][1], bounds[-1][4] = k + 1, last
        else:
            begin = first // ALIGNED_COLUMNS * ALIGNED_COLUMNS
            bounds.append([k, k + 1, begin, first, last])
    columns = max(16, triton.next_power_of_2(max(last - begin for _, _, begin, _, last in bounds)))
    table = torch.tensor(bounds, dtype=torch.int32, device=device)
    has_values = not all(layout.heads[k].kind.takes_classes for k in members)
    return Groups(table, max(1, ELEMENTS // columns), columns, has_values)


def launch(chunk: Chunk, groups: Groups) -> None:
    """The losses of these heads of a chunk."""
    n_groups = len(groups.bounds)
    _variant(groups.has_values, groups.rows, groups.columns, *chunk.constexprs.values()).launch(
        triton.cdiv(len(chunk.logits), groups.rows) * n_groups,
        (*chunk.tensors, groups.bounds, chunk.tables.head_of_column),
        (*chunk.integers, n_groups),
    )


def options_of(has_values: bool) -> dict[str, int]:
    """What the compiler is told. Left alone, ptxas spills a few scalars to win another warp: the limits stop that."""
    return launch_options(4, 144 if has_values else 112)


@cache
def _variant(
    has_values: bool, rows: int, columns: int, has_bias: bool, gradient: bool, side_by_side: bool, skip: bool
) -> Variant:
    constexprs = _constexprs(has_values, rows, columns, has_bias, gradient, side_by_side, skip)
    return Variant(narrow_kernel, constexprs, options_of(has_values))


def _constexprs(
    has_values: bool, rows: int, columns: int, has_bias: bool, gradient: bool, side_by_side: bool, skip: bool
) -> dict[str, Any]:
    return {
        "HAS_BIAS": has_bias, "NEED_GRADIENT": gradient, "SIDE_BY_SIDE": side_by_side, "SKIP_ZERO_WEIGHTS": skip,
        "HAS_VALUES": has_values, "BLOCK_N": rows, "BLOCK_S": columns,
    }  # fmt: skip


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What is launched: (name, kernel, signature, constexprs, options)."""
    variants = []
    for dtype, columns, has_values in itertools.product(
        ("fp32", "bf16", "fp16"), (16, 64, 256), (False, True)
    ):
        rows = ELEMENTS // columns
        types = {
            **signature(dtype),
            "p_groups": "*i32",
            "p_head_of_column": "*i64",
            "n_groups": "i32",
        }
        constexprs = _constexprs(has_values, rows, columns, True, True, False, True)
        name = f"{dtype} {rows}x{columns}{' values' * has_values}"
        variants.append((name, narrow_kernel, types, constexprs, options_of(has_values)))
    return variants


VARIANTS = _variants()

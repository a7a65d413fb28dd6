"""Losses from logits that a GEMM has stored in memory, and their unscaled gradient in place: one launch for all heads.

A program holds some rows of a few adjacent heads, as wide as these are together.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Variant, cdiv
from ..call import HeadsCall
from ..layout import HeadLayout
from ..plans import Shape
from .constants import constants_of
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
from .row_blocks import CHOICES, RowBlocks, row_blocks
from .sample_heads import KINDS, heads_of
from .tables import head_tables
from .targets import ADDRESSES, locate_targets

WIDEST = 256  # outputs of the widest head that a program holds


@triton.jit(do_not_specialize=["N", "S", "row_floats", *ADDRESSES])
def row_loss_kernel(
    p_logits,  # (N, row_stride), overwritten with its unscaled gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_sums,  # (n_blocks, K, 3) float32
    p_bias_parts,  # (n_blocks, S) float32
    N,
    row_stride,
    S,
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
    HAS_BIAS: tl.constexpr,
    NEED_GRADIENT: tl.constexpr,
    NEED_BIAS_GRADIENT: tl.constexpr,
    HEADS: tl.constexpr,
    N_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    N_GROUPS: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    SKIP_ZERO_WEIGHTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One program: BLOCK_N rows of a group of heads. Groups vary fastest, so adjacent programs share rows in cache."""
    # No change in value, but it proves divisibility to the compiler, which only then gives a thread one row's stretch:
    # with elements of several rows, a thread took 189 registers.
    row_stride = row_stride // 8 * 8
    i_block = tl.program_id(0) // N_GROUPS
    o_n = i_block * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
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
                b_z, o_n, m_n, o_s, p_weights, p_task_weights, p_sums + i_block.to(tl.int64) * N_HEADS * 3,
                addresses, N, row_floats, HEADS, GROUPS[g * N_BOUNDS + FIRST_HEAD],
                GROUPS[g * N_BOUNDS + LAST_HEAD], SIDE_BY_SIDE, SKIP_ZERO_WEIGHTS,
            )  # fmt: skip
            if NEED_GRADIENT:
                tl.store(p_z, b_dz.to(p_logits.dtype.element_ty), mask=m_n[:, None] & m_own[None, :])
            if NEED_BIAS_GRADIENT:
                tl.store(p_bias_parts + i_block.to(tl.int64) * S + o_s, tl.sum(b_dz, axis=0), mask=m_s)


class RowLosses(NamedTuple):
    """Sums (n_blocks, K, 3) over blocks of rows, and the parts (n_blocks, S) of the bias gradient, if any."""

    sums: Tensor
    bias_parts: Tensor | None


@cache
def head_groups(layout: HeadLayout, row_stride: int) -> Groups:
    """Group the heads of a layout whose rows of logits are this long."""
    return group_heads(layout, range(len(layout)), row_stride)


@cache
def _variant(
    layout: HeadLayout,
    row_stride: int,
    blocks: RowBlocks,
    has_bias: bool,
    need_gradient: bool,
    need_bias_gradient: bool,
    side_by_side: bool,
    skip_zero_weights: bool,
) -> Variant:
    n_groups, bounds, columns = head_groups(layout, row_stride)
    constexprs = {
        "HAS_BIAS": has_bias, "NEED_GRADIENT": need_gradient, "NEED_BIAS_GRADIENT": need_bias_gradient,
        "HEADS": constants_of(layout), "N_HEADS": len(layout), "GROUPS": bounds, "N_GROUPS": n_groups,
        "SIDE_BY_SIDE": side_by_side, "SKIP_ZERO_WEIGHTS": skip_zero_weights, "BLOCK_N": blocks.rows(columns),
        "BLOCK_S": columns,
    }  # fmt: skip
    return Variant(row_loss_kernel, constexprs, blocks.options(layout))


def blocks_of(call: HeadsCall) -> RowBlocks:
    """Return the sizes of the programs of a call."""
    (N, D), layout = call.features.shape, call.layout
    shape = Shape(N, D, layout.width, layout.widest, call.features.element_size())
    return row_blocks(shape, call.features.device)


def n_row_blocks(call: HeadsCall, row_stride: int) -> int:
    """Number of blocks of rows in the loss sums of a call."""
    groups = head_groups(call.layout, row_stride)
    return cdiv(call.features.shape[0], blocks_of(call).rows(groups.columns))


def take_row_losses(call: HeadsCall, logits: Tensor) -> RowLosses:
    """Compute the losses from logits (N, row_stride) without bias, of which the first S columns are real.

    If a gradient is needed, it overwrites the logits, and columns from S on become 0; else the logits are not changed.
    """
    layout, device = call.layout, logits.device
    (N, row_stride), S, K = logits.shape, layout.width, len(layout)
    tables, groups = head_tables(layout, device), head_groups(layout, row_stride)
    targets = locate_targets(call.targets, layout, N, device)
    blocks = blocks_of(call)
    n_blocks = cdiv(N, blocks.rows(groups.columns))
    sums = torch.empty(n_blocks, K, 3, dtype=torch.float32, device=device)
    bias_parts = torch.empty(n_blocks, S, dtype=torch.float32, device=device) if call.needs[2] else None
    _variant(
        layout, row_stride, blocks, call.bias is not None, any(call.needs), bias_parts is not None,
        targets.side_by_side, call.skip_zero_weights,
    ).launch(
        n_blocks * groups.n,
        (
            logits, tables.column_weights if call.bias is None else call.bias.contiguous(), tables.column_weights,
            call.task_weights, sums,
            sums if bias_parts is None else bias_parts,
        ),
        (N, row_stride, S, targets.row_floats, *targets.addresses),
        known=row_stride,
    )  # fmt: skip
    return RowLosses(sums, bias_parts)


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Variants that are launched: (name, kernel, signature, constexprs, options)."""
    variants = []
    for dtype in ("fp32", "bf16", "fp16"):
        for blocks, widest, what in itertools.product(CHOICES.values(), (40, WIDEST), KINDS):
            layout = HeadLayout(heads_of((widest, 30, 13, 5), what))
            groups = head_groups(layout, 8 * cdiv(layout.width, 8))
            signature = {
                **dict.fromkeys(("p_logits", "p_bias"), f"*{dtype}"),
                **dict.fromkeys(("p_weights", "p_task_weights", "p_sums", "p_bias_parts"), "*fp32"),
                **dict.fromkeys(("N", "row_stride", "S", "row_floats"), "i32"),
                **dict.fromkeys(ADDRESSES, "i64"),
            }
            constexprs = {
                "HAS_BIAS": True, "NEED_GRADIENT": True, "NEED_BIAS_GRADIENT": True, "HEADS": constants_of(layout),
                "N_HEADS": len(layout), "GROUPS": groups.bounds, "N_GROUPS": groups.n,
                "SIDE_BY_SIDE": what == "many", "SKIP_ZERO_WEIGHTS": True, "BLOCK_N": blocks.rows(groups.columns),
                "BLOCK_S": groups.columns,
            }  # fmt: skip
            options = blocks.options(layout)
            most = options.get("maxnreg")
            limit = "" if most is None else f" {most} registers"
            name = f"{dtype} {blocks.rows(groups.columns)}x{groups.columns}{f' {what}'.rstrip()}{limit}"
            variants.append((name, row_loss_kernel, signature, constexprs, options))
    return variants


VARIANTS = _variants()

"""Losses from logits that a GEMM has stored, and their gradient in place: all narrow heads in one launch.

A program holds some rows of a few adjacent heads, as wide as these are together. The packed plan takes all rows and all
heads at once, and leaves the gradient unscaled; the chunked plan takes the heads beside wide ones, a chunk of rows at a
time, and has their scales already.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import triton
import triton.language as tl
from torch import Tensor

from ...machine.launch import Sample, Variant, cdiv, gpu_family, types_of
from ..kind import HeadSpec, Kind
from ..layout import HeadLayout
from .chunk import INTEGERS, Chunk, Specialization, chunk_types
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
from .row_blocks import BESIDE_WIDE, CHOICES, RowBlocks
from .sample_heads import KINDS, heads_of

WIDEST = 256  # outputs of the widest head that a program holds


@triton.jit(do_not_specialize=[*INTEGERS, "S"])
def row_loss_kernel(
    p_logits,  # (n_rows, row_stride), overwritten with its gradient if NEED_GRADIENT
    p_bias,  # (S,)
    p_weights,  # (S,) float32
    p_task_weights,  # (K,) float32
    p_scale,  # (K,) float32, the factor of a head's gradient, IN_CHUNKS
    p_sums,  # (n_blocks, K, 3) float32: loss, denominator, correct
    p_head_of_column,  # (S,) int64, IN_CHUNKS
    p_bias_parts,  # (n_blocks, S) float32, NEED_BIAS_GRADIENT
    N, n_rows, first_row, row_stride, row_floats,
    address_0, address_1, address_2, address_3, address_4, address_5, address_6, address_7,
    address_8, address_9, address_10, address_11, address_12, address_13, address_14, address_15,
    S,
    HEADS: tl.constexpr, N_HEADS: tl.constexpr, HAS_BIAS: tl.constexpr, NEED_GRADIENT: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr, SKIP_ZERO_WEIGHTS: tl.constexpr,
    IN_CHUNKS: tl.constexpr,  # rows first_row.. of a batch, whose gradient is scaled; else a whole batch, unscaled
    NEED_BIAS_GRADIENT: tl.constexpr,
    GROUPS: tl.constexpr, N_GROUPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N rows of a group of heads. Groups vary fastest, so adjacent programs share rows in cache."""
    # No change in value, but it proves divisibility to the compiler, which only then gives a thread one row's stretch:
    # with elements of several rows, a thread took 189 registers.
    row_stride = row_stride // 8 * 8
    i_block = tl.program_id(0) // N_GROUPS
    o_n = i_block * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < n_rows
    o_target = o_n
    if IN_CHUNKS:
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
            if IN_CHUNKS and NEED_GRADIENT:
                b_k = tl.load(p_head_of_column + o_s, mask=m_s, other=0)
                b_dz *= tl.load(p_scale + b_k, mask=m_s, other=0.0)[None, :]
            if NEED_GRADIENT:
                tl.store(p_z, b_dz.to(p_logits.dtype.element_ty), mask=m_n[:, None] & m_own[None, :])
            if NEED_BIAS_GRADIENT:
                tl.store(p_bias_parts + i_block.to(tl.int64) * S + o_s, tl.sum(b_dz, axis=0), mask=m_s)


def take_row_losses(
    chunk: Chunk, groups: Groups, blocks: RowBlocks, bias_parts: Tensor | None = None, *, in_chunks: bool
) -> None:
    """Compute the losses of a chunk's heads in these groups; not in_chunks: the chunk is the whole batch.

    If a gradient is needed, it overwrites the logits, scaled only in chunks, and their padding becomes 0; else the
    logits are not changed. bias_parts: gets the parts (n_blocks, S) of the bias gradient from blocks of
    `blocks.rows(groups.columns)` rows.
    """
    specialization, logits = chunk.specialization, chunk.logits
    family = gpu_family(logits.device)
    _variant(specialization, groups, blocks, in_chunks, bias_parts is not None, family).launch(
        cdiv(len(logits), blocks.rows(groups.columns)) * groups.n,
        (*chunk.tensors, chunk.tables.head_of_column, chunk.sums if bias_parts is None else bias_parts),
        (*chunk.integers, specialization.layout.width),
    )


@cache
def _variant(
    specialization: Specialization,
    groups: Groups,
    blocks: RowBlocks,
    in_chunks: bool,
    need_bias_gradient: bool,
    family: str,
) -> Variant:
    constexprs = {
        **specialization.constexprs, "IN_CHUNKS": in_chunks, "NEED_BIAS_GRADIENT": need_bias_gradient,
        "GROUPS": groups.bounds, "N_GROUPS": groups.n, "BLOCK_N": blocks.rows(groups.columns),
        "BLOCK_S": groups.columns,
    }  # fmt: skip
    return Variant(row_loss_kernel, constexprs, blocks.options(specialization.layout, family))


def samples_for(family: str) -> Iterator[Sample]:
    """Yield variants that are launched on a family of GPUs."""
    packed = [("packed", blocks, widest) for blocks in CHOICES.values() for widest in (40, WIDEST)]
    plans = [("chunked", BESIDE_WIDE, 17), *packed, ("chunked", BESIDE_WIDE, 100)]
    for dtype, what, (plan, blocks, widest) in itertools.product(("fp32", "bf16", "fp16"), KINDS, plans):
        is_packed, heads = plan == "packed", heads_of((widest, 30, 13, 5), what)
        layout = HeadLayout(heads if is_packed else (HeadSpec(Kind.SOFTMAX, 1000), *heads))
        groups = group_heads(layout, range(not is_packed, len(layout)), 8 * cdiv(layout.width, 8))
        specialization = Specialization(layout, True, True, what == "many", True)
        variant = _variant(specialization, groups, blocks, not is_packed, is_packed, family)
        most = variant.options.get("maxnreg")
        limit = "" if most is None else f" {most} registers"
        name = f"{dtype} {plan} {blocks.rows(groups.columns)}x{groups.columns}{f' {what}'.rstrip()}{limit}"
        types = types_of("*i64 p_head_of_column", "*fp32 p_bias_parts", "i32 S")
        yield Sample(name, variant, chunk_types(dtype) | types)

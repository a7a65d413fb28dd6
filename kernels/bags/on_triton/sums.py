"""Bags of table rows on a GPU: gather and sum, gradients by unique row, and row-sparse optimizer steps.

A batch of B bags is given as ids (total,) and starts (B + 1,). Forward, with scales 1 or 1/count:

    out[b] = scale[b] * sum over the positions i of bag b of table[ids[i]]

Backward, every row u of the batch once:

    gradient[u] = sum over the positions i with ids[i] = u of scale[bag(i)] * d_out[bag(i)]

Sorting the ids, stably, brings a row's positions together: its *segment*. Sums are float32 in an order that the
batch alone decides, without atomics, so two calls give the same bits. A sum runs over ROWS lanes, so that each adds
a few terms, and the lanes are added up last. Segments of frequent rows are cut at the multiples of PIECE sorted
positions: a kernel sums the pieces that lie wholly in one segment, and whoever needs the segment adds those sums in
order. No program then sums more than two pieces' worth of gradients, however frequent a row.

An id that is not in [0, V) stands for no row and touches no memory, nor does a position outside every bag.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ...machine.launch import launch_options
from . import blocks


@triton.jit
def _add_rows(
    b_sum,
    p_source,
    p_rows,
    p_scales,
    first,
    last,
    n_source,
    o_d,
    D,
    HAS_SCALES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """b_sum (ROWS, BLOCK_D) plus, in lane i % ROWS, scales[rows[i]] * source[rows[i]] for i in [first, last)."""
    for o_first in range(first, last, ROWS):
        o_i = o_first + tl.arange(0, ROWS)
        b_row = tl.load(p_rows + o_i, mask=o_i < last, other=-1).to(tl.int64)
        m_row = (b_row >= 0) & (b_row < n_source)
        p_values = p_source + b_row[:, None] * D + o_d[None, :]
        b = tl.load(p_values, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
        if HAS_SCALES:
            b *= tl.load(p_scales + b_row, mask=m_row, other=0.0)[:, None]
        b_sum += b
    return b_sum


@triton.jit
def sum_segment(
    p_d_out, p_bags, p_scales, p_pieces, first, last, B, o_d, D,
    HAS_SCALES: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(BLOCK_D,) the columns o_d of the gradient of one row: the sorted positions [first, last)."""
    first_piece, last_piece = tl.cdiv(first, PIECE), last // PIECE
    head = tl.minimum(first_piece * PIECE, last)
    tail = tl.maximum(last_piece * PIECE, head)
    b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
    b_sum = _add_rows(b_sum, p_d_out, p_bags, p_scales, first, head, B, o_d, D, HAS_SCALES, ROWS)
    for o_first in range(first_piece, last_piece, ROWS):
        o_p = (o_first + tl.arange(0, ROWS)).to(tl.int64)
        p_piece = p_pieces + o_p[:, None] * D + o_d[None, :]
        b_sum += tl.load(p_piece, mask=(o_p < last_piece)[:, None] & (o_d < D)[None, :], other=0.0)
    b_sum = _add_rows(b_sum, p_d_out, p_bags, p_scales, tail, last, B, o_d, D, HAS_SCALES, ROWS)
    return tl.sum(b_sum, axis=0)


# D is a constant of a model: with it the compiler widens accesses and drops masks. Batches differ, and stay
# unspecialized.
@triton.jit(do_not_specialize=["total", "V"])
def pool_kernel(
    p_table,  # (V, D)
    p_ids,  # (total,) int32
    p_starts,  # (B + 1,) int64
    p_scales,  # (B,) float32
    p_out,  # (B, D)
    total,
    V,
    D: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D columns of one bag."""
    i_b = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.maximum(tl.load(p_starts + i_b), 0)
    last = tl.minimum(tl.load(p_starts + i_b + 1), total)
    b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
    b_sum = _add_rows(b_sum, p_table, p_ids, p_scales, first, last, V, o_d, D, False, ROWS)
    b_out = tl.sum(b_sum, axis=0)
    if HAS_SCALES:
        b_out *= tl.load(p_scales + i_b)
    tl.store(p_out + i_b * D + o_d, b_out.to(p_out.dtype.element_ty), mask=o_d < D)


@triton.jit(do_not_specialize=["B", "total", "V"])
def mean_scale_kernel(
    p_ids,  # (total,) int32
    p_starts,  # (B + 1,) int64
    p_scales,  # (B,) float32
    B,
    total,
    V,
    BLOCK_B: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """One program: 1 over the number of rows in each of BLOCK_B bags, 0 for a bag without any."""
    o_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    m_b = o_b < B
    b_first = tl.maximum(tl.load(p_starts + o_b, mask=m_b, other=0), 0)
    b_last = tl.minimum(tl.load(p_starts + o_b + 1, mask=m_b, other=0), total)
    b_count = tl.zeros((BLOCK_B, BLOCK_L), tl.int32)
    for o_first in range(0, tl.max(b_last - b_first, axis=0), BLOCK_L):
        o_i = b_first[:, None] + (o_first + tl.arange(0, BLOCK_L))[None, :]
        b_id = tl.load(p_ids + o_i, mask=o_i < b_last[:, None], other=-1)
        b_count += ((b_id >= 0) & (b_id < V)).to(tl.int32)
    b_n = tl.sum(b_count, axis=1).to(tl.float32)
    tl.store(p_scales + o_b, tl.where(b_n > 0.0, 1.0 / tl.maximum(b_n, 1.0), 0.0), mask=m_b)


@triton.jit(do_not_specialize=["B", "V"])
def piece_kernel(
    p_d_out,  # (B, D)
    p_keys,  # (total,) int32, ascending
    p_bags,  # (total,) int32, in their order
    p_scales,  # (B,) float32
    p_pieces,  # (total // PIECE, D) float32; only pieces within one segment are written
    B,
    V,
    D: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D columns of the sum of one piece, if it lies in one segment."""
    i_p = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = i_p * PIECE
    key = tl.load(p_keys + first)
    if (key < V) & (key == tl.load(p_keys + first + (PIECE - 1))):
        b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
        b_sum = _add_rows(b_sum, p_d_out, p_bags, p_scales, first, first + PIECE, B, o_d, D, HAS_SCALES, ROWS)
        tl.store(p_pieces + i_p * D + o_d, tl.sum(b_sum, axis=0), mask=o_d < D)


@triton.jit(do_not_specialize=["B"])
def row_gradient_kernel(
    p_d_out,  # (B, D)
    p_begins,  # (U + 1,) int64
    p_bags,  # (total,) int32, in the order of the keys
    p_scales,  # (B,) float32
    p_pieces,  # (total // PIECE, D) float32
    p_gradient,  # (U, D)
    B,
    D: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D columns of the gradient of one row."""
    i_u = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b_g = sum_segment(
        p_d_out, p_bags, p_scales, p_pieces, tl.load(p_begins + i_u), tl.load(p_begins + i_u + 1), B, o_d, D,
        HAS_SCALES, PIECE, ROWS, BLOCK_D,
    )  # fmt: skip
    tl.store(p_gradient + i_u * D + o_d, b_g.to(p_gradient.dtype.element_ty), mask=o_d < D)


# What `compile_all` compiles without a GPU: (name, kernel, signature, constexprs, options) for each variant.
Variant = tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]
BATCH = {"p_ids": "*i32", "p_starts": "*i64"}
SEGMENTS = {"p_begins": "*i64", "p_bags": "*i32", "p_scales": "*fp32", "p_pieces": "*fp32"}


def variant(
    name: str, kernel: Any, pointers: dict[str, str], integers: str, constexprs: Any, options: Any
) -> Variant:
    """A variant whose arguments that are named in `integers` are int32."""
    return name, kernel, {**pointers, **dict.fromkeys(integers.split(), "i32")}, constexprs, options


def _variants() -> list[Variant]:
    variants = []
    for dtype, D in (("fp32", 5), ("fp32", 128), ("fp32", 300), ("bf16", 128), ("fp16", 768)):
        chosen = blocks.choose_blocks(D, blocks.SHARED_COLUMNS)
        constexprs = {"D": D, "HAS_SCALES": True, **chosen.constexprs}
        pointers = {"p_table": f"*{dtype}", **BATCH, "p_scales": "*fp32", "p_out": f"*{dtype}"}
        name = f"{dtype} D={D}"
        variants.append(variant(name, pool_kernel, pointers, "total V", constexprs, chosen.options))
        constexprs = {**constexprs, "PIECE": blocks.PIECE}
        pointers = {"p_d_out": f"*{dtype}", "p_keys": "*i32", **SEGMENTS}
        variants.append(variant(name, piece_kernel, pointers, "B V", constexprs, chosen.options))
        pointers = {"p_d_out": f"*{dtype}", **SEGMENTS, "p_gradient": f"*{dtype}"}
        variants.append(variant(name, row_gradient_kernel, pointers, "B", constexprs, chosen.options))
    pointers, options = {**BATCH, "p_scales": "*fp32"}, launch_options(blocks.WARPS)
    variants.append(
        variant("scales of means", mean_scale_kernel, pointers, "B total V", blocks.SCALE_BLOCKS, options)
    )
    return variants


VARIANTS = _variants()

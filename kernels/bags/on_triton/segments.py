"""Positions of bags by row on a GPU: keys to sort by, and the segments of the sorted ones (see sums.py)."""

from __future__ import annotations

import triton
import triton.language as tl

from ...machine.launch import launch_options
from . import blocks
from .sums import BATCH, Variant, variant


@triton.jit(do_not_specialize=["B", "total", "V", "n_halvings"])
def key_kernel(
    p_ids,  # (total,) int32
    p_starts,  # (B + 1,) int64
    p_keys,  # (total,) int32: the id, V where there is no row, so that it is sorted to the end
    p_bags,  # (total,) int32: the bag that a position lies in
    B,
    total,
    V,
    n_halvings,
    HAS_STARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK positions; without starts each is a bag of its own."""
    o_i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < total
    b_id = tl.load(p_ids + o_i, mask=m_i, other=-1)
    m_row = (b_id >= 0) & (b_id < V)
    if HAS_STARTS:
        # The number of starts that are not past the position lies in [b_low, b_high].
        b_low = tl.zeros((BLOCK,), tl.int32)
        b_high = tl.zeros((BLOCK,), tl.int32) + (B + 1)
        for _ in range(n_halvings):
            m_open = b_low < b_high
            b_middle = b_low + (b_high - b_low) // 2
            m_right = tl.load(p_starts + b_middle, mask=m_open, other=0) <= o_i
            b_low = tl.where(m_open & m_right, b_middle + 1, b_low)
            b_high = tl.where(m_open & (m_right == 0), b_middle, b_high)
        b_bag = b_low - 1
        m_row = m_row & (b_bag >= 0) & (b_bag < B)
    else:
        b_bag = o_i.to(tl.int32)
    tl.store(p_keys + o_i, tl.where(m_row, b_id, V).to(tl.int32), mask=m_i)
    tl.store(p_bags + o_i, b_bag, mask=m_i)


@triton.jit(do_not_specialize=["total", "V"])
def segment_kernel(
    p_keys,  # (total,) int32, ascending
    p_order,  # (total,) int64: where the keys stood
    p_later,  # (total - 1,) int32: segments that begin in [1, i + 1]
    p_bags,  # (total,) int32
    p_rows,  # (total,) int32: the key of every segment; the last one may be V
    p_begins,  # (total + 1,) int64: where every segment begins, and the last one ends
    p_count,  # (1,) int32: segments of rows
    p_sorted_bags,  # (total,) int32
    p_inverse,  # (total,) int32: the segment that a position belongs to, -1 for none
    total,
    V,
    NEED_INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK sorted positions."""
    o_i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < total
    b_key = tl.load(p_keys + o_i, mask=m_i, other=0)
    b_order = tl.load(p_order + o_i, mask=m_i, other=0)
    b_segment = tl.load(p_later + o_i - 1, mask=m_i & (o_i > 0), other=0)
    b_before = tl.load(p_later + o_i - 2, mask=m_i & (o_i > 1), other=0)
    m_begin = m_i & ((o_i == 0) | (b_segment != b_before))
    tl.store(p_rows + b_segment, b_key, mask=m_begin)
    tl.store(p_begins + b_segment, o_i, mask=m_begin)
    m_last = o_i == total - 1
    tl.store(p_begins + b_segment + 1, o_i + 1, mask=m_last)
    tl.store(p_count + o_i * 0, b_segment + (b_key < V).to(tl.int32), mask=m_last)
    if NEED_INVERSE:
        tl.store(p_inverse + b_order, tl.where(b_key < V, b_segment, -1), mask=m_i)
    else:
        tl.store(p_sorted_bags + o_i, tl.load(p_bags + b_order, mask=m_i, other=-1), mask=m_i)


def _variants() -> list[Variant]:
    variants, options = [], launch_options(blocks.WARPS)
    for has_starts in (True, False):
        pointers = {**BATCH, "p_keys": "*i32", "p_bags": "*i32"}
        name = "positions of bags" if has_starts else "positions"
        constexprs = {"HAS_STARTS": has_starts, **blocks.POSITIONS}
        variants.append(variant(name, key_kernel, pointers, "B total V n_halvings", constexprs, options))
        pointers = {
            **dict.fromkeys(("p_keys", "p_later", "p_bags", "p_rows", "p_count"), "*i32"),
            **dict.fromkeys(("p_sorted_bags", "p_inverse"), "*i32"),
            **dict.fromkeys(("p_order", "p_begins"), "*i64"),
        }
        name = "segments" if has_starts else "segments, inverse"
        constexprs = {"NEED_INVERSE": not has_starts, **blocks.POSITIONS}
        variants.append(variant(name, segment_kernel, pointers, "total V", constexprs, options))
    return variants


VARIANTS = _variants()

"""Find where the segments of sorted positions begin, if their number is needed (see sums.py)."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ...machine.launch import Sample, Variant, launch_options, types_of
from . import blocks


@triton.jit(do_not_specialize=["total", "V"])
def segment_kernel(
    p_keys,  # (total,) int32, ascending
    p_order,  # (total,) integers: the keys' positions before sorting, NEED_INVERSE
    p_later,  # (total - 1,) int32: number of segments that begin in [1, i + 1]
    p_rows,  # (total,) int32: the key of every segment; the last one may be V
    p_begins,  # (total + 1,) int64: the begin of every segment, and the end of the last one
    p_count,  # (1,) int32: number of segments that are rows
    p_inverse,  # (total,) int32: the segment of a position, -1 for none, NEED_INVERSE
    total,
    V,
    NEED_INVERSE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK sorted positions."""
    o_i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_i < total
    b_key = tl.load(p_keys + o_i, mask=m_i, other=0)
    b_segment = tl.load(p_later + o_i - 1, mask=m_i & (o_i > 0), other=0)
    b_before = tl.load(p_later + o_i - 2, mask=m_i & (o_i > 1), other=0)
    m_begin = m_i & ((o_i == 0) | (b_segment != b_before))
    tl.store(p_rows + b_segment, b_key, mask=m_begin)
    tl.store(p_begins + b_segment, o_i, mask=m_begin)
    m_last = o_i == total - 1
    tl.store(p_begins + b_segment + 1, o_i + 1, mask=m_last)
    tl.store(p_count + o_i * 0, b_segment + (b_key < V).to(tl.int32), mask=m_last)
    if NEED_INVERSE:
        b_order = tl.load(p_order + o_i, mask=m_i, other=0)
        tl.store(p_inverse + b_order, tl.where(b_key < V, b_segment, -1), mask=m_i)


def samples() -> Iterator[Sample]:
    """Yield variants that are launched."""
    variant = Variant(
        segment_kernel, {"NEED_INVERSE": True, **blocks.POSITIONS}, launch_options(blocks.WARPS)
    )
    for order in ("*i32", "*i64"):
        types = types_of(
            "*i32 p_keys p_later p_rows p_count p_inverse", f"{order} p_order", "*i64 p_begins", "i32 total V"
        )
        yield Sample(f"segments, order {order}", variant, types)

"""Gather and pool on a GPU in one launch: rows of a table, or of the word types that ids stand for (see sums.py)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import triton
import triton.language as tl

from ...machine.launch import Sample, Variant, types_of
from . import blocks

# The factor of a sum in `pool_kernel`.
NO_SCALES, GIVEN_SCALES, MEAN = 0, 1, 2


@triton.jit(do_not_specialize=["total", "V", "T"])
def pool_kernel(
    p_table,  # (V, D)
    p_ids,  # (total,) int32
    p_starts,  # (B + 1,) int64, HAS_STARTS
    p_type_rows,  # (T, M) int32, HAS_TYPES
    p_type_counts,  # (T,) int32, HAS_TYPES
    p_scales,  # (B,) float32: read if SCALING is 1, written if it is 2
    p_out,  # (B, D)
    total,
    V,
    T,
    D: tl.constexpr,
    HAS_STARTS: tl.constexpr,  # else every id is a bag
    HAS_TYPES: tl.constexpr,
    M: tl.constexpr,  # rows of a type; 1 without types
    SCALING: tl.constexpr,  # 0: 1; 1: the given scales; 2: 1 over the number of ids of the bag that count
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D columns of one bag."""
    i_b = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first, last = i_b * M, (i_b + 1) * M
    if HAS_STARTS:
        first = tl.maximum(tl.load(p_starts + i_b), 0) * M
        last = tl.minimum(tl.load(p_starts + i_b + 1), total) * M
    b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
    b_count = tl.zeros((ROWS,), tl.int32)
    for o_first in range(first, last, ROWS):
        o_i = o_first + tl.arange(0, ROWS)
        b_id = tl.load(p_ids + o_i // M, mask=o_i < last, other=-1)
        if HAS_TYPES:
            m_type = (b_id >= 0) & (b_id < T)
            b_row = tl.load(p_type_rows + b_id.to(tl.int64) * M + o_i % M, mask=m_type, other=-1).to(tl.int64)
        else:
            b_row = b_id.to(tl.int64)
        m_row = (b_row >= 0) & (b_row < V)
        p_rows = p_table + b_row[:, None] * D + o_d[None, :]
        b = tl.load(p_rows, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
        if HAS_TYPES:
            b_rows_of = tl.load(p_type_counts + b_id, mask=m_type, other=1).to(tl.float32)
            b *= tl.where(m_row, 1.0 / tl.maximum(b_rows_of, 1.0), 0.0)[:, None]
        b_sum += b
        if SCALING == 2:
            if M > 1:  # a type without any row still counts as a word: its vector is zero
                b_count += (m_type & (o_i % M == 0)).to(tl.int32)
            else:
                b_count += m_row.to(tl.int32)
    b_out = tl.sum(b_sum, axis=0)
    if SCALING == 1:
        b_out *= tl.load(p_scales + i_b)
    if SCALING == 2:
        n = tl.sum(b_count, axis=0).to(tl.float32)
        scale = tl.where(n > 0.0, 1.0 / tl.maximum(n, 1.0), 0.0)
        b_out *= scale
        if tl.program_id(1) == 0:
            tl.store(p_scales + i_b, scale)
    tl.store(p_out + i_b * D + o_d, b_out.to(p_out.dtype.element_ty), mask=o_d < D)


def samples() -> Iterator[Sample]:
    """Yield variants that are launched."""
    forms = {
        "bags": {"HAS_STARTS": True, "HAS_TYPES": False, "M": 1, "SCALING": MEAN},
        "scaled bags": {"HAS_STARTS": True, "HAS_TYPES": False, "M": 1, "SCALING": GIVEN_SCALES},
        "types": {"HAS_STARTS": False, "HAS_TYPES": True, "M": 12, "SCALING": NO_SCALES},
        "bags of types": {"HAS_STARTS": True, "HAS_TYPES": True, "M": 12, "SCALING": MEAN},
    }
    sizes = (("fp32", 5), ("fp32", 64), ("fp32", 128), ("fp32", 300), ("bf16", 128), ("fp16", 768))
    for (dtype, D), (name, form) in product(sizes, forms.items()):
        chosen = blocks.choose_blocks(D, blocks.SHARED_COLUMNS)
        types = types_of(
            f"*{dtype} p_table p_out", "*i32 p_ids p_type_rows p_type_counts", "*i64 p_starts",
            "*fp32 p_scales", "i32 total V T",
        )  # fmt: skip
        variant = Variant(pool_kernel, {"D": D, **form, **chosen.constexprs}, chosen.options)
        yield Sample(f"{dtype} D={D} {name}", variant, types)

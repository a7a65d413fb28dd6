"""What a position of a batch stands for: its sort key, its bag and its weight (device functions).

A batch holds `total` ids of M entries each; M = 1 unless ids are types of M rows. Position i is entry i % M of the id
i // M. An id before the first bag or after the last one stands for no row, as does one outside the table: a batch may
lie in a buffer that is longer than it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def key_of(
    p_ids, p_starts, p_type_rows, o_i, n_positions, B, V, T,
    HAS_STARTS: tl.constexpr, HAS_TYPES: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Return the row of every position in o_i, (BLOCK,) int32; V, which sorts to the end, if there is none."""
    m_row = o_i < n_positions
    b_place = o_i // M
    if HAS_STARTS:
        m_row = m_row & (b_place >= tl.load(p_starts)) & (b_place < tl.load(p_starts + B))
    b_id = tl.load(p_ids + b_place, mask=m_row, other=-1)
    if HAS_TYPES:
        m_row = m_row & (b_id >= 0) & (b_id < T)
        b_id = tl.load(p_type_rows + b_id.to(tl.int64) * M + o_i % M, mask=m_row, other=-1)
    m_row = m_row & (b_id >= 0) & (b_id < V)
    return tl.where(m_row, b_id, V).to(tl.int32)


@triton.jit
def bag_of(p_starts, b_place, m_i, B, n_halvings):
    """Return the bag of every id at b_place, (BLOCK,) int32, by binary search: the last one not starting after it."""
    # The number of starts up to and including b_place is in [b_low, b_high].
    b_low = b_place.to(tl.int32) * 0
    b_high = b_low + (B + 1)
    for _ in range(n_halvings):
        m_open = m_i & (b_low < b_high)
        b_middle = b_low + (b_high - b_low) // 2
        m_right = tl.load(p_starts + b_middle, mask=m_open, other=0) <= b_place
        b_low = tl.where(m_open & m_right, b_middle + 1, b_low)
        b_high = tl.where(m_open & (m_right == 0), b_middle, b_high)
    return b_low - 1


@triton.jit
def place(
    p_keys, p_bags, p_weights, p_order, b_rank, b_key, o_i, m_i,
    p_ids, p_starts, p_type_counts, p_scales, B, V, n_halvings,
    HAS_STARTS: tl.constexpr, HAS_TYPES: tl.constexpr, M: tl.constexpr, HAS_SCALES: tl.constexpr,
    KEEP_ORDER: tl.constexpr,
):  # fmt: skip
    """Store what is known of the positions o_i at their sorted ranks: key, bag, weight, position."""
    tl.store(p_keys + b_rank, b_key, mask=m_i)
    if KEEP_ORDER:
        tl.store(p_order + b_rank, o_i.to(tl.int32), mask=m_i)
    m_row = m_i & (b_key < V)
    b_place = o_i // M
    b_bag = b_place.to(tl.int32)
    if HAS_STARTS:
        b_bag = bag_of(p_starts, b_place, m_row, B, n_halvings)
        m_row = m_row & (b_bag >= 0) & (b_bag < B)
    tl.store(p_bags + b_rank, tl.where(m_row, b_bag, -1), mask=m_i)
    if HAS_SCALES or HAS_TYPES:
        b_weight = m_row.to(tl.float32)
        if HAS_SCALES:
            b_weight = tl.load(p_scales + b_bag, mask=m_row, other=0.0)
        if HAS_TYPES:
            b_type = tl.load(p_ids + b_place, mask=m_row, other=0)
            b_weight = b_weight / tl.load(p_type_counts + b_type, mask=m_row, other=1).to(tl.float32)
        tl.store(p_weights + b_rank, b_weight, mask=m_i)

"""Sort positions of bags by row, in two launches of our own: rank within chunks, then across chunks.

For up to MOST_RANKED positions. torch.sort takes about ten launches for more than 4,096 keys and three below. Within a
chunk a key is compared with every other one, which is cheap while chunks are short. Its rank among all keys is the sum
of its ranks in every chunk, found by binary search; a program's keys are neighbours in their chunk, and so read the
same cache lines. Longer batches are sorted by torch, from `key_kernel`'s keys; `carry_kernel` fetches the rest. Equal
keys keep the order of their positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import triton
import triton.language as tl

from ...machine.launch import Sample, Variant, launch_options, types_of
from . import blocks
from .positions import key_of, place


@triton.jit(do_not_specialize=["n_positions", "B", "V", "T"])
def key_kernel(
    p_ids,  # (total,) int32
    p_starts,  # (B + 1,) int64
    p_type_rows,  # (T, M) int32
    p_keys,  # (n_positions,) int32
    n_positions,
    B,
    V,
    T,
    HAS_STARTS: tl.constexpr,
    HAS_TYPES: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the keys of BLOCK positions."""
    o_i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_key = key_of(p_ids, p_starts, p_type_rows, o_i, n_positions, B, V, T, HAS_STARTS, HAS_TYPES, M)
    tl.store(p_keys + o_i, b_key, mask=o_i < n_positions)


@triton.jit(do_not_specialize=["n_positions", "B", "V", "n_halvings"])
def carry_kernel(
    p_sorted_keys,  # (n_positions,) int32, ascending
    p_sorted_order,  # (n_positions,) int64: positions before sorting
    p_ids,
    p_starts,
    p_type_counts,  # (T,) int32
    p_scales,  # (B,) float32
    p_keys,  # (n_positions,) int32, the sorted keys from `key_kernel`
    p_bags,  # (n_positions,) int32
    p_weights,  # (n_positions,) float32
    n_positions,
    B,
    V,
    n_halvings,
    HAS_STARTS: tl.constexpr,
    HAS_TYPES: tl.constexpr,
    M: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK sorted positions."""
    o_rank = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_i = o_rank < n_positions
    b_key = tl.load(p_sorted_keys + o_rank, mask=m_i, other=0)
    b_i = tl.load(p_sorted_order + o_rank, mask=m_i, other=0)
    place(
        p_keys, p_bags, p_weights, p_bags, o_rank, b_key, b_i, m_i, p_ids, p_starts, p_type_counts, p_scales,
        B, V, n_halvings, HAS_STARTS, HAS_TYPES, M, HAS_SCALES, False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n_positions", "B", "V", "T", "n_halvings"])
def rank_kernel(
    p_ids,  # (total,) int32
    p_starts,  # (B + 1,) int64
    p_type_rows,  # (T, M) int32
    p_type_counts,  # (T,) int32
    p_scales,  # (B,) float32
    p_keys,  # (n_positions,) int32, ascending within each chunk
    p_order,  # (n_positions,) int32: the positions in that order
    p_bags,  # (n_positions,) int32, ONE_CHUNK
    p_weights,  # (n_positions,) float32, ONE_CHUNK
    n_positions,
    B,
    V,
    T,
    n_halvings,
    HAS_STARTS: tl.constexpr,
    HAS_TYPES: tl.constexpr,
    M: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,  # divides CHUNK
):
    """One program: rank BLOCK positions within their chunk."""
    i_first = tl.program_id(0) * BLOCK
    chunk = i_first // CHUNK * CHUNK
    o_i, o_j = i_first + tl.arange(0, BLOCK), chunk + tl.arange(0, CHUNK)
    m_i = o_i < n_positions
    b_key = key_of(p_ids, p_starts, p_type_rows, o_i, n_positions, B, V, T, HAS_STARTS, HAS_TYPES, M)
    # At once: a loop would wait for two dependent loads per iteration. Keys past the positions are V, so precede none.
    b_other = key_of(p_ids, p_starts, p_type_rows, o_j, n_positions, B, V, T, HAS_STARTS, HAS_TYPES, M)
    m_before = (b_other[None, :] == b_key[:, None]) & (o_j[None, :] < o_i[:, None])
    b_count = tl.sum(((b_other[None, :] < b_key[:, None]) | m_before).to(tl.int32), axis=1)
    b_rank = chunk + b_count
    if ONE_CHUNK:
        place(
            p_keys, p_bags, p_weights, p_order, b_rank, b_key, o_i, m_i, p_ids, p_starts, p_type_counts, p_scales,
            B, V, n_halvings, HAS_STARTS, HAS_TYPES, M, HAS_SCALES, True,
        )  # fmt: skip
    else:
        tl.store(p_keys + b_rank, b_key, mask=m_i)
        tl.store(p_order + b_rank, o_i, mask=m_i)


@triton.jit(do_not_specialize=["n_positions", "B", "V", "n_halvings"])
def merge_kernel(
    p_chunk_keys,  # (n_positions,) int32, ascending within each chunk
    p_chunk_order,  # (n_positions,) int32
    p_ids,
    p_starts,
    p_type_counts,
    p_scales,
    p_keys,  # (n_positions,) int32, ascending
    p_order,  # (n_positions,) int32
    p_bags,  # (n_positions,) int32
    p_weights,  # (n_positions,) float32
    n_positions,
    B,
    V,
    n_halvings,
    HAS_STARTS: tl.constexpr,
    HAS_TYPES: tl.constexpr,
    M: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNK_HALVINGS: tl.constexpr,
    BLOCK: tl.constexpr,  # divides CHUNK
    CHUNKS: tl.constexpr,  # searched at a time
):
    """One program: rank BLOCK neighbours of one sorted chunk among all positions."""
    i_first = tl.program_id(0) * BLOCK
    chunk = i_first // CHUNK
    o_c = i_first + tl.arange(0, BLOCK)
    m_i = o_c < n_positions
    b_key = tl.load(p_chunk_keys + o_c, mask=m_i, other=0)
    b_i = tl.load(p_chunk_order + o_c, mask=m_i, other=0)
    b_rank = o_c - chunk * CHUNK
    for first_chunk in range(0, tl.cdiv(n_positions, CHUNK), CHUNKS):
        o_chunk = first_chunk + tl.arange(0, CHUNKS)
        b_begin = o_chunk * CHUNK
        b_length = tl.maximum(tl.minimum(CHUNK, n_positions - b_begin), 0)
        # Positions of earlier chunks come before equal keys of this one.
        b_equal = (o_chunk < chunk)[None, :]
        b_low = tl.zeros((BLOCK, CHUNKS), tl.int32)
        b_high = b_low + tl.where(o_chunk == chunk, 0, b_length)[None, :]
        for _ in range(CHUNK_HALVINGS):
            m_open = b_low < b_high
            b_middle = (b_low + b_high) // 2
            b_other = tl.load(p_chunk_keys + b_begin[None, :] + b_middle, mask=m_open, other=0)
            m_less = (b_other < b_key[:, None]) | (b_equal & (b_other == b_key[:, None]))
            b_low = tl.where(m_open & m_less, b_middle + 1, b_low)
            b_high = tl.where(m_open & (m_less == 0), b_middle, b_high)
        b_rank += tl.sum(b_low, axis=1)
    place(
        p_keys, p_bags, p_weights, p_order, b_rank, b_key, b_i, m_i, p_ids, p_starts, p_type_counts, p_scales,
        B, V, n_halvings, HAS_STARTS, HAS_TYPES, M, HAS_SCALES, True,
    )  # fmt: skip


# Batches for which kernels are compiled ahead of time.
FORMS = {
    "positions": {"HAS_STARTS": False, "HAS_TYPES": False, "M": 1, "HAS_SCALES": False},
    "bags": {"HAS_STARTS": True, "HAS_TYPES": False, "M": 1, "HAS_SCALES": True},
    "types": {"HAS_STARTS": False, "HAS_TYPES": True, "M": 12, "HAS_SCALES": False},
    "bags of types": {"HAS_STARTS": True, "HAS_TYPES": True, "M": 12, "HAS_SCALES": True},
}


def samples() -> Iterator[Sample]:
    """Yield variants that are launched."""
    types = types_of(
        "*i32 p_ids p_type_rows p_type_counts p_keys p_order p_bags p_sorted_keys p_chunk_keys p_chunk_order",
        "*i64 p_starts p_sorted_order", "*fp32 p_scales p_weights", "i32 n_positions B V T n_halvings",
    )  # fmt: skip
    kernels = (
        (key_kernel, blocks.POSITIONS),
        (carry_kernel, blocks.POSITIONS),
        (rank_kernel, {"ONE_CHUNK": True, **blocks.rank_blocks()}),
        (rank_kernel, {"ONE_CHUNK": False, **blocks.rank_blocks()}),
        (merge_kernel, blocks.merge_blocks()),
    )
    for (name, form), (kernel, own) in product(FORMS.items(), kernels):
        wanted = {key: value for key, value in form.items() if key in kernel.arg_names}
        variant = Variant(kernel, {**wanted, **own}, launch_options(blocks.WARPS))
        yield Sample(name, variant, {arg: types[arg] for arg in kernel.arg_names if arg in types})

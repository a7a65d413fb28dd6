"""Bags of table rows on a GPU: gather and sum, gradients by unique row, and row-sparse optimizer steps.

A batch of B bags is given as ids (total,) and starts (B + 1,). Forward, with scales 1 or 1/count:

    out[b] = scale[b] * sum over the positions i of bag b of table[ids[i]]

Backward, every row u of the batch once:

    gradient[u] = sum over the positions i with ids[i] = u of scale[bag(i)] * d_out[bag(i)]

If ids are word types, each stands for M positions, the rows of its type, with weight 1 over their number.

A stable sort by row brings a row's positions together: its *segment* (see ordering.py). Sums are float32 in an order
that depends only on the batch, without atomics, so two calls give the same bits. A sum runs over ROWS lanes, each of
which adds a few terms; the lanes are added up last. Segments of frequent rows are cut at multiples of PIECE sorted
positions: one kernel sums the pieces that lie entirely in one segment, and consumers of the segment add those sums in
order. So no program sums more than two pieces' worth of gradients, however frequent a row is.

An id that is not in [0, V) stands for no row and touches no memory, nor does a position outside every bag.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from ...machine.launch import Sample, Variant, types_of
from . import blocks

SEGMENT_TYPES = types_of("*i32 p_bags", "*fp32 p_weights p_pieces")


@triton.jit
def _add_rows(
    b_sum,
    p_source,
    p_rows,
    p_weights,
    first,
    last,
    n_source,
    o_d,
    D,
    HAS_WEIGHTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Add weights[i] * source[rows[i]] for i in [first, last) to lane i % ROWS of b_sum (ROWS, BLOCK_D)."""
    for o_first in range(first, last, ROWS):
        o_i = o_first + tl.arange(0, ROWS)
        b_row = tl.load(p_rows + o_i, mask=o_i < last, other=-1).to(tl.int64)
        m_row = (b_row >= 0) & (b_row < n_source)
        p_values = p_source + b_row[:, None] * D + o_d[None, :]
        b = tl.load(p_values, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0).to(tl.float32)
        if HAS_WEIGHTS:
            b *= tl.load(p_weights + o_i, mask=m_row, other=0.0)[:, None]
        b_sum += b
    return b_sum


@triton.jit
def segment_end(p_keys, first, key, n_positions, SCAN: tl.constexpr):
    """Return the end of the segment that starts at `first`.

    Searches nearby first, as most rows occur only a few times.
    """
    o_i = first + tl.arange(0, SCAN)
    m_same = tl.load(p_keys + o_i, mask=o_i < n_positions, other=-1) == key
    low = first + tl.sum(m_same.to(tl.int64), axis=0)
    if low == first + SCAN:
        high = tl.zeros((), tl.int64) + n_positions
        while low < high:
            middle = low + (high - low) // 2
            is_same = tl.load(p_keys + middle) == key
            low, high = tl.where(is_same, middle + 1, low), tl.where(is_same, high, middle)
    return low


@triton.jit
def sum_segment(
    p_d_out, p_bags, p_weights, p_pieces, first, last, B, o_d, D,
    HAS_WEIGHTS: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return the columns o_d of the gradient of one row, (BLOCK_D,): the sorted positions [first, last)."""
    first_piece, last_piece = tl.cdiv(first, PIECE), last // PIECE
    head = tl.minimum(first_piece * PIECE, last)
    tail = tl.maximum(last_piece * PIECE, head)
    b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
    b_sum = _add_rows(b_sum, p_d_out, p_bags, p_weights, first, head, B, o_d, D, HAS_WEIGHTS, ROWS)
    for o_first in range(first_piece, last_piece, ROWS):
        o_p = (o_first + tl.arange(0, ROWS)).to(tl.int64)
        p_piece = p_pieces + o_p[:, None] * D + o_d[None, :]
        b_sum += tl.load(p_piece, mask=(o_p < last_piece)[:, None] & (o_d < D)[None, :], other=0.0)
    b_sum = _add_rows(b_sum, p_d_out, p_bags, p_weights, tail, last, B, o_d, D, HAS_WEIGHTS, ROWS)
    return tl.sum(b_sum, axis=0)


# D is constant for a model: specializing on it lets the compiler widen accesses and drop masks. Batch sizes vary, so
# they stay unspecialized.
@triton.jit(do_not_specialize=["B", "V"])
def piece_kernel(
    p_d_out,  # (B, D)
    p_keys,  # (n_positions,) int32, ascending
    p_bags,  # (n_positions,) int32, in the order of the keys
    p_weights,  # (n_positions,) float32, in the order of the keys
    p_pieces,  # (n_positions // PIECE, D) float32; only pieces within one segment are written
    p_steps,  # () float32, to which 1 is added, COUNTS: a launch less before the rows are updated
    B,
    V,
    D: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    COUNTS: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D columns of the sum of one piece, if it lies in one segment."""
    i_p = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    if COUNTS:
        m_first = (tl.program_id(0) == 0) & (tl.program_id(1) == 0)
        tl.store(p_steps, tl.load(p_steps, mask=m_first, other=0.0) + 1.0, mask=m_first)
    first = i_p * PIECE
    key = tl.load(p_keys + first)
    if (key < V) & (key == tl.load(p_keys + first + (PIECE - 1))):
        b_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
        b_sum = _add_rows(
            b_sum, p_d_out, p_bags, p_weights, first, first + PIECE, B, o_d, D, HAS_WEIGHTS, ROWS
        )
        tl.store(p_pieces + i_p * D + o_d, tl.sum(b_sum, axis=0), mask=o_d < D)


@triton.jit(do_not_specialize=["B"])
def row_gradient_kernel(
    p_d_out,  # (B, D)
    p_begins,  # (U + 1,) int64
    p_bags,  # (n_positions,) int32, in the order of the keys
    p_weights,  # (n_positions,) float32, in the order of the keys
    p_pieces,  # (n_positions // PIECE, D) float32
    p_gradient,  # (U, D)
    B,
    D: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D columns of the gradient of one row."""
    i_u = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b_g = sum_segment(
        p_d_out, p_bags, p_weights, p_pieces, tl.load(p_begins + i_u), tl.load(p_begins + i_u + 1), B, o_d, D,
        HAS_WEIGHTS, PIECE, ROWS, BLOCK_D,
    )  # fmt: skip
    tl.store(p_gradient + i_u * D + o_d, b_g.to(p_gradient.dtype.element_ty), mask=o_d < D)


@triton.jit(do_not_specialize=["n_positions", "B", "V"])
def dense_gradient_kernel(
    p_d_out,  # (B, D)
    p_keys,  # (n_positions,) int32, ascending
    p_bags,  # (n_positions,) int32, in the order of the keys
    p_weights,  # (n_positions,) float32, in the order of the keys
    p_pieces,  # (n_positions // PIECE, D) float32
    p_gradient,  # (V, D), zeros
    n_positions,
    B,
    V,
    D: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    PIECE: tl.constexpr,
    SCAN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: BLOCK_D columns of the gradient of one row, if its segment begins at this position."""
    first = tl.program_id(0).to(tl.int64)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    key = tl.load(p_keys + first)
    before = tl.load(p_keys + first - 1, mask=first > 0, other=-1)
    if (key < V) & (key != before):
        last = segment_end(p_keys, first, key, n_positions, SCAN)
        b_g = sum_segment(
            p_d_out, p_bags, p_weights, p_pieces, first, last, B, o_d, D, HAS_WEIGHTS, PIECE, ROWS, BLOCK_D
        )
        p_row = p_gradient + key.to(tl.int64) * D + o_d
        tl.store(p_row, b_g.to(p_gradient.dtype.element_ty), mask=o_d < D)


def samples_for(family: str) -> Iterator[Sample]:
    """Yield variants that are launched on a family of GPUs."""
    for dtype, D in (("fp32", 5), ("fp32", 128), ("fp32", 300), ("bf16", 128), ("fp16", 768)):
        chosen = blocks.choose_blocks(D, blocks.SHARED_COLUMNS)
        constexprs = {"D": D, "HAS_WEIGHTS": True, "PIECE": blocks.PIECE, **chosen.constexprs}
        types = SEGMENT_TYPES | types_of(f"*{dtype} p_d_out p_gradient", "i32 B")
        keys = types_of("*i32 p_keys", "i32 V")
        for kernel, own, more in (
            (piece_kernel, {"COUNTS": True}, keys | types_of("*fp32 p_steps")),
            (row_gradient_kernel, {}, types_of("*i64 p_begins")),
            (dense_gradient_kernel, {"SCAN": blocks.SCAN}, keys | types_of("i32 n_positions")),
        ):
            options = chosen.roomy(family) if kernel is piece_kernel else chosen.options
            variant = Variant(kernel, {**constexprs, **own}, options)
            yield Sample(f"{dtype} D={D}", variant, types | more)

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

from itertools import product
from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...machine.launch import launch_options
from ..rules import ADAGRAD as _ADAGRAD
from ..rules import ADAM as _ADAM
from ..rules import SGD as _SGD

SGD: tl.constexpr = tl.constexpr(_SGD)
ADAGRAD: tl.constexpr = tl.constexpr(_ADAGRAD)
ADAM: tl.constexpr = tl.constexpr(_ADAM)


# --- sums of rows ----------------------------------------------------------------------------------------


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
def _sum_segment(
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


# --- segments --------------------------------------------------------------------------------------------


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
    b_g = _sum_segment(
        p_d_out, p_bags, p_scales, p_pieces, tl.load(p_begins + i_u), tl.load(p_begins + i_u + 1), B, o_d, D,
        HAS_SCALES, PIECE, ROWS, BLOCK_D,
    )  # fmt: skip
    tl.store(p_gradient + i_u * D + o_d, b_g.to(p_gradient.dtype.element_ty), mask=o_d < D)


# --- the rows' optimizers --------------------------------------------------------------------------------


@triton.jit
def _gradient(
    p_gradient, p_begins, p_bags, p_scales, p_pieces, i_u, B, o_d, D,
    FROM_BAGS: tl.constexpr, HAS_SCALES: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(BLOCK_D,) float32, the columns o_d of the gradient of row u; 0 past D."""
    if FROM_BAGS:
        b_g = _sum_segment(
            p_gradient, p_bags, p_scales, p_pieces, tl.load(p_begins + i_u), tl.load(p_begins + i_u + 1), B, o_d, D,
            HAS_SCALES, PIECE, ROWS, BLOCK_D,
        )  # fmt: skip
    else:
        b_g = tl.load(p_gradient + i_u * D + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    return b_g


@triton.jit
def _move(p_w, p_m, p_v, b_g, o_d, D, step, rms_scale, eps, beta1, beta2, rest1, rest2, KIND: tl.constexpr):
    """The columns o_d of one row by their gradient: w -= step * g, or Adam; pointers are at the row."""
    m_d = o_d < D
    b_w = tl.load(p_w + o_d, mask=m_d, other=0.0).to(tl.float32)
    if KIND == ADAM:
        b_m = tl.load(p_m + o_d, mask=m_d, other=0.0)
        b_v = tl.load(p_v + o_d, mask=m_d, other=0.0)
    # Threads may hold the same element, and any number of them the row's own: all have read before one writes.
    tl.debug_barrier()
    if KIND == ADAM:
        b_m = beta1 * b_m + rest1 * b_g
        b_v = beta2 * b_v + rest2 * b_g * b_g
        tl.store(p_m + o_d, b_m, mask=m_d)
        tl.store(p_v + o_d, b_v, mask=m_d)
        b_w -= step * b_m / (tl.sqrt(b_v) * rms_scale + eps)
    else:
        b_w -= step * b_g
    tl.store(p_w + o_d, b_w.to(p_w.dtype.element_ty), mask=m_d)


@triton.jit(do_not_specialize=["n_rows", "B", "V"])
def update_kernel(
    p_table,  # (V, D)
    p_per_row,  # (V,) float32: Adagrad's sums, Adam's steps
    p_first,  # (V, D) float32: Adam's m
    p_second,  # (V, D) float32: Adam's v
    p_rows,  # (U,) integers, each there once
    p_gradient,  # FROM_BAGS: (B, D) of the bags; else (U, D) of the rows
    p_count,  # (1,) int32: U, FROM_BAGS
    p_begins,  # (U + 1,) int64, FROM_BAGS
    p_bags,  # (total,) int32 in the order of the keys, FROM_BAGS
    p_scales,  # (B,) float32
    p_pieces,  # (total // PIECE, D) float32, FROM_BAGS
    n_rows,  # U, not FROM_BAGS
    B,
    V,
    lr,
    eps,
    beta1,
    beta2,
    rest1,  # 1 - beta1, and 1 - beta2: float32 would lose their digits
    rest2,
    log1,  # log(beta1)
    log2,
    D: tl.constexpr,
    KIND: tl.constexpr,
    FROM_BAGS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    PIECE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: every num_programs-th row from its own on, its columns BLOCK_D at a time."""
    if FROM_BAGS:
        n_rows = tl.load(p_count)
    for i in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        i_u = tl.zeros((), tl.int64) + i
        row = tl.load(p_rows + i_u).to(tl.int64)
        if (row >= 0) & (row < V):
            o_d = tl.arange(0, BLOCK_D)
            b_g = _gradient(
                p_gradient, p_begins, p_bags, p_scales, p_pieces, i_u, B, o_d, D,
                FROM_BAGS, HAS_SCALES, PIECE, ROWS, BLOCK_D,
            )  # fmt: skip
            step = lr
            rms_scale = 1.0
            remembered = 0.0
            if KIND == ADAGRAD:
                square = tl.sum(b_g * b_g, axis=0)
                for o_first in range(BLOCK_D, D, BLOCK_D):
                    b_more = _gradient(
                        p_gradient, p_begins, p_bags, p_scales, p_pieces, i_u, B, o_first + o_d, D,
                        FROM_BAGS, HAS_SCALES, PIECE, ROWS, BLOCK_D,
                    )  # fmt: skip
                    square += tl.sum(b_more * b_more, axis=0)
                remembered = tl.load(p_per_row + row) + square / D
                step = lr / (tl.sqrt(remembered) + eps)
            if KIND == ADAM:
                # A row's own steps: a rare row's first step is a first step. beta^n of a young row is close to 1.
                remembered = tl.load(p_per_row + row) + 1.0
                n = remembered.to(tl.float64)
                step = lr / (1.0 - tl.exp(n * log1)).to(tl.float32)
                rms_scale = 1.0 / tl.sqrt((1.0 - tl.exp(n * log2)).to(tl.float32))
            p_w, p_m, p_v = p_table + row * D, p_first + row * D, p_second + row * D
            _move(p_w, p_m, p_v, b_g, o_d, D, step, rms_scale, eps, beta1, beta2, rest1, rest2, KIND)
            for o_first in range(BLOCK_D, D, BLOCK_D):
                b_g = _gradient(
                    p_gradient, p_begins, p_bags, p_scales, p_pieces, i_u, B, o_first + o_d, D,
                    FROM_BAGS, HAS_SCALES, PIECE, ROWS, BLOCK_D,
                )  # fmt: skip
                _move(
                    p_w,
                    p_m,
                    p_v,
                    b_g,
                    o_first + o_d,
                    D,
                    step,
                    rms_scale,
                    eps,
                    beta1,
                    beta2,
                    rest1,
                    rest2,
                    KIND,
                )
            if KIND != SGD:
                tl.store(p_per_row + row, remembered)


# --- sizes of blocks -------------------------------------------------------------------------------------


class Blocks(NamedTuple):
    """Columns of a program, rows that it gathers at a time, and its warps."""

    columns: int
    rows: int
    warps: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told. Left alone, ptxas spills a few scalars to win another block of 8 warps."""
        return launch_options(self.warps, LIMITED_REGISTERS if self.warps == 8 else None)

    @property
    def constexprs(self) -> dict[str, int]:
        """The compile-time arguments of a kernel that sums rows."""
        return {"BLOCK_D": self.columns, "ROWS": self.rows}


# Columns of a program that needs not see a whole row: of longer rows, more programs share the work.
SHARED_COLUMNS = 256
# Columns that a program with a whole row holds at a time: 8 warps, as many as hide each other's waiting.
WHOLE_COLUMNS = 1024
# Sorted positions of a piece. A program adds fewer than two pieces itself; the sums of pieces are written and read
# again, 1/128 of what is gathered.
PIECE = 128
POSITIONS = {"BLOCK": 1024}
SCALE_BLOCKS = {"BLOCK_B": 32, "BLOCK_L": 32}
WARPS = 4
LIMITED_REGISTERS = 80  # a thread


def choose_blocks(D: int, most: int) -> Blocks:
    """Blocks of at most `most` columns for rows of D.

    A table, not an autotuner: that needs a driver to choose and stalls inside a graph capture. A thread holds 16 sums,
    4 columns side by side (16 bytes an access in float32) of 4 rows: 4 accesses are under way at once, and twice as
    many would take the registers of half the warps, where most rows and bags are short and would leave them masked.
    Up to 128 columns one warp does it, which never waits for another; narrow rows come more at a time to keep its
    threads busy.
    """
    columns = min(most, max(16, triton.next_power_of_2(D)))
    return Blocks(columns, max(4, min(32, 512 // columns)), max(1, columns // 128))


def _variants() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What triton_embedding launches: (name, kernel, signature, constexprs, options) for each variant."""
    variants: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, int]]] = []

    def add(
        name: str,
        kernel: Any,
        pointers: dict[str, str],
        integers: str,
        constexprs: Any,
        options: dict[str, int],
    ) -> None:
        signature = {**pointers, **dict.fromkeys(integers.split(), "i32")}
        variants.append((name, kernel, signature, constexprs, options))

    batch = {"p_ids": "*i32", "p_starts": "*i64"}
    segments = {"p_begins": "*i64", "p_bags": "*i32", "p_scales": "*fp32", "p_pieces": "*fp32"}
    for dtype, D in (("fp32", 5), ("fp32", 128), ("fp32", 300), ("bf16", 128), ("fp16", 768)):
        blocks = choose_blocks(D, SHARED_COLUMNS)
        constexprs = {"D": D, "HAS_SCALES": True, **blocks.constexprs}
        pointers = {"p_table": f"*{dtype}", **batch, "p_scales": "*fp32", "p_out": f"*{dtype}"}
        name = f"{dtype} D={D}"
        add(name, pool_kernel, pointers, "total V", constexprs, blocks.options)
        constexprs = {**constexprs, "PIECE": PIECE}
        pointers = {"p_d_out": f"*{dtype}", "p_keys": "*i32", **segments}
        add(name, piece_kernel, pointers, "B V", constexprs, blocks.options)
        pointers = {"p_d_out": f"*{dtype}", **segments, "p_gradient": f"*{dtype}"}
        add(name, row_gradient_kernel, pointers, "B", constexprs, blocks.options)
    pointers = {**batch, "p_scales": "*fp32"}
    add("scales of means", mean_scale_kernel, pointers, "B total V", SCALE_BLOCKS, launch_options(WARPS))
    for has_starts in (True, False):
        pointers = {**batch, "p_keys": "*i32", "p_bags": "*i32"}
        name = "positions of bags" if has_starts else "positions"
        constexprs = {"HAS_STARTS": has_starts, **POSITIONS}
        add(name, key_kernel, pointers, "B total V n_halvings", constexprs, launch_options(WARPS))
        pointers = {
            **dict.fromkeys(("p_keys", "p_later", "p_bags", "p_rows", "p_count"), "*i32"),
            **dict.fromkeys(("p_sorted_bags", "p_inverse"), "*i32"),
            **dict.fromkeys(("p_order", "p_begins"), "*i64"),
        }
        name = "segments" if has_starts else "segments, inverse"
        constexprs = {"NEED_INVERSE": not has_starts, **POSITIONS}
        add(name, segment_kernel, pointers, "total V", constexprs, launch_options(WARPS))
    rates = dict.fromkeys(("lr", "eps", "beta1", "beta2", "rest1", "rest2", "log1", "log2"), "fp32")
    from_bags = [("fp32", 37), ("fp32", 128), ("bf16", 128), ("fp32", 1024), ("bf16", 1500)]
    from_rows = [("fp16", 128), ("fp32", 1024)]
    for sizes, is_from_bags in ((from_bags, True), (from_rows, False)):
        for (dtype, D), (kind, rule) in product(
            sizes, ((_SGD, "SGD"), (_ADAGRAD, "Adagrad"), (_ADAM, "Adam"))
        ):
            blocks = choose_blocks(D, WHOLE_COLUMNS)
            pointers = {
                **dict.fromkeys(("p_table", "p_gradient"), f"*{dtype}"),
                **dict.fromkeys(("p_per_row", "p_first", "p_second"), "*fp32"),
                "p_rows": "*i32" if is_from_bags else "*i64",
                "p_count": "*i32",
                **segments,
                **rates,
            }
            constexprs = {"D": D, "KIND": kind, "FROM_BAGS": is_from_bags, "HAS_SCALES": is_from_bags}
            constexprs |= {"PIECE": PIECE, **blocks.constexprs}
            name = f"{dtype} D={D} {rule} from {'bags' if is_from_bags else 'rows'}"
            add(name, update_kernel, pointers, "n_rows B V", constexprs, blocks.options)
    return variants


VARIANTS = _variants()

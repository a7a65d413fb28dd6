"""Row-sparse optimizer steps on a GPU: every touched row once, by any of the rules (see sums.py for segments)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import triton
import triton.language as tl

from ...machine.launch import Sample, Variant, types_of
from ..rules import MOST_NUMBERS, RULES
from . import blocks
from .rules import functions_of
from .sums import SEGMENT_TYPES, segment_end, sum_segment

NUMBERS = tuple(f"number{i}" for i in range(MOST_NUMBERS))


@triton.jit
def _gradient(
    p_gradient, p_bags, p_weights, p_pieces, i_u, last, B, o_d, D,
    FROM_BAGS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, PIECE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Columns o_d of the gradient of row u, or of the segment [u, last): (BLOCK_D,) float32; 0 past D."""
    if FROM_BAGS:
        b_g = sum_segment(
            p_gradient, p_bags, p_weights, p_pieces, i_u, last, B, o_d, D, HAS_WEIGHTS, PIECE, ROWS, BLOCK_D
        )
    else:
        b_g = tl.load(p_gradient + i_u * D + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    return b_g


@triton.jit
def _move(p_w, p_m, p_v, b_g, o_d, D, step, scale, numbers, MOVE: tl.constexpr, TABLES: tl.constexpr):
    """Update the columns o_d of one row, and of its TABLES tables, by the row's gradient; pointers are at the row."""
    m_d = o_d < D
    b_w = tl.load(p_w + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_m, b_v = b_g, b_g
    if TABLES > 0:
        b_m = tl.load(p_m + o_d, mask=m_d, other=0.0)
    if TABLES > 1:
        b_v = tl.load(p_v + o_d, mask=m_d, other=0.0)
    # Several threads may hold the same element, and all may read the row's number: all must read before one writes.
    tl.debug_barrier()
    b_w, b_m, b_v = MOVE(b_w, b_g, b_m, b_v, step, scale, numbers)
    if TABLES > 0:
        tl.store(p_m + o_d, b_m, mask=m_d)
    if TABLES > 1:
        tl.store(p_v + o_d, b_v, mask=m_d)
    tl.store(p_w + o_d, b_w.to(p_w.dtype.element_ty), mask=m_d)


@triton.jit(do_not_specialize=["n_rows", "B", "V"])
def update_kernel(
    p_table,  # (V, D)
    p_per_row,  # (V,) float32: the rule's number per row
    p_first,  # (V, D) float32: the rule's tables
    p_second,  # (V, D) float32
    p_rows,  # FROM_BAGS: (n_rows,) int32, the sorted keys of positions; else (U,) integers, all distinct
    p_gradient,  # FROM_BAGS: (B, D) for the bags; else (U, D) for the rows
    p_bags,  # (n_rows,) int32 in the order of the keys, FROM_BAGS
    p_weights,  # (n_rows,) float32 in the order of the keys
    p_pieces,  # (n_rows // PIECE, D) float32, FROM_BAGS
    n_rows,  # U; FROM_BAGS: the number of positions
    B,
    V,
    lr,  # a number; RATE_ON_DEVICE: () float32
    table_steps,  # a number; STEPS_ON_DEVICE: () float32
    number0,  # the rule's numbers, 0 if it has fewer
    number1,
    number2,
    number3,
    number4,
    number5,
    number6,
    D: tl.constexpr,
    ROW: tl.constexpr,  # the rule's functions
    MOVE: tl.constexpr,
    USES_MEAN_SQUARE: tl.constexpr,
    PER_ROW: tl.constexpr,  # whether it keeps a number per row
    TABLES: tl.constexpr,  # how many tables it keeps
    RATE_ON_DEVICE: tl.constexpr,
    STEPS_ON_DEVICE: tl.constexpr,
    FROM_BAGS: tl.constexpr,
    ALL_ROWS: tl.constexpr,  # row u is row u of the table; p_rows is not read
    HAS_WEIGHTS: tl.constexpr,
    PIECE: tl.constexpr,
    SCAN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program: every num_programs-th row or position, starting from its own; columns BLOCK_D at a time.

    From bags, the program that has a row's first position updates the row, as the number of rows is not known.
    """
    numbers = (number0, number1, number2, number3, number4, number5, number6)
    rate = lr
    if RATE_ON_DEVICE:
        rate = tl.load(lr)
    steps = table_steps
    if STEPS_ON_DEVICE:
        steps = tl.load(table_steps)
    for i in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        i_u = tl.zeros((), tl.int64) + i
        row = i_u
        if not ALL_ROWS:
            row = tl.load(p_rows + i_u).to(tl.int64)
        is_due = (row >= 0) & (row < V)
        if FROM_BAGS:
            is_due = is_due & (row != tl.load(p_rows + i_u - 1, mask=i_u > 0, other=-1).to(tl.int64))
        if is_due:
            last = i_u
            if FROM_BAGS:
                last = segment_end(p_rows, i_u, row, n_rows, SCAN)
            o_d = tl.arange(0, BLOCK_D)
            b_g = _gradient(
                p_gradient, p_bags, p_weights, p_pieces, i_u, last, B, o_d, D,
                FROM_BAGS, HAS_WEIGHTS, PIECE, ROWS, BLOCK_D,
            )  # fmt: skip
            mean_square = 0.0
            if USES_MEAN_SQUARE:
                square = tl.sum(b_g * b_g, axis=0)
                for o_first in range(BLOCK_D, D, BLOCK_D):
                    b_more = _gradient(
                        p_gradient, p_bags, p_weights, p_pieces, i_u, last, B, o_first + o_d, D,
                        FROM_BAGS, HAS_WEIGHTS, PIECE, ROWS, BLOCK_D,
                    )  # fmt: skip
                    square += tl.sum(b_more * b_more, axis=0)
                mean_square = square / D
            remembered = 0.0
            if PER_ROW:
                remembered = tl.load(p_per_row + row)
            step, scale, remembered = ROW(rate, steps, numbers, mean_square, remembered)
            p_w, p_m, p_v = p_table + row * D, p_first + row * D, p_second + row * D
            _move(p_w, p_m, p_v, b_g, o_d, D, step, scale, numbers, MOVE, TABLES)
            for o_first in range(BLOCK_D, D, BLOCK_D):
                b_g = _gradient(
                    p_gradient, p_bags, p_weights, p_pieces, i_u, last, B, o_first + o_d, D,
                    FROM_BAGS, HAS_WEIGHTS, PIECE, ROWS, BLOCK_D,
                )  # fmt: skip
                _move(p_w, p_m, p_v, b_g, o_first + o_d, D, step, scale, numbers, MOVE, TABLES)
            if PER_ROW:
                tl.store(p_per_row + row, remembered)


def samples_for(family: str) -> Iterator[Sample]:
    """Yield variants that are launched on a family of GPUs."""
    fp32 = (37, 128, 200, 300, 1024)  # one, two, four and eight warps
    from_bags = [*(("fp32", D) for D in fp32), ("bf16", 128), ("bf16", 1500)]
    ways = [
        *((sizes, "bags") for sizes in from_bags),
        *product((("fp16", 128), ("fp32", 1024)), ("rows", "all rows")),
    ]
    for ((dtype, D), source), kind in product(ways, RULES.values()):
        is_from_bags, chosen = source == "bags", blocks.choose_blocks(D, blocks.WHOLE_COLUMNS)
        for rate_on_device, steps_on_device in product(
            (False, True)[: 1 + is_from_bags], (False, True)[: 1 + kind.uses_table_steps]
        ):
            types = SEGMENT_TYPES | types_of(
                f"*{dtype} p_table p_gradient", "*fp32 p_per_row p_first p_second",
                f"{'*i32' if is_from_bags else '*i64'} p_rows", f"{'*' * rate_on_device}fp32 lr",
                f"{'*' * steps_on_device}fp32 table_steps", f"fp32 {' '.join(NUMBERS)}", "i32 n_rows B V",
            )  # fmt: skip
            constexprs = {
                "D": D, "RATE_ON_DEVICE": rate_on_device, "STEPS_ON_DEVICE": steps_on_device,
                "FROM_BAGS": is_from_bags, "ALL_ROWS": source == "all rows", "HAS_WEIGHTS": is_from_bags,
                "PIECE": blocks.PIECE, "SCAN": blocks.SCAN, **chosen.constexprs, **functions_of(kind).constexprs,
            }  # fmt: skip
            told = ", rate on device" * rate_on_device + ", steps on device" * steps_on_device
            variant = Variant(update_kernel, constexprs, chosen.roomy(family))
            yield Sample(f"{dtype} D={D} {kind.name} from {source}{told}", variant, types)

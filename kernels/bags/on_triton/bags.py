"""Bags of table rows on a GPU: `BagKernels` over the Triton kernels.

Nothing waits for the device but what its result is made of: `row_gradient`, `sum_repeated` and `unique_ids`, whose
results are as long as the batch has unique rows, and `is_ascending` and `first_outside`, which answer in Python. A step
by `update_from_bags` does not wait and no size in it depends on data: a CUDA graph can capture it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...machine.launch import on_device_of
from ..batch import Bags
from ..reference import first_outside as first_outside
from ..reference import is_ascending as is_ascending
from ..rules import MOST_NUMBERS, RowRule, RowState
from . import blocks as sizes
from . import segments, sums, updates
from .rules import functions_of

# One-warp programs that a multiprocessor holds at a time; more rows than that wait for their turn in a loop.
PROGRAMS_PER_MULTIPROCESSOR = 32
# Programs where there is no GPU to ask: the interpreter.
INTERPRETED_PROGRAMS = 3


def mean_scales(ids: Tensor, starts: Tensor, V: int) -> Tensor:
    """(B,) 1 over the ids of every bag that are in [0, V), 0 for a bag without any."""
    B = len(starts) - 1
    scales = torch.empty(B, dtype=torch.float32, device=ids.device)
    if B:
        with on_device_of(ids):
            sums.mean_scale_kernel[(triton.cdiv(B, sizes.SCALE_BLOCKS["BLOCK_B"]),)](
                ids, starts, scales, B, len(ids), V, **sizes.SCALE_BLOCKS, num_warps=sizes.WARPS
            )
    return scales


def unique_ids(ids: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """(unique (U,) ascending, inverse (total,)): unique[inverse] are the ids; NONE stays NONE, as does an id >= V."""
    if not len(ids):
        return ids.clone(), ids.clone()
    found = _segments(ids, None, V, need_inverse=True)
    return found.rows[: int(found.n_rows)], found.inverse


def pool(table: Tensor, bags: Bags) -> Tensor:
    """(B, D) the sum of every bag's rows, times its scale, in the table's dtype."""
    ids, starts, scales = bags
    (V, D), B = table.shape, len(starts) - 1
    out = table.new_empty(B, D)
    blocks = sizes.choose_blocks(D, sizes.SHARED_COLUMNS)
    if out.numel():
        with on_device_of(table):
            sums.pool_kernel[(B, triton.cdiv(D, blocks.columns))](
                table, ids, starts, starts if scales is None else scales, out, len(ids), V,
                D=D, HAS_SCALES=scales is not None, **blocks.constexprs, **blocks.options,
            )  # fmt: skip
    return out


def row_gradient(gradient: Tensor, bags: Bags, V: int) -> tuple[Tensor, Tensor]:
    """(rows (U,) int64 ascending, their gradients (U, D)) from the gradient of the bags (B, D)."""
    return _row_gradient(gradient, *bags, V)


def sum_repeated(rows: Tensor, gradient: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """(rows ascending, gradients) with the gradients of equal rows added up; rows (M,), gradient (M, D)."""
    return _row_gradient(gradient, rows.to(torch.int32), None, None, V)


def _row_gradient(
    gradient: Tensor, ids: Tensor, starts: Tensor | None, scales: Tensor | None, V: int
) -> tuple[Tensor, Tensor]:
    if not len(ids):
        return ids.long(), gradient.new_empty(0, gradient.shape[1])
    found = _segments(ids, starts, V)
    pieces = _pieces(found.keys, found.bags, gradient, scales, V)
    # The one wait: the results are this long.
    U = int(found.n_rows)
    return found.rows[:U].long(), _sum_segments(gradient, found.begins, found.bags, scales, pieces, U)


def sum_by_row(gradient: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """(n_rows, D): row u is the sum of gradient[i] (M, D) over the i with rows[i] = u (M,) int32; never waits."""
    (M, D), device = gradient.shape, gradient.device
    if not M or not D:
        return gradient.new_zeros(n_rows, D)
    keys, order, _ = _sorted_keys(rows, None, n_rows)
    positions = order.to(torch.int32)
    begins = torch.searchsorted(keys, torch.arange(n_rows + 1, dtype=torch.int32, device=device))
    pieces = _pieces(keys, positions, gradient, None, n_rows)
    return _sum_segments(gradient, begins, positions, None, pieces, n_rows)


def update_rows(rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState) -> None:
    """One step of the rows (U,), each there once, by their gradients (U, D)."""
    if gradient.numel():
        _update(rule, table, rows, gradient, state, None, None, None)


def update_from_bags(rule: RowRule, table: Tensor, bags: Bags, gradient: Tensor, state: RowState) -> None:
    """One step of every row in the bags by the gradient of the bags (B, D): row_gradient and update_rows in one.

    The gradient of a row is not rounded to the table's dtype in between.
    """
    if len(bags.ids) and gradient.numel():
        found = _segments(bags.ids, bags.starts, len(table))
        pieces = _pieces(found.keys, found.bags, gradient, bags.scales, len(table))
        _update(rule, table, found.rows, gradient, state, found, bags.scales, pieces)


def _update(
    rule: RowRule,
    table: Tensor,
    rows: Tensor,
    gradient: Tensor,
    state: RowState,
    found: _Segments | None,
    scales: Tensor | None,
    pieces: Tensor | None,
) -> None:
    """Step the rows by their gradients (U, D), or by those of the bags (B, D) that `found` says."""
    if not table.is_contiguous():
        raise ValueError(
            f"a table whose rows are stepped must be contiguous, not of strides {table.stride()}"
        )
    V, D = table.shape
    blocks = sizes.choose_blocks(D, sizes.WHOLE_COLUMNS)
    # An argument that a variant never reads still needs a pointer.
    nothing = table
    per_row, first, second = (nothing if tensor is None else tensor for tensor in state)
    numbers = rule.kind.kernel_numbers(rule.numbers)
    with on_device_of(table):
        updates.update_kernel[(min(len(rows), _max_programs(table.device)),)](
            table, per_row, first, second, rows, gradient,
            nothing if found is None else found.n_rows,
            nothing if found is None else found.begins,
            nothing if found is None else found.bags,
            nothing if scales is None else scales,
            nothing if pieces is None else pieces,
            len(rows), len(gradient), V, rule.lr, *numbers, *[0.0] * (MOST_NUMBERS - len(numbers)),
            D=D, FROM_BAGS=found is not None, HAS_SCALES=scales is not None, PIECE=sizes.PIECE,
            **functions_of(rule.kind).constexprs, **blocks.constexprs, **blocks.options,
        )  # fmt: skip


@lru_cache
def _max_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


# --- segments --------------------------------------------------------------------------------------------


class _Segments(NamedTuple):
    """The positions of the ids by row, of as many segments as there are positions at most: their number is data."""

    keys: Tensor  # (total,) int32 ascending, V for no row
    n_rows: Tensor  # (1,) int32, U
    rows: Tensor  # (total,) int32, of which the first U
    begins: Tensor  # (total + 1,) int64, of which the first U + 1
    bags: Tensor  # (total,) int32 of the sorted positions
    inverse: Tensor  # (total,) int32, the segment of every position; not filled unless asked for


def _segments(ids: Tensor, starts: Tensor | None, V: int, need_inverse: bool = False) -> _Segments:
    """Without starts every position is a bag of its own. Of at least one id."""
    total, device = len(ids), ids.device

    def fresh(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    keys, order, bag_of_position = _sorted_keys(ids, starts, V)
    later = (keys[1:] != keys[:-1]).cumsum(0, dtype=torch.int32)
    found = _Segments(
        keys, fresh(1), fresh(total), fresh(total + 1, dtype=torch.int64), fresh(total), fresh(total)
    )
    with on_device_of(ids):
        segments.segment_kernel[_grid_of_positions(total)](
            keys, order, later, bag_of_position, found.rows, found.begins, found.n_rows, found.bags, found.inverse,
            total, V, NEED_INVERSE=need_inverse, **sizes.POSITIONS, num_warps=sizes.WARPS,
        )  # fmt: skip
    return found


def _sorted_keys(ids: Tensor, starts: Tensor | None, V: int) -> tuple[Tensor, Tensor, Tensor]:
    """(keys (total,) ascending, where each stood, the bag of every position before the sort); V for no row."""
    total = len(ids)
    B = total if starts is None else len(starts) - 1
    keys, bag_of_position = (torch.empty(total, dtype=torch.int32, device=ids.device) for _ in range(2))
    with on_device_of(ids):
        segments.key_kernel[_grid_of_positions(total)](
            ids, ids if starts is None else starts, keys, bag_of_position, B, total, V, (B + 1).bit_length(),
            HAS_STARTS=starts is not None, **sizes.POSITIONS, num_warps=sizes.WARPS,
        )  # fmt: skip
    return *torch.sort(keys, stable=True), bag_of_position


def _grid_of_positions(total: int) -> tuple[int]:
    return (triton.cdiv(total, sizes.POSITIONS["BLOCK"]),)


def _pieces(keys: Tensor, bag_of: Tensor, gradient: Tensor, scales: Tensor | None, V: int) -> Tensor:
    """(total // PIECE, D) float32, the sums of the pieces of sorted positions that lie in one segment each."""
    (B, D), n_pieces = gradient.shape, len(keys) // sizes.PIECE
    pieces = torch.empty(n_pieces, D, dtype=torch.float32, device=gradient.device)
    blocks = sizes.choose_blocks(D, sizes.SHARED_COLUMNS)
    if pieces.numel():
        with on_device_of(gradient):
            sums.piece_kernel[(n_pieces, triton.cdiv(D, blocks.columns))](
                gradient, keys, bag_of, pieces if scales is None else scales, pieces, B, V,
                D=D, HAS_SCALES=scales is not None, PIECE=sizes.PIECE, **blocks.constexprs, **blocks.options,
            )  # fmt: skip
    return pieces


def _sum_segments(
    gradient: Tensor, begins: Tensor, bag_of: Tensor, scales: Tensor | None, pieces: Tensor, n_rows: int
) -> Tensor:
    """(n_rows, D) the sum of every segment of sorted positions; begins are (n_rows + 1,) or longer."""
    B, D = gradient.shape
    out = gradient.new_empty(n_rows, D)
    blocks = sizes.choose_blocks(D, sizes.SHARED_COLUMNS)
    if out.numel():
        with on_device_of(gradient):
            sums.row_gradient_kernel[(n_rows, triton.cdiv(D, blocks.columns))](
                gradient, begins, bag_of, pieces if scales is None else scales, pieces, out, B,
                D=D, HAS_SCALES=scales is not None, PIECE=sizes.PIECE, **blocks.constexprs, **blocks.options,
            )  # fmt: skip
    return out

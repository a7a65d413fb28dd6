"""Bags of table rows on a GPU: `BagKernels` over the Triton kernels.

Only functions whose result requires it wait for the device: `row_gradient`, `sum_repeated` and `unique_ids`, whose
results are as long as the batch has unique rows, and `is_ascending` and `first_outside`, which return Python values.
`update_from_bags` does not wait, and none of its sizes depends on data: a CUDA graph can capture it. Such a step is at
most five launches for up to MOST_RANKED positions: pool; rank, merge, pieces and update.

Ids may lie in a buffer that is longer than the batch: ids before the first start or from the last one on belong to no
bag; whatever their values, no row is read or updated for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...machine.launch import gpu_family, on_device_of
from ..batch import Bags, Order
from ..reference import first_outside as first_outside
from ..reference import is_ascending as is_ascending
from ..rules import MOST_NUMBERS, RowRule, RowState
from . import blocks as sizes
from . import pooling, segments, sums, updates
from .order import order_of
from .rules import functions_of

# One-warp programs that a multiprocessor holds at a time; if there are more rows, each program loops over several.
PROGRAMS_PER_MULTIPROCESSOR = 32
# Number of programs without a GPU, in the interpreter.
INTERPRETED_PROGRAMS = 3


POOLS_TYPES = True


def unique_ids(ids: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """Return (unique (U,) ascending, inverse (total,)): unique[inverse] are the ids.

    NONE, like an id >= V, gives NONE.
    """
    if not len(ids):
        return ids.clone(), ids.clone()
    found = _segments(order_of(Bags(ids, None, None), V), V, need_inverse=True)
    return found.rows[: int(found.n_rows)], found.inverse


def pool(table: Tensor, bags: Bags) -> Tensor:
    """Return the sum of every bag's rows times its scale, (B, D), in the table's dtype."""
    return _pool(table, bags, pooling.NO_SCALES if bags.scales is None else pooling.GIVEN_SCALES)


def pool_means(table: Tensor, bags: Bags) -> tuple[Tensor, Tensor]:
    """Return the mean of every bag's rows (B, D) and its scales (B,), in one launch.

    Does not read the scales of the bags.
    """
    scales = torch.empty(_n_bags(bags), dtype=torch.float32, device=table.device)
    return _pool(table, bags._replace(scales=scales), pooling.MEAN), scales


def _pool(table: Tensor, bags: Bags, scaling: int) -> Tensor:
    ids, starts, scales, types = bags[:4]
    (V, D), B = table.shape, _n_bags(bags)
    out = table.new_empty(B, D)
    rows, counts = (ids, ids) if types is None else types
    blocks = sizes.choose_blocks(D, sizes.SHARED_COLUMNS)
    if out.numel():
        with on_device_of(table):
            pooling.pool_kernel[(B, triton.cdiv(D, blocks.columns))](
                table, ids, ids if starts is None else starts, rows, counts,
                ids if scales is None else scales, out, len(ids), V, len(rows),
                D=D, HAS_STARTS=starts is not None, HAS_TYPES=types is not None,
                M=1 if types is None else rows.shape[1], SCALING=scaling, **blocks.constexprs, **blocks.options,
            )  # fmt: skip
    return out


def row_gradient(gradient: Tensor, bags: Bags, V: int) -> tuple[Tensor, Tensor]:
    """Return (rows (U,) int64 ascending, their gradients (U, D)) from the gradient of the bags (B, D)."""
    if not len(bags.ids):
        return bags.ids.long(), gradient.new_empty(0, gradient.shape[1])
    order = order_of(bags, V)
    found, pieces = _segments(order, V), _pieces(order, gradient, V)
    # The only wait: the results have this length.
    U = int(found.n_rows)
    out = gradient.new_empty(U, gradient.shape[1])
    (B, D), blocks = gradient.shape, sizes.choose_blocks(gradient.shape[1], sizes.SHARED_COLUMNS)
    if out.numel():
        with on_device_of(gradient):
            sums.row_gradient_kernel[(U, triton.cdiv(D, blocks.columns))](
                gradient, found.begins, order.bags, _or(order.weights, pieces), pieces, out, B,
                D=D, HAS_WEIGHTS=order.weights is not None, PIECE=sizes.PIECE, **blocks.constexprs, **blocks.options,
            )  # fmt: skip
    return found.rows[:U].long(), out


def sum_repeated(rows: Tensor, gradient: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows: rows (M,), gradient (M, D) -> (rows ascending, gradients)."""
    return row_gradient(gradient, Bags(rows.to(torch.int32), None, None), V)


def sum_pieces(pieces: Sequence[tuple[Tensor, Tensor]], V: int) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows of several pieces, as `sum_pieces` in op.py does."""
    rows, values = zip(*pieces, strict=True)
    return sum_repeated(torch.cat(rows), torch.cat(values), V)


def dense_gradient(gradient: Tensor, bags: Bags, V: int) -> Tensor:
    """Return the gradient of the whole table (V, D) from that of the bags (B, D); never waits."""
    (B, D), out = gradient.shape, gradient.new_zeros(V, gradient.shape[1])
    if not len(bags.ids) or not out.numel():
        return out
    order = order_of(bags, V)
    pieces, blocks = _pieces(order, gradient, V), sizes.choose_blocks(D, sizes.SHARED_COLUMNS)
    with on_device_of(gradient):
        sums.dense_gradient_kernel[(len(order.keys), triton.cdiv(D, blocks.columns))](
            gradient, order.keys, order.bags, _or(order.weights, pieces), pieces, out, len(order.keys), B, V,
            D=D, HAS_WEIGHTS=order.weights is not None, PIECE=sizes.PIECE, SCAN=sizes.SCAN,
            **blocks.constexprs, **blocks.options,
        )  # fmt: skip
    return out


def sum_by_row(gradient: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Return (n_rows, D): row u is the sum of gradient[i] (M, D) over all i with rows[i] = u (M,) int32.

    Never waits.
    """
    return dense_gradient(gradient, Bags(rows, None, None), n_rows)


def update_rows(rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState) -> None:
    """Update the rows (U,), all distinct, by their gradients (U, D), in one step."""
    if gradient.numel():
        _update(rule, table, rows, gradient, state)


def update_all_rows(rule: RowRule, table: Tensor, gradient: Tensor, state: RowState) -> None:
    """Update every row of a table by its gradient (V, D), in one step."""
    if gradient.numel():
        _update(rule, table, None, gradient, state)


def update_from_bags(
    rule: RowRule,
    table: Tensor,
    bags: Bags,
    gradient: Tensor,
    state: RowState,
    steps: Tensor | None = None,
) -> None:
    """Update every row in the bags by the gradient of the bags (B, D): row_gradient and update_rows in one.

    The gradient of a row is not rounded to the table's dtype in between. steps: see `BagKernels`.
    """
    if len(bags.ids) and gradient.numel():
        order = order_of(bags, len(table))
        _update(rule, table, order.keys, gradient, state, order, _pieces(order, gradient, len(table), steps))
    elif steps is not None:
        steps += 1


def _update(
    rule: RowRule,
    table: Tensor,
    rows: Tensor | None,
    gradient: Tensor,
    state: RowState,
    order: Order | None = None,
    pieces: Tensor | None = None,
) -> None:
    """Update the rows (None: all) by their gradients (U, D), or by those of the bags (B, D) in their order."""
    if not table.is_contiguous():
        raise ValueError(
            f"a table whose rows are updated must be contiguous, but has strides {table.stride()}"
        )
    V, D = table.shape
    n = V if rows is None else len(rows)
    blocks = sizes.choose_blocks(D, sizes.WHOLE_COLUMNS)
    # An argument that a variant never reads still needs a pointer.
    per_row, first, second = (_or(tensor, table) for tensor in state)
    numbers, weights = rule.kind.kernel_numbers(rule.numbers), None if order is None else order.weights
    with on_device_of(table):
        updates.update_kernel[(min(n, _max_programs(table.device)),)](
            table, per_row, first, second, _or(rows, table), gradient,
            table if order is None else order.bags, _or(weights, table), _or(pieces, table),
            n, len(gradient), V, rule.lr, rule.table_steps, *numbers, *[0.0] * (MOST_NUMBERS - len(numbers)),
            D=D, RATE_ON_DEVICE=isinstance(rule.lr, Tensor), STEPS_ON_DEVICE=isinstance(rule.table_steps, Tensor),
            FROM_BAGS=order is not None, ALL_ROWS=rows is None,
            HAS_WEIGHTS=weights is not None, PIECE=sizes.PIECE, SCAN=sizes.SCAN,
            **functions_of(rule.kind).constexprs, **blocks.constexprs, **blocks.roomy(gpu_family(table.device)),
        )  # fmt: skip


def in_order(bags: Bags, V: int) -> Bags:
    """Return the bags with their positions sorted, so that a step need not sort them again."""
    return bags._replace(order=order_of(bags, V))


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    return other if tensor is None else tensor


def _n_bags(bags: Bags) -> int:
    return len(bags.ids) if bags.starts is None else len(bags.starts) - 1


@lru_cache
def _max_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


# --- segments --------------------------------------------------------------------------------------------


class _Segments(NamedTuple):
    """Segments of the sorted positions by row, with room for one per position: their number depends on data."""

    n_rows: Tensor  # (1,) int32, U
    rows: Tensor  # (total,) int32, only the first U are set
    begins: Tensor  # (total + 1,) int64, only the first U + 1 are set
    inverse: Tensor  # (total,) int32, the segment of every position; set only on request


def _segments(order: Order, V: int, need_inverse: bool = False) -> _Segments:
    keys = order.keys
    total, device = len(keys), keys.device

    def fresh(n: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(n, dtype=dtype, device=device)

    later = (keys[1:] != keys[:-1]).cumsum(0, dtype=torch.int32)
    found = _Segments(fresh(1), fresh(total), fresh(total + 1, torch.int64), fresh(total))
    with on_device_of(keys):
        segments.segment_kernel[(triton.cdiv(total, sizes.POSITIONS["BLOCK"]),)](
            keys, order.positions, later, found.rows, found.begins, found.n_rows, found.inverse,
            total, V, NEED_INVERSE=need_inverse, **sizes.POSITIONS, num_warps=sizes.WARPS,
        )  # fmt: skip
    return found


def _pieces(order: Order, gradient: Tensor, V: int, steps: Tensor | None = None) -> Tensor:
    """Return the sums of the pieces of sorted positions that lie in one segment each, (n // PIECE, D) float32.

    Adds 1 to steps, (), if given: in the same launch, if there is one.
    """
    (B, D), n_pieces = gradient.shape, len(order.keys) // sizes.PIECE
    pieces = torch.empty(n_pieces, D, dtype=torch.float32, device=gradient.device)
    blocks = sizes.choose_blocks(D, sizes.SHARED_COLUMNS)
    if pieces.numel():
        with on_device_of(gradient):
            sums.piece_kernel[(n_pieces, triton.cdiv(D, blocks.columns))](
                gradient, order.keys, order.bags, _or(order.weights, pieces), pieces, _or(steps, pieces), B, V,
                D=D, HAS_WEIGHTS=order.weights is not None, COUNTS=steps is not None, PIECE=sizes.PIECE,
                **blocks.constexprs, **blocks.roomy(gpu_family(gradient.device)),
            )  # fmt: skip
    elif steps is not None:
        steps += 1
    return pieces

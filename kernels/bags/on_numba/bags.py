"""Bags of table rows on a CPU: `BagKernels` over the Numba kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...machine.team import PARALLEL_FLOATS, pieces_of, splits_of
from ...machine.templates import FLOATS
from ..batch import Bags
from ..rules import RowRule, RowState, packed
from . import ids as numba_bag_ids
from . import row_merge as numba_row_merge
from . import row_sums as numba_row_sums
from . import row_updates as numba_row_updates

POOLS_TYPES = False

_NO_SCALES = np.zeros(0, np.float32)


def first_outside(ids: Tensor, V: int) -> int:
    """Return the position of the first id that is neither NONE nor in [0, V); -1 if there is none."""
    return int(numba_bag_ids.first_outside(ids.numpy(), V))


def unique_ids(ids: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """Return (unique (U,) ascending, inverse (total,)): unique[inverse] are the ids; NONE stays NONE."""
    unique, inverse = numba_bag_ids.unique_and_inverse(ids.numpy(), V - 1)
    return torch.from_numpy(unique), torch.from_numpy(inverse)


def pool(table: Tensor, bags: Bags) -> Tensor:
    """Return the sum of every bag's rows times its scale, (B, D)."""
    D = table.shape[1]
    out = torch.empty(len(bags.bounds) - 1, D, dtype=torch.float32, device="cpu")
    what = _Sum(table, bags.ids.numpy(), bags.bounds.numpy(), bag_scales=_scales(bags))
    _sum_bags(what, out, pieces_of(len(bags.ids) * D, PARALLEL_FLOATS))
    return out


def pool_means(table: Tensor, bags: Bags) -> tuple[Tensor, Tensor]:
    """Return the mean of every bag's rows (B, D) and its scales (B,); does not read the scales of the bags."""
    # Ids on a CPU are already checked: none but NONE is outside the table.
    scales = torch.from_numpy(numba_bag_ids.mean_scales(bags.ids.numpy(), bags.bounds.numpy()))
    return pool(table, bags._replace(scales=scales)), scales


def row_gradient(gradient: Tensor, bags: Bags, V: int) -> tuple[Tensor, Tensor]:
    """Return (rows (U,) int64 ascending, their gradients (U, D)) from the gradient of the bags (B, D)."""
    by_row, unique, begins = numba_bag_ids.group_bags(bags.ids.numpy(), bags.bounds.numpy(), V - 1, 0, 1)
    sums = torch.empty(len(unique), gradient.shape[1], dtype=torch.float32, device="cpu")
    what = _Sum(gradient, by_row, begins, scales=_scales(bags))
    _sum_bags(what, sums, pieces_of(len(by_row) * gradient.shape[1], PARALLEL_FLOATS))
    return torch.from_numpy(unique.astype(np.int64)), sums


def dense_gradient(gradient: Tensor, bags: Bags, V: int) -> Tensor:
    """Return the gradient of the whole table (V, D) from that of the bags (B, D)."""
    rows, sums = row_gradient(gradient, bags, V)
    return gradient.new_zeros(V, gradient.shape[1]).index_copy_(0, rows, sums)


def is_ascending(rows: Tensor) -> bool:
    """Whether the rows (U,) strictly ascend, so that each appears once."""
    return bool(numba_bag_ids.is_ascending(rows.numpy()))


def sum_repeated(rows: Tensor, gradient: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows: rows (M,), gradient (M, D) -> (rows ascending, gradients)."""
    ids = rows.to(torch.int32)
    return row_gradient(gradient, Bags(ids, torch.arange(len(ids) + 1, device="cpu"), None), V)


def sum_pieces(pieces: Sequence[tuple[Tensor, Tensor]], V: int) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows of several pieces, as `sum_pieces` in op.py does."""
    del V
    values = [gradient.contiguous() for _, gradient in pieces]
    D, bounds = values[0].shape[1], np.cumsum([0, *map(len, values)])
    rows, begins, sources = numba_row_merge.merged(torch.cat([rows for rows, _ in pieces]).numpy(), bounds)
    sums = torch.empty(len(rows), D, dtype=torch.float32, device="cpu")
    addresses = np.array([gradient.data_ptr() for gradient in values])
    numba_row_merge.sum_sources(
        begins, sources, bounds, addresses, sums.numpy(), pieces_of(sums.numel(), PARALLEL_FLOATS)
    )
    return torch.from_numpy(rows), sums


def update_rows(rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState) -> None:
    """Update the rows (U,), all distinct, by their gradients (U, D), in one step."""
    _update_rows(rule, table, rows, gradient, state, pieces_of(gradient.numel(), PARALLEL_FLOATS))


def _update_rows(
    rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState, n_splits: int
) -> None:
    numba_row_updates.update_rows(
        packed((rule,)), table.data_ptr(), rows.numpy(), gradient.data_ptr(), table.shape[1],
        *_state(state), n_splits,
    )  # fmt: skip


def update_all_rows(rule: RowRule, table: Tensor, gradient: Tensor, state: RowState) -> None:
    """Update every row of a table by its gradient (V, D), in one step."""
    update_rows(rule, table, _all_rows(len(table)), gradient, state)


@lru_cache(maxsize=64)
def _all_rows(V: int) -> Tensor:
    return torch.arange(V, device="cpu")


def update_from_bags(
    rule: RowRule,
    table: Tensor,
    bags: Bags,
    gradient: Tensor,
    state: RowState,
    steps: Tensor | None = None,
) -> None:
    """Update every row in the bags by the gradient of the bags (B, D): row_gradient and update_rows in one."""
    if steps is not None:
        steps += 1
    # Every piece scans all ids for its own rows, so there are no more pieces than threads.
    n_pieces = splits_of(bags.ids.numel() * table.shape[1], PARALLEL_FLOATS)
    _update_from_bags(rule, table, bags, gradient, state, n_pieces)


def _update_from_bags(
    rule: RowRule, table: Tensor, bags: Bags, gradient: Tensor, state: RowState, n_splits: int
) -> None:
    V, D = table.shape
    numba_row_updates.update_from_bags(
        packed((rule,)), table.data_ptr(), V, bags.ids.numpy(), bags.bounds.numpy(), _scales(bags),
        gradient.data_ptr(), D, *_state(state), n_splits,
    )  # fmt: skip


class _Sum(NamedTuple):
    """Sums of rows of a source (.., D) over bags ids[starts[b]:starts[b + 1]], with scales for rows and for bags."""

    source: Tensor
    ids: np.ndarray
    starts: np.ndarray
    scales: np.ndarray = _NO_SCALES
    bag_scales: np.ndarray = _NO_SCALES


def _sum_bags(what: _Sum, target: Tensor, n_splits: int) -> None:
    numba_row_sums.sum_bags(
        what.source.data_ptr(),
        what.source.shape[1],
        *what[1:],
        target.data_ptr(),
        n_splits,
    )


def _scales(bags: Bags) -> np.ndarray:
    return _NO_SCALES if bags.scales is None else bags.scales.numpy()


def _state(state: RowState) -> tuple[np.ndarray, int, int]:
    per_row, first, second = (FLOATS if tensor is None else tensor for tensor in state)
    return per_row.numpy(), first.data_ptr(), second.data_ptr()

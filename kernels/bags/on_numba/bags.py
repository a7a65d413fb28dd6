"""Bags of table rows on a CPU: the protocol of kernels/embedding.py over the Numba kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...machine.jit import PARALLEL_FLOATS, thread_count
from ..rules import RULE_RECORD, RowRule, RowState
from . import ids as numba_bag_ids
from . import row_sums as numba_row_sums
from . import row_updates as numba_row_updates

_NO_SCALES = np.zeros(0, np.float32)
_NO_NUMBERS = torch.zeros(0, dtype=torch.float32)


def obstacle(table: Tensor) -> str | None:
    """Why these kernels cannot serve a table, or None."""
    if table.device.type != "cpu":
        return f"it computes on cpu, the table is on {table.device.type}"
    if table.dtype != torch.float32:
        return f"it has no kernel for tables of {table.dtype} on a CPU"
    return None


def first_outside(ids: Tensor, V: int) -> int:
    """The position of the first id that is neither NONE nor in [0, V); -1 if there is none."""
    return int(numba_bag_ids.first_outside(ids.numpy(), V))


def mean_scales(ids: Tensor, starts: Tensor, V: int) -> Tensor:
    """(B,) 1 over the ids of every bag that are not NONE, 0 for a bag without any."""
    del V  # ids of a CPU have been looked through
    return torch.from_numpy(numba_bag_ids.mean_scales(ids.numpy(), starts.numpy()))


def unique_ids(ids: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """(unique (U,) ascending, inverse (total,)): unique[inverse] are the ids; NONE stays NONE."""
    unique, inverse = numba_bag_ids.unique_and_inverse(ids.numpy(), V - 1)
    return torch.from_numpy(unique), torch.from_numpy(inverse)


def pool(table: Tensor, ids: Tensor, starts: Tensor, scales: Tensor | None) -> Tensor:
    """(B, D) the sum of every bag's rows, times scales (B,)."""
    D = table.shape[1]
    out = torch.empty(len(starts) - 1, D, dtype=torch.float32)
    _sum_bags(table, ids.numpy(), starts.numpy(), _NO_SCALES, _scales(scales), out, _splits(len(ids) * D))
    return out


def row_gradient(
    gradient: Tensor, ids: Tensor, starts: Tensor, scales: Tensor | None, V: int
) -> tuple[Tensor, Tensor]:
    """(rows (U,) int64 ascending, their gradients (U, D)) from the gradient of the bags (B, D)."""
    bags, unique, begins = numba_bag_ids.group_bags(ids.numpy(), starts.numpy(), V - 1, 0, 1)
    sums = torch.empty(len(unique), gradient.shape[1], dtype=torch.float32)
    n_splits = _splits(len(bags) * gradient.shape[1])
    _sum_bags(gradient, bags, begins, _scales(scales), _NO_SCALES, sums, n_splits)
    return torch.from_numpy(unique.astype(np.int64)), sums


def is_ascending(rows: Tensor) -> bool:
    """Whether the rows (U,) ascend, and so each is there once."""
    return bool(numba_bag_ids.is_ascending(rows.numpy()))


def sum_repeated(rows: Tensor, gradient: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """(rows ascending, gradients) with the gradients of equal rows added up; rows (M,), gradient (M, D)."""
    ids = rows.to(torch.int32)
    return row_gradient(gradient, ids, torch.arange(len(ids) + 1), None, V)


def update_rows(rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState) -> None:
    """One step of the rows (U,), each there once, by their gradients (U, D)."""
    _update_rows(rule, table, rows, gradient, state, _splits(gradient.numel()))


def _update_rows(
    rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState, n_splits: int
) -> None:
    numba_row_updates.update_rows(
        _record(rule), table.data_ptr(), rows.numpy(), gradient.data_ptr(), table.shape[1],
        *_state(state), n_splits, parallel=n_splits > 1,
    )  # fmt: skip


def update_from_bags(
    rule: RowRule,
    table: Tensor,
    ids: Tensor,
    starts: Tensor,
    scales: Tensor | None,
    gradient: Tensor,
    state: RowState,
) -> None:
    """One step of every row in the bags by the gradient of the bags (B, D): row_gradient and update_rows in one."""
    n_splits = _splits(ids.numel() * table.shape[1])
    _update_from_bags(rule, table, ids, starts, scales, gradient, state, n_splits)


def _update_from_bags(
    rule: RowRule,
    table: Tensor,
    ids: Tensor,
    starts: Tensor,
    scales: Tensor | None,
    gradient: Tensor,
    state: RowState,
    n_splits: int,
) -> None:
    V, D = table.shape
    numba_row_updates.update_from_bags(
        _record(rule), table.data_ptr(), V, ids.numpy(), starts.numpy(), _scales(scales), gradient.data_ptr(), D,
        *_state(state), n_splits, parallel=n_splits > 1,
    )  # fmt: skip


def _sum_bags(
    source: Tensor,
    ids: np.ndarray,
    starts: np.ndarray,
    scales: np.ndarray,
    bag_scales: np.ndarray,
    target: Tensor,
    n_splits: int,
) -> None:
    D = source.shape[1]
    numba_row_sums.sum_bags(
        source.data_ptr(), D, ids, starts, scales, bag_scales, target.data_ptr(), n_splits,
        parallel=n_splits > 1,
    )  # fmt: skip


def _splits(floats: int) -> int:
    return thread_count() if floats >= PARALLEL_FLOATS else 1


def _scales(scales: Tensor | None) -> np.ndarray:
    return _NO_SCALES if scales is None else scales.numpy()


def _record(rule: RowRule) -> np.ndarray:
    return np.array([tuple(rule)], RULE_RECORD)


def _state(state: RowState) -> tuple[np.ndarray, int, int]:
    per_row, first, second = (_NO_NUMBERS if tensor is None else tensor for tensor in state)
    return per_row.numpy(), first.data_ptr(), second.data_ptr()

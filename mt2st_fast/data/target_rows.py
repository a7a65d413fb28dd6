"""The targets of a batch's rows, for all tasks at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

MOST_BYTES = 1 << 28  # of a table of classes; more would cost a large corpus too much memory


class TargetRows:
    """The targets of some tasks, by row.

    A batch's rows lie all over a corpus, and reading from such places is what takes time. So the classes of all tasks
    are kept beside each other, in a table (N, tasks) of short integers: a row is then one place instead of one for each
    task.
    """

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self._tasks = tuple(columns)
        self._columns = dict(columns)
        classes = [task for task, column in columns.items() if column.ndim == 1 and column.dtype == np.int64]
        short = _narrowest([columns[task] for task in classes])
        n_rows = max(map(len, columns.values()), default=0)
        self._classes: tuple[str, ...] = ()
        if len(classes) > 1 and n_rows * len(classes) * short.itemsize <= MOST_BYTES:
            self._classes = tuple(classes)
            self._table_nk = np.empty((n_rows, len(classes)), short)
            for k, task in enumerate(classes):
                self._table_nk[:, k] = self._columns.pop(task)

    def __call__(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return {task: targets of rows (B,)}: int64 (B,) for classes, (B, C) for the other kinds."""
        # By NumPy: torch's indexing is three times as slow at these sizes.
        found = {task: column.take(rows, axis=0) for task, column in self._columns.items()}
        if self._classes:
            classes_kb = np.ascontiguousarray(self._table_nk.take(rows, axis=0).T, np.int64)
            found.update(zip(self._classes, classes_kb, strict=True))
        return {task: torch.from_numpy(found[task]) for task in self._tasks}


def _narrowest(columns: list[np.ndarray]) -> np.dtype:
    """Return the shorter of int16 and int32 that holds all of these classes, or int64 if none does."""
    least = min((int(column.min()) for column in columns if len(column)), default=0)
    most = max((int(column.max()) for column in columns if len(column)), default=0)
    for name in ("int16", "int32"):
        if np.iinfo(name).min <= least and most <= np.iinfo(name).max:
            return np.dtype(name)
    return np.dtype(np.int64)

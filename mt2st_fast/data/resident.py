"""A corpus on the device: a batch is a list of row numbers, and its content is gathered there.

The host draws the rows. Those of many steps are copied to the device at once; a step then takes a view of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.data.sampler import RowsAhead

PART_OF_FREE_MEMORY = 4  # a corpus may take 1/4 of the device's free bytes
STEPS_AHEAD = 256  # steps whose rows are drawn and copied at once


def memory_budget(device: torch.device) -> float:
    """Return the bytes that a corpus may take on a device."""
    if device.type != "cuda":
        return float("inf")
    return torch.cuda.mem_get_info(device)[0] / PART_OF_FREE_MEMORY


class DeviceWindows:
    """The windows of all rows, int32 (N, W), so that those of a batch are a single gather, whatever the width."""

    def __init__(self, windows_nw: Tensor) -> None:
        self._windows_nw = windows_nw

    def __call__(self, rows: Tensor) -> Tensor:
        """Return type ids, int32 (B, W)."""
        return self._windows_nw.index_select(0, rows)

    def between(self, first: int, last: int) -> Tensor:
        """Return a view of rows `first` (inclusive) to `last` (exclusive)."""
        return self._windows_nw[first:last]


class DeviceTargets:
    """The targets of some tasks on a device; those with classes are side by side, so that one gather serves all."""

    def __init__(self, columns: Mapping[str, np.ndarray], device: torch.device) -> None:
        self._classes = tuple(n for n, c in columns.items() if c.ndim == 1 and c.dtype == np.int64)
        stacked = np.stack([columns[n] for n in self._classes]) if self._classes else None
        self._classes_kn = None if stacked is None else torch.from_numpy(stacked).to(device)
        self._others = {
            name: torch.from_numpy(np.require(column, requirements=["C", "W"])).to(device)
            for name, column in columns.items()
            if name not in self._classes
        }
        self.tasks = tuple(columns)

    def __call__(self, rows: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return {task: targets of rows (B,)}, for some of the tasks."""
        found = {name: column.index_select(0, rows) for name, column in self._others.items() if name in tasks}
        if self._classes_kn is not None and any(name in tasks for name in self._classes):
            found.update(zip(self._classes, self._classes_kn.index_select(1, rows).unbind(), strict=True))
        return {name: found[name] for name in tasks}

    def between(self, first: int, last: int) -> dict[str, Tensor]:
        """Return views of rows `first` (inclusive) to `last` (exclusive)."""
        found = {name: column[first:last] for name, column in self._others.items()}
        if self._classes_kn is not None:
            found.update(zip(self._classes, self._classes_kn[:, first:last].unbind(), strict=True))
        return {name: found[name] for name in self.tasks}


@dataclass(frozen=True, eq=False)
class ResidentBatch:
    """A batch as row numbers; `materialise` is part of the step, so that a captured step includes it."""

    rows: Tensor  # (B,) int64, on the same device
    inputs: DeviceWindows
    targets: DeviceTargets
    tasks: tuple[str, ...]

    def materialise(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (inputs, {task: targets}) of the rows, on the device."""
        return self.inputs(self.rows), self.targets(self.rows, self.tasks)

    def with_rows(self, rows: Tensor) -> ResidentBatch:
        """Return the same batch with other rows."""
        return replace(self, rows=rows)

    def with_tasks(self, tasks: tuple[str, ...]) -> ResidentBatch:
        """Return the same batch with the targets of some of its tasks."""
        return self if tasks == self.tasks else replace(self, tasks=tasks)

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what batches share that only differ in their rows.

        Inputs and targets are part of the key by identity, which keeps them alive.
        """
        return (self.inputs, self.targets, self.tasks, self.rows.shape[0])


class TrainingRows(Protocol):
    """Training batches as a resident stream uses them."""

    active: tuple[str, ...]
    ahead: RowsAhead

    def active_columns(self) -> Mapping[str, np.ndarray]:
        """Return the targets of all rows, by active task."""
        ...


class ResidentStream:
    """The endless batches of `TrainingBatches` as rows on a device: the same rows as it would yield itself."""

    def __init__(self, batches: TrainingRows, inputs: DeviceWindows, device: torch.device) -> None:
        self._batches, self._inputs, self._device = batches, inputs, device
        self._enter_phase()

    def _enter_phase(self) -> None:
        self._active = self._batches.active
        self._targets = DeviceTargets(self._batches.active_columns(), self._device)
        self._coming: list[ResidentBatch] = []

    def __iter__(self) -> Iterator[ResidentBatch]:
        return self

    def __next__(self) -> ResidentBatch:
        ahead = self._batches.ahead
        if self._batches.active is not self._active:
            self._enter_phase()
        if not ahead.left:
            self._fill(ahead.draw(STEPS_AHEAD))
        return self._coming[ahead.use()]

    def _fill(self, rows: list[np.ndarray]) -> None:
        drawn = torch.from_numpy(np.concatenate(rows))
        if self._device.type == "cuda":
            drawn = drawn.pin_memory()  # so that the copy is asynchronous
        views = drawn.to(self._device, non_blocking=True).split([len(part) for part in rows])
        self._coming = [ResidentBatch(view, self._inputs, self._targets, self._active) for view in views]

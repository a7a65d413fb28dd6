"""What an evaluation in batches has seen: losses by the labels of all batches, and where rows were padded."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.integrations.padding import all_missing, mark_of, on_tokens, with_active
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import Task

KIND, PLACES = 0, 1  # numbers of a batch that processes compare, before the widths of the labels of each task
BY_TASK = 1  # a kind; labels by task with others beside them have larger ones


class Evaluated:
    """The sums of the losses of all batches by task, and the rows and places of every batch."""

    def __init__(self, heads: MultiTaskHeads) -> None:
        self._heads = heads
        self._sums = dict.fromkeys(heads.active, 0.0)
        self._counts = dict.fromkeys(heads.active, 0.0)
        self._given: set[str] = set()  # tasks and others of which a batch has labels
        self._n_batches = 0
        # By task on tokens: (rows, places) of the batches.
        self._widths: dict[str, list[tuple[int, int]]] = {}

    def add(self, labels: Mapping[str, Tensor], losses: Tensor) -> None:
        """Add a batch with its losses (K,), the means over its labels."""
        counts = self._heads.label_counts(labels)
        counts_k = [counts.get(name, losses.new_zeros(())) for name in self._heads.active]
        read = torch.stack([losses.float(), torch.stack(counts_k).to(losses.device)]).tolist()
        for name, loss, count in zip(self._heads.active, *read, strict=True):
            self._sums[name] += loss * count
            self._counts[name] += count

    def losable(self, labels: Mapping[str, Any], ids: Any, n_first: Callable[[int], int]) -> dict[str, Any]:
        """Return labels of a batch of tokens (N, T) of which a loss can be computed, whatever tasks it has labels of.

        Those of all but its first n_first(rows) rows are marked as missing.
        """
        found, kept = dict(with_active(self._heads, labels, ids)), n_first(n_rows(labels))
        self._n_batches += 1
        self._given |= set(labels)
        for name, task in self._heads.tasks.items():
            given = labels.get(name)
            if isinstance(given, Tensor) and given.dim() and kept < len(given):
                found[name] = given.clone()
                found[name][kept:] = mark_of(task)
        return found

    def widths(self, labels: Any, places: int) -> Tensor:
        """Return this batch's numbers (2 + K,) int64, for all K tasks with a head; places: those of its inputs."""
        by_task = labels if isinstance(labels, Mapping) else {}
        tasks = self._heads.tasks
        others = sorted(set(map(str, by_task)) - set(tasks))
        kind = (BY_TASK + zlib.crc32(repr(others).encode()) * bool(others)) if by_task is labels else 0
        widths = [
            by_task[name].shape[1] if name in by_task and on_tokens(tasks[name]) else 0 for name in tasks
        ]
        return torch.tensor([kind, max([places, *widths]), *widths], dtype=torch.int64, device="cpu")

    def completed(self, labels: Mapping[str, Any], widths: Tensor, n_processes: int) -> dict[str, Any]:
        """Return the labels of all tasks with a head: marked as missing where they are, and behind the batch's own.

        transformers would compare a task's labels in one process to those of another task elsewhere, and pad with -100.
        widths: those of the batch, the same in all processes.
        """
        _, places, *of_tasks = widths.tolist()
        rows = n_rows(labels)
        device = next((given.device for given in labels.values() if isinstance(given, Tensor)), None)
        found: dict[str, Any] = {}  # in one order, in which processes exchange them
        for (name, task), width in zip(self._heads.tasks.items(), of_tasks, strict=True):
            own, width = labels.get(name), width or places * on_tokens(task)
            found[name] = own
            if own is None:
                found[name] = all_missing(task, (rows, width) if width else (rows,)).to(device)
            elif width_of(task, own) < width:
                padded = own.new_full((rows, width, *own.shape[2:]), mark_of(task))
                padded[:, : own.shape[1]] = own
                found[name] = padded
            if width:
                self._widths.setdefault(name, []).append((rows * n_processes, width))
        found |= {name: labels[name] for name in sorted(labels) if name not in found}
        return found

    @property
    def is_untouched(self) -> bool:
        """Whether no batch had labels by task."""
        return self._n_batches == 0

    def parts(self) -> Tensor:
        """Return numbers (3, K) float64, which processes may add up.

        They are the sums of the losses, the numbers of labels, and whether any batch has labels of the task.
        """
        given = [float(name in self._given) for name in self._sums]
        numbers = [[*self._sums.values()], [*self._counts.values()], given]
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")

    def loss(self, parts: Tensor) -> float | None:
        """Return the weighted loss over all labels, of which a task without any has none; None without any label.

        Raises InputError if no batch has labels of any active task.
        """
        weights = self._heads.weights
        if self._n_batches and not parts[2].any():
            raise InputError(
                f"the labels of the evaluation are of {', '.join(sorted(self._given)) or 'no task'}, and of none of "
                f"the active tasks {', '.join(self._heads.active)}"
            )
        found = [weights[name] * loss for name, loss in self.losses(parts).items()]
        return sum(found) if found else None

    def losses(self, parts: Tensor) -> dict[str, float]:
        """Return the mean loss of every active task with labels: unlike their sum, it stays as others retire."""
        rows = zip(self._sums, *parts[:2].tolist(), strict=True)
        return {name: total / count for name, total, count in rows if count}

    def mark(self, labels: Any) -> None:
        """Mark as missing, in labels (N, T, ...) of all batches by task, every place behind those of its batch."""
        for name, widths in self._widths.items():
            array = labels.get(name) if isinstance(labels, Mapping) else None
            if not isinstance(array, np.ndarray):
                continue  # batches that were not put into one array
            # Of the last rows, accelerate leaves out those that it has repeated.
            if not 0 <= sum(rows for rows, _ in widths) - len(array) < widths[-1][0]:
                continue
            first = 0
            for rows, places in widths:
                array[first : first + rows, places:] = mark_of(self._heads.tasks[name])
                first += rows


def n_rows(labels: Mapping[str, Any]) -> int:
    """Return the number of rows of a batch with these labels."""
    return next((len(given) for given in labels.values() if isinstance(given, Tensor) and given.dim()), 0)


def width_of(task: Task, labels: Tensor | None) -> int:
    """Return T for labels (N, T) of tokens, for values (N, T, C); 0 for others."""
    given = labels is not None and labels.dim() > 1 + (not task.head.kind.takes_classes)
    return labels.shape[1] if labels is not None and given and on_tokens(task) else 0


def common_widths(of_all: Tensor) -> Tensor:
    """Return the numbers of a batch for all processes, from those of each (processes, 2 + K).

    Raises InputError, in every process, if labels are by task only in some of them.
    """
    kinds = of_all[:, KIND].tolist()
    if wrong := [rank for rank, kind in enumerate(kinds) if kind != kinds[0]]:
        raise InputError(
            f"a batch of the evaluation has other labels in process {wrong[0]} of {len(kinds)} than in process 0: "
            "none, or of other names; let the collator return {task: labels} with the same names in every batch"
        )
    return of_all.amax(0)

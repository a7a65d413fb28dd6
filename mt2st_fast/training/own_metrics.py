"""User-defined metrics: torchmetrics objects, or functions of predictions and targets."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import MultiLabel

# A torchmetrics.Metric, or metric(predictions, targets) -> number; higher must be better for both.
Metric = Callable[[Tensor, Tensor], Any]
STATE = ("update", "compute", "reset")  # methods that torchmetrics objects have


def check_metrics(metrics: Mapping[str, Metric], heads: MultiTaskHeads) -> None:
    """Raises InputError for an unknown task, for a task without a head, and for anything that is not a metric."""
    for task, metric in metrics.items():
        if task not in heads.names:
            raise InputError(
                f"metrics has an entry for {task}, which is not a task; available: {', '.join(heads.names)}"
            )
        if task not in heads.tasks:
            raise InputError(
                f"metrics has an entry for {task}, which has no predictions to measure; leave it out"
            )
        if isinstance(metric, type) or not callable(metric):
            named = metric.__name__ + "()" if isinstance(metric, type) else "lambda predictions, targets: ..."
            raise InputError(
                f"the metric of {task} must be an object of torchmetrics or a function of predictions and targets, not "
                f"{metric!r}; pass {named}"
            )
        if getattr(metric, "higher_is_better", None) is False:
            raise InputError(
                f"the metric of {task}, {metric_name(metric)}, is better when lower, but the highest evaluation "
                "counts as best; pass lambda predictions, targets: -error(predictions, targets)"
            )


class OwnMetric:
    """One task's metric over the batches of one evaluation.

    It gets float32 probabilities (N, C) and int64 classes (N,); for a multi-label task probabilities (N, C) and int64 0
    or 1 (N, C); for a regression values and targets (N, C), or (N,) if C is 1. Rows with a missing label are left out.
    An object is updated batch by batch, on the device, and is a fresh copy of the given one; a function gets all rows
    at once, on the CPU.
    """

    def __init__(self, task: str, metric: Metric, heads: MultiTaskHeads, device: torch.device) -> None:
        self._task, self._kind, self._head = task, heads.tasks[task], heads.tasks[task].head
        self._told: list[tuple[Tensor, Tensor]] = []
        self._rows = 0
        self._metric: Any = metric
        self._is_object = all(callable(getattr(metric, name, None)) for name in STATE)
        if self._is_object:
            self._metric = copy.deepcopy(metric)
            self._metric.reset()
            self._metric.sync_on_compute = False  # a process that evaluates alone waits for nobody
            self._metric = self._metric.to(device) if hasattr(metric, "to") else self._metric

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add rows: logits (N, C), and targets as the head takes them. Raises InputError if the metric fails."""
        predictions, targets = self._labelled(logits.float(), target)
        self._rows += len(predictions)
        if not len(predictions):
            return
        if self._is_object:
            self._of_user(lambda: self._metric.update(predictions, targets))
        else:
            self._told.append((predictions.cpu(), targets.cpu()))

    def value(self) -> float:
        """Return the metric over all rows, NaN if there are none. Raises InputError if it is not a number."""
        if not self._rows:
            return float("nan")
        if self._is_object:
            found = self._of_user(self._metric.compute)
        else:
            predictions, targets = (torch.cat(parts) for parts in zip(*self._told, strict=True))
            found = self._of_user(lambda: self._metric(predictions, targets))
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"the metric of {self._task}, {metric_name(self._metric)}, must give one number, not {_shown(found)}"
            ) from None

    def _labelled(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self._head.kind.takes_classes:
            known = self._head.is_labelled(target)
            return logits[known].softmax(1), target[known].long()
        known = ~target.isnan().any(1)
        if isinstance(self._kind, MultiLabel):
            return logits[known].sigmoid(), (target[known] > 0.5).long()  # as its F1 takes them
        values, targets = logits[known], target[known].float()
        return (values[:, 0], targets[:, 0]) if self._head.size == 1 else (values, targets)

    def _of_user(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InputError(
                f"the metric of {self._task}, {metric_name(self._metric)}, failed: {line}"
            ) from error


def metric_name(metric: Any) -> str:
    """Return the name of a function or an object for messages and checkpoints."""
    return getattr(metric, "__name__", type(metric).__name__)


def _shown(value: Any) -> str:
    return f"{tuple(value.shape)} numbers" if isinstance(value, Tensor) else f"a {type(value).__name__}"

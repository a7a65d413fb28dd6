"""What a task on features is: the head that trains it, and the metric that judges it.

The built-in tasks are defined with their kinds of head; a task of your own needs only what `Task` declares.
"""

from __future__ import annotations

from typing import Protocol

from mt2st_fast.kernels import HeadSpec, task_of_column
from mt2st_fast.kernels.heads.kind import Metric
from mt2st_fast.kernels.heads.kinds.binary import MultiLabel
from mt2st_fast.kernels.heads.kinds.softmax import Classification
from mt2st_fast.kernels.heads.kinds.squared import Regression

__all__ = ["Classification", "MultiLabel", "Regression", "Task", "metric_of", "task_of_column"]


class Task(Protocol):
    """A task whose loss is a fused head."""

    @property
    def metric(self) -> str:
        """The name of its metric, as shown in reports."""

    @property
    def head(self) -> HeadSpec:
        """The head as the kernels know it: kind, number of outputs, options."""


def metric_of(task: Task) -> Metric:
    """Return the metric of the task's kind with the task's name for it; else, for a class of your own, the default."""
    kind, name = task.head.kind, task.metric
    for metric in kind.metrics:
        if metric.name == name:
            return metric
    return kind.metric

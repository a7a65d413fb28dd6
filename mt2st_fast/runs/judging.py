"""What the main task of a run is judged by: a metric of its kind, or F1 by spans where its classes are their tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from torch import Tensor

from mt2st_fast.data.corpus import Corpus, Splits
from mt2st_fast.errors import InputError
from mt2st_fast.model.tasks import Task
from mt2st_fast.serving.spans import OUTSIDE, are_span_tags, span_score
from mt2st_fast.spelling import listed

SPAN_F1 = "span_f1"


class SpanF1:
    """F1 by spans of a tagging of a corpus, as conlleval counts: a metric for a `Trainer` that evaluates on it.

    tags: the classes. corpus: the one that is evaluated, as spans end where its sentences do.
    """

    __name__ = SPAN_F1  # as of a function: what messages and checkpoints call it

    def __init__(self, tags: Sequence[str], task: str, corpus: Corpus) -> None:
        self._tags, self._task, self._corpus = tuple(tags), task, corpus

    def __call__(self, predictions: Tensor, targets: Tensor) -> float:
        """Return F1 of predictions (n, C) and classes (n,) of the corpus's labelled words; NaN without a span."""
        labelled = self._corpus.column(self._task).labelled()
        present, found = np.zeros((2, len(labelled)), np.int64)
        present[labelled], found[labelled] = targets.numpy(), predictions.argmax(1).numpy()
        return span_score(self._tags, present, found, labelled, self._corpus.bounds).f1


def is_by_spans(splits: Splits) -> bool:
    """Return whether the main task's classes are tags of spans of words."""
    column = splits.train.column(str(splits.main))
    return column.kind == "classes" and splits.train.level == "token" and are_span_tags(column.class_names)


def metrics_of(splits: Splits, task: Task) -> list[str]:
    """Return the names of the metrics that the main task may be judged by, the default first."""
    return [*(metric.name for metric in task.head.kind.metrics), *([SPAN_F1] if is_by_spans(splits) else [])]


def judged_by(metric: str | None, splits: Splits, task: Task) -> Task:
    """Return the main task with this metric, or as it is for None and SPAN_F1, which is none of the task's own.

    Raises InputError for a metric that is not for such a task.
    """
    if metric is None or metric == task.metric:
        return task
    if metric not in (known := metrics_of(splits, task)):
        raise InputError(
            f"metric {metric} is not available for the main task {splits.main}{_no_spans(metric, splits)}; available: "
            f"{', '.join(known)}"
        )
    return task if metric == SPAN_F1 else cast(Task, replace(cast(Any, task), metric=metric))


def _no_spans(metric: str, splits: Splits) -> str:
    """Name the classes that are no tags of spans, where others are; "" if there is no such reason."""
    column = splits.train.column(str(splits.main))
    if metric != SPAN_F1 or column.kind != "classes" or splits.train.level != "token":
        return ""
    others = [name for name in column.class_names if not are_span_tags((name, "B-X"))]
    alone = len(others) == column.size - (OUTSIDE in column.class_names)
    return "" if alone else f", as some of its classes are no tags of spans such as B-NP: {listed(others, 3)}"

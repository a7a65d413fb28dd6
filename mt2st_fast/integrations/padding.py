"""Labels of rows of different lengths as one tensor per task, in which missing labels are marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.pooling import pooling_of
from mt2st_fast.model.tasks import Task


class TokenSpan(NamedTuple):
    """Where a row's tokens are among the places of a padded batch."""

    first: int
    tokens: int
    places: int


def label_batch(
    tasks: Mapping[str, Task], rows: Sequence[Mapping[str, Any]], spans: Sequence[TokenSpan]
) -> dict[str, Tensor]:
    """Return labels (N, places) or (N,) by task, for values with a last axis C; labels that are None or missing are
    marked.

    The mark is the task's ignore_index for classes and NaN for values. Raises InputError for an unknown task and,
    naming task and row, for labels that do not fit.
    """
    unknown = sorted({name for row in rows for name in row} - set(tasks))
    if unknown:
        raise InputError(
            f"there are labels of {unknown[0]}, which is not a task; available: {', '.join(tasks)}"
        )
    places = list(enumerate(zip(rows, spans, strict=True)))
    return {
        name: torch.stack(
            [_placed(f"{name} in row {i}", task, row.get(name), span) for i, (row, span) in places]
        )
        for name, task in tasks.items()
    }


def on_tokens(task: Task) -> bool:
    """Return whether a task has labels (N, T) of tokens, and not one per row."""
    return pooling_of(task) == "none"


def with_active(heads: MultiTaskHeads, labels: Mapping[str, Any], ids: Any) -> Mapping[str, Any]:
    """Return labels of a batch of tokens (N, T), with missing ones of the main task if they are of no active task.

    So the batch has a loss of 0, where another batch of the step, maybe in another process, has labels.
    """
    main = heads.main
    if any(name in labels for name in heads.active) or main not in heads.tasks or not isinstance(ids, Tensor):
        return labels
    task = heads.tasks[main]
    shape = (len(ids), ids.shape[1]) if on_tokens(task) else (len(ids),)
    return {**labels, main: all_missing(task, shape).to(ids.device)}


def mark_of(task: Task) -> float:
    """Return what stands for a missing label: the ignore_index of classes, NaN for values."""
    return task.head.ignore_index if task.head.kind.takes_classes else math.nan


def all_missing(task: Task, shape: tuple[int, ...]) -> Tensor:
    """Return labels of this shape, for values with a last axis C, all of which are missing."""
    if task.head.kind.takes_classes:
        return torch.full(shape, task.head.ignore_index, dtype=torch.int64, device="cpu")
    return torch.full((*shape, task.head.size), math.nan, dtype=torch.float32, device="cpu")


def _placed(where: str, task: Task, labels: Any, span: TokenSpan) -> Tensor:
    """Place one row's labels of a task among all places, or its single label."""
    head, of_tokens = task.head, on_tokens(task)
    classes, of_one = head.kind.takes_classes, () if head.kind.takes_classes else (head.size,)
    placed = all_missing(task, (span.places,) if of_tokens else ())
    dtype = placed.dtype
    if labels is None:
        return placed
    given = _tensor_of(labels, where)
    if classes:
        given = _classes(given, head.ignore_index, where)
    wanted = ((span.tokens,) if of_tokens else ()) + of_one
    if of_one == (1,) and given.shape == wanted[:-1]:
        given = given.unsqueeze(-1)
    if given.shape != wanted:
        each = "one per token" if of_tokens else "one per row"
        raise InputError(f"the labels of {where} must be {wanted}, {each}, not {tuple(given.shape)}")
    if not of_tokens:
        return given.to(dtype)
    placed[span.first : span.first + span.tokens] = given.to(dtype)
    return placed


def _tensor_of(labels: Any, where: str) -> Tensor:
    """Return labels as a tensor, in which those that are None are NaN."""
    if isinstance(labels, list) and any(label is None for label in labels):
        labels = [math.nan if label is None else label for label in labels]
    try:
        if isinstance(labels, np.ndarray):
            return torch.tensor(labels, device="cpu")  # a copy: arrays of data sets cannot be written to
        return torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"the labels of {where} must be numbers of one shape, not {labels!r}") from None


def _classes(given: Tensor, ignore_index: int, where: str) -> Tensor:
    """Return classes as integers; tables hold whole numbers as floats as soon as one, NaN, is missing."""
    if given.is_floating_point():
        missing = given.isnan()
        whole = given.masked_fill(missing, 0).to(torch.int64)
        if bool(((whole == given) | missing).all()):
            return whole.masked_fill(missing, ignore_index)
    if given.is_floating_point() or given.dtype == torch.bool:
        raise InputError(f"the labels of {where} must be whole numbers, not {given.dtype}")
    return given

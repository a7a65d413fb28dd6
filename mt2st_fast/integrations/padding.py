"""Labels of rows of different lengths as one tensor a task, in which what is missing is marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.model.pooling import pooling_of
from mt2st_fast.model.tasks import Task


def label_batch(
    tasks: Mapping[str, Task],
    rows: Sequence[Mapping[str, Any]],
    lengths: Sequence[int],
    longest: int,
    *,
    left: bool,
    ignored: int,
) -> dict[str, Tensor]:
    """(N, longest) or (N,) by task, with a last axis C for values; a label that is None or missing is marked.

    left: padding stands before the tokens. ignored: what marks a class that is missing, for a task with the usual
    ignore_index. Raises InputError for an unknown task and, naming task and row, for labels that do not fit.
    """
    unknown = sorted({name for row in rows for name in row} - set(tasks))
    if unknown:
        raise InputError(f"labels of {unknown[0]}, which is no task; there are {', '.join(tasks)}")
    return {
        name: torch.stack(
            [
                _placed(
                    name, task, row.get(name), n, longest, left=left, missing=_missing(task, ignored), row=i
                )
                for i, (row, n) in enumerate(zip(rows, lengths, strict=True))
            ]
        )
        for name, task in tasks.items()
    }


def _missing(task: Task, ignored: int) -> float:
    """What marks a label that is not there."""
    if not task.head.kind.takes_classes:
        return float("nan")
    own = int(task.head.ignore_index)
    return ignored if own == -100 else own


def _placed(
    name: str, task: Task, labels: Any, n: int, longest: int, *, left: bool, missing: float, row: int
) -> Tensor:
    """One row's labels of one task among `longest` places, or its one label."""
    classes, on_tokens = task.head.kind.takes_classes, pooling_of(task) == "none"
    shape = ((longest,) if on_tokens else ()) + (() if classes else (task.head.size,))
    dtype = torch.int64 if classes else torch.float32
    placed = torch.full(shape, missing, dtype=dtype)
    if labels is None:
        return placed
    try:
        given = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"the labels of {name} in row {row} are no numbers of one shape: {labels!r}"
        ) from None
    if classes and given.is_floating_point():
        raise InputError(f"the labels of {name} in row {row} must be whole numbers, not {given.dtype}")
    if not classes and task.head.size == 1 and given.dim() == len(shape) - 1:
        given = given.unsqueeze(-1)
    wanted = ((n,) if on_tokens else ()) + shape[on_tokens:]
    if given.shape != wanted:
        raise InputError(
            f"the labels of {name} in row {row} must be {tuple(wanted)}, {'one a token' if on_tokens else 'one a row'}, "
            f"not {tuple(given.shape)}"
        )
    if not on_tokens:
        return given.to(dtype)
    placed[longest - n if left else 0 : longest if left else n] = given.to(dtype)
    return placed

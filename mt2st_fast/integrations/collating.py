"""Rows of a tokenizer with labels of several tasks, padded to a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.integrations.padding import TokenSpan, label_batch
from mt2st_fast.model.tasks import Task

LABELS = "labels"


@dataclass
class DataCollatorForMultiTask:
    """Pads rows of a tokenizer that have "labels": {task: labels}, or labels under the names of tasks, as a data set
    has a column per task; those of a task may be None or missing.

    A task on tokens has one label per token, a task that pools one per row. Places without a label are marked: by the
    task's ignore_index for classes, by NaN for values.
    """

    tokenizer: Any
    tasks: Mapping[str, Task]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return {inputs, "labels": {task: tensor}}. Raises InputError, naming task and row, for labels of another
        length, and for columns of texts, which are no inputs.
        """
        labels = [self._labels(row, i) for i, row in enumerate(rows)]
        inputs = [
            {key: value for key, value in row.items() if key != LABELS and key not in self.tasks}
            for row in rows
        ]
        _check_columns(inputs)
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        places = batch["input_ids"].shape[1]
        left = getattr(self.tokenizer, "padding_side", "right") == "left"
        spans = [
            TokenSpan(places - n if left else 0, n, places) for n in (len(row["input_ids"]) for row in inputs)
        ]
        batch[LABELS] = label_batch(self.tasks, labels, spans)
        return batch

    def _labels(self, row: Mapping[str, Any], i: int) -> dict[str, Any]:
        """Return one row's labels by task."""
        given = row.get(LABELS)
        if not (given is None or isinstance(given, Mapping)):
            raise InputError(f"the labels of row {i} must be {{task: labels}}, not {given!r}")
        found = dict(given or {})
        for name in self.tasks:
            if name not in row:
                continue
            if found.get(name) is not None and row[name] is not None:
                raise InputError(
                    f'row {i} has labels of {name} twice: in "{LABELS}", and in a column of its own; remove one'
                )
            found[name] = row[name] if found.get(name) is None else found[name]
        return found


def _check_columns(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError, naming them, for columns of texts: pad would only say that it cannot make a tensor."""
    columns = rows[0] if rows else {}
    texts = [key for key, value in columns.items() if isinstance(_innermost(value), str)]
    if texts:
        raise InputError(
            f"the rows have columns of texts, which are no inputs of an encoder: {', '.join(texts)}; remove them: "
            f"rows.remove_columns({texts})"
        )


def _innermost(value: Any) -> Any:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value


def check_labels_arrive(loader: Any) -> None:
    """Raise InputError where a loader's rows reach a DataCollatorForMultiTask without a column that has labels.

    transformers' own Trainer removes the columns that its model has no parameter for, such as those of tasks.
    """
    collate, columns = getattr(loader, "collate_fn", None), _columns(loader)
    if not isinstance(collate, DataCollatorForMultiTask) or columns is None:
        return
    if LABELS not in columns and not any(name in columns for name in collate.tasks):
        raise InputError(
            f'the rows to train on have no column "{LABELS}" and none of a task ({", ".join(collate.tasks)}); if they '
            "had, transformers removed them: use MultiTaskTrainer, or remove_unused_columns=False"
        )


def _columns(loader: Any) -> list[str] | None:
    """Return the columns of a loader's data set; None where it does not tell."""
    columns = getattr(getattr(loader, "dataset", None), "column_names", None)
    return columns if isinstance(columns, list) else None

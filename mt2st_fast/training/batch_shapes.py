"""The shapes in which batches come: (inputs, {task: target}), and the dictionaries of Hugging Face."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

LABELS = "labels"  # where a collator puts {task: target}
WANTED = "(inputs, {task: target}), or a dictionary with the tasks' targets under their names"


def paired(batch: Any, tasks: Collection[str]) -> Any:
    """A dictionary as (inputs, {task: target}), and anything else, or a dictionary without a target, as it is.

    Targets are what stands under the name of a task, and in a dictionary under "labels". Of the others one alone is the
    inputs, and several are a dictionary of them.
    """
    if not isinstance(batch, Mapping):
        return batch
    inputs = {key: value for key, value in batch.items() if key not in tasks}
    targets = {name: batch[name] for name in tasks if name in batch}
    if isinstance(inputs.get(LABELS), Mapping):
        targets |= inputs.pop(LABELS)
    if not targets or not inputs:
        return batch
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs, targets


class Paired:
    """Held-out batches, each as `paired` makes it; can be iterated as often as they."""

    def __init__(self, batches: Iterable[Any], tasks: Collection[str]) -> None:
        self._batches, self._tasks = batches, tasks

    def __len__(self) -> int:
        """How many; raises TypeError where they do not know, as `len` of them does."""
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (paired(batch, self._tasks) for batch in self._batches)


def length_of(batches: Any) -> int | None:
    """How many batches there are; None of those that do not know."""
    try:
        return len(batches)
    except TypeError:  # of a DataLoader whose data set is a stream, too
        return None


def shape_of(batch: Any) -> str:
    """A batch as a message shows it."""
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key!r}: {type(value).__name__}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(type(part).__name__ for part in batch) + ")"
    return type(batch).__name__

"""The forms of a batch: (inputs, {task: target}), and the dictionaries of Hugging Face."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

LABELS = "labels"  # where a collator puts {task: target}
WANTED = "(inputs, {task: target}), or a dictionary with the tasks' targets under their names"


def paired(batch: Any, tasks: Collection[str]) -> Any:
    """Return a dictionary as (inputs, {task: target}); anything else, or a dictionary without a target, is unchanged.

    Targets are the values under the names of tasks, and in a dictionary under "labels". The inputs are what remains: a
    single value by itself, several as a dictionary.
    """
    if type(batch) is tuple or not isinstance(batch, Mapping):  # the latter is slow
        return batch
    inputs = {key: value for key, value in batch.items() if key not in tasks}
    targets = {name: batch[name] for name in tasks if name in batch}
    if isinstance(inputs.get(LABELS), Mapping):
        targets |= inputs.pop(LABELS)
    if not targets or not inputs:
        return batch
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs, targets


class Paired:
    """Held-out batches, each converted by `paired`; can be iterated as often as the original."""

    def __init__(self, batches: Iterable[Any], tasks: Collection[str]) -> None:
        self._batches, self._tasks = batches, tasks

    def __len__(self) -> int:
        """Return the number of batches; raises TypeError if it is unknown, as `len` does."""
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        return (paired(batch, self._tasks) for batch in self._batches)


def length_of(batches: Any) -> int | None:
    """Return the number of batches; None if it is unknown."""
    try:
        return len(batches)
    except TypeError:  # also for a DataLoader whose data set is a stream
        return None


def shape_of(batch: Any) -> str:
    """Describe a batch for a message."""
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key!r}: {type(value).__name__}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(type(part).__name__ for part in batch) + ")"
    return type(batch).__name__

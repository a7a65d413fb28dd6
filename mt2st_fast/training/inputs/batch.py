"""A batch of a step: what it is made of, and its tensors in any nesting, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.data.resident import ResidentBatch

PlainBatch = tuple[Any, dict[str, Tensor]]
Batch = PlainBatch | ResidentBatch

MOST_LOOKED_AT = 512  # rows for measurements without training: a step's worth


def materialised(batch: Batch) -> PlainBatch:
    """Return (inputs, {task: target}) of a batch; a batch given by its row numbers is gathered on its device."""
    return batch.materialise() if isinstance(batch, ResidentBatch) else batch


def some_rows(batch: Batch) -> PlainBatch:
    """Return at most MOST_LOOKED_AT rows, spread over a batch, if its inputs are a tensor of rows; else all of it."""
    inputs, targets = materialised(batch)
    if not isinstance(inputs, Tensor) or any(len(target) != len(inputs) for target in targets.values()):
        return inputs, targets
    # Neighbouring rows often share a text, which has fewer different words than a shuffled training batch.
    chosen = slice(None, None, max(1, -(-len(inputs) // MOST_LOOKED_AT)))
    return inputs[chosen].contiguous(), {
        name: target[chosen].contiguous() for name, target in targets.items()
    }


def tasks_of(batch: Batch) -> tuple[str, ...]:
    """Return the tasks that a batch has targets for."""
    return batch.tasks if isinstance(batch, ResidentBatch) else tuple(batch[1])


def with_tasks(batch: Batch, tasks: tuple[str, ...]) -> Batch:
    """Return a batch with the targets of some of its tasks."""
    if isinstance(batch, ResidentBatch):
        return batch.with_tasks(tasks)
    inputs, targets = batch
    return inputs, {name: targets[name] for name in tasks}


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return `value` with each tensor in any nesting of tuples, lists and dicts replaced, in a fixed order."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, ResidentBatch):
        return value.with_rows(function(value.rows))
    if isinstance(value, Mapping):
        return {key: map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_tensors(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def copies_of(batches: list[Batch]) -> list[Batch]:
    """Return batches with copies of their tensors; data that stays where it is has none."""
    return [
        batch if isinstance(batch, ResidentBatch) else map_tensors(batch, torch.clone) for batch in batches
    ]


def have_same_tensors(one: Batch, other: Batch) -> bool:
    """Return whether two batches of the same structure hold the same bits."""
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for batch, tensors in zip((one, other), found, strict=True):
        map_tensors(batch, lambda tensor, tensors=tensors: tensors.append(tensor) or tensor)  # type: ignore[misc]
    return len(found[0]) == len(found[1]) and all(map(_have_same_bits, *found))


def _have_same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether tensors are alike; those of other layouts, which cannot be compared here, count as such."""
    if one.is_nested or one.layout is not torch.strided:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())  # NaN is a missing label


def to_device(inputs: Any, device: torch.device) -> Any:
    """Move the tensors in any nesting of tuples, lists and dicts, without waiting."""
    if type(inputs) is Tensor and inputs.device == device:  # nearly always on a CPU
        return inputs
    if type(inputs) is dict and all(type(t) is Tensor and t.device == device for t in inputs.values()):
        return inputs
    return map_tensors(inputs, lambda tensor: tensor.to(device, non_blocking=True))

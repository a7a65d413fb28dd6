"""Quality of each task on held-out batches, measured by the metric of its kind of head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.modes import evaluating
from mt2st_fast.model.over_tasks import check_target, flat_target
from mt2st_fast.model.sharded import let_go_of_gathered
from mt2st_fast.model.task_features import TaskFeatures, features_and_mask, features_of
from mt2st_fast.model.tasks import metric_of
from mt2st_fast.training.inputs.batch import Batch, materialised, to_device
from mt2st_fast.training.inputs.encoding import encode
from mt2st_fast.training.inputs.shapes import paired
from mt2st_fast.training.own_metrics import Metric, OwnMetric


class Shortcuts(Protocol):
    """What an engine can compute for held-out batches without the encoder's own forward pass; None if it cannot."""

    def count_correct(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """(3,) for each of these tasks: correct targets, all targets, and targets outside its classes."""

    def features(self, inputs: Any) -> Tensor | None:
        """Return the encoder's features for the inputs."""


@torch.no_grad()
def evaluate(
    encoder: nn.Module,
    heads: MultiTaskHeads,
    batches: Iterable[Batch],
    tasks: Sequence[str],
    device: torch.device,
    shortcuts: Shortcuts | None = None,
    add_up: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda sums: sums,
    metrics: Mapping[str, Metric] = MappingProxyType({}),
) -> dict[str, float]:
    """Return the metric of each task in `tasks` over all batches; NaN if no row has a target.

    shortcuts: an engine that may be faster than the encoder. Sums stay on the device until the end; add_up: combines
    the sums of several processes. metrics: by task, instead of that of its kind. Restores the encoder's training mode.
    """
    sums: dict[str, Tensor] = {}
    own = {task: OwnMetric(task, metrics[task], heads, device) for task in tasks if task in metrics}
    try:
        with evaluating(encoder):
            for batch in _on_device(batches, device):
                inputs, targets = materialised(paired(batch, heads.names))
                inputs = to_device(inputs, device)
                _check_known(targets, heads)
                asked = {task: to_device(targets[task], device) for task in tasks if task in targets}
                found = None if own or shortcuts is None else shortcuts.count_correct(inputs, asked)
                if found is None:
                    known = None if shortcuts is None else shortcuts.features(inputs)
                    features, mask = encode(encoder, inputs) if known is None else features_and_mask(known)
                    found = {}
                    for task, target in asked.items():
                        if task in own:
                            own[task].update(*_rows(heads, task, features, target, mask))
                        else:
                            found[task] = _sums(heads, task, features, target, mask)
                for task, parts in found.items():
                    sums[task] = sums[task] + parts if task in sums else parts
    finally:
        let_go_of_gathered(encoder)
    sums = add_up(sums)
    values = {task: _value(heads, task, sums[task]) for task in sums}
    values |= {task: metric.value() for task, metric in own.items()}
    return {task: values.get(task, float("nan")) for task in tasks}


def _check_known(targets: Mapping[str, Any], heads: MultiTaskHeads) -> None:
    if not any(name in targets for name in heads.names):
        raise InputError(
            f"a held-out batch has no target of any task ({', '.join(heads.names)}); it has "
            f"{', '.join(targets) or 'none'}"
        )


def _on_device(batches: Iterable[Batch], device: torch.device) -> Iterable[Batch]:
    """Return the batches as views of data on the device, if they offer that: nothing is then copied."""
    if device.type == "cpu" or not hasattr(batches, "resident_on"):
        return batches
    resident: Iterable[Batch] | None = batches.resident_on(device)
    return batches if resident is None else resident


def _value(heads: MultiTaskHeads, task: str, sums: Tensor) -> float:
    """Return the metric. Raises InputError if a class was out of range: as in training, the labels may be wrong."""
    if heads.is_open_task(task):
        return heads.open_task(task).value(sums)
    head, metric = heads.tasks[task].head, metric_of(heads.tasks[task])
    if head.takes_all_targets:
        return metric.value(*sums.tolist())
    # All at once: each call of torch would take longer than the rest of it.
    *parts, of_outside = sums.tolist()
    if n_outside := max(of_outside) if isinstance(of_outside, list) else of_outside:
        one = "one lies" if n_outside == 1 else f"each of {int(n_outside)} lies"
        raise InputError(f"held-out targets of {task}: {one} outside {head.wanted_targets}")
    return metric.value(*parts)


def _sums(
    heads: MultiTaskHeads, task: str, features: Tensor | TaskFeatures, target: Any, mask: Tensor | None
) -> Tensor:
    """(n,) or (n, C) float64 sums behind a task's metric; the last may be the number of targets out of range."""
    if heads.is_open_task(task):
        own, mask = features_of(features, task, mask)
        return heads.open_task(task).sums(own, target, mask)
    logits, target = _rows(heads, task, features, target, mask)
    head = heads.tasks[task].head
    parts = metric_of(heads.tasks[task]).sums(logits, target, head)
    if (is_outside := head.is_outside(target)) is not None:
        parts = (*parts, is_outside.sum())
    return torch.stack(torch.broadcast_tensors(*(part.double() for part in parts)))


def _rows(
    heads: MultiTaskHeads, task: str, features: Tensor | TaskFeatures, target: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits (N, C), and targets of N rows as the head takes them. Raises what training raises for invalid ones."""
    logits, head = heads.logits(features, task, mask), heads.tasks[task].head
    check_target(task, target, head)
    target = head.comparable(flat_target(task, target, head, logits.shape[:-1]))
    return logits.flatten(0, -2), target

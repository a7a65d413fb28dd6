"""Quality of each task on held-out batches: accuracy, micro F1 or R²."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import Classification, MultiLabel, Task
from mt2st_fast.training.sources import to_device


@torch.no_grad()
def evaluate(
    encoder: nn.Module,
    heads: MultiTaskHeads,
    batches: Iterable[tuple[Any, dict[str, Tensor]]],
    tasks: Sequence[str],
    device: torch.device,
) -> dict[str, float]:
    """The metric of each task in `tasks` over all batches; NaN where no row carries a target.

    Sums stay on the device until the end. Restores the training mode of the encoder.
    """
    was_training = encoder.training
    encoder.eval()
    sums = {task: torch.zeros(4, dtype=torch.float64, device=device) for task in tasks}
    try:
        for inputs, targets in batches:
            features = encoder(to_device(inputs, device))
            for task in tasks:
                if task in targets:
                    logits = heads.logits(features, task).flatten(0, -2)
                    target = to_device(targets[task], device)
                    sums[task] += _sums(heads.tasks[task], logits, target.reshape(len(logits), -1))
    finally:
        encoder.train(was_training)
    return {task: _metric(heads.tasks[task], *total.tolist()) for task, total in sums.items()}


def _sums(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """(4,) float64 sums from which the metric is made; logits (N, C), target (N, 1) or (N, C)."""
    zero = torch.zeros((), dtype=torch.float64, device=logits.device)
    if isinstance(task, Classification):
        target = target.squeeze(1)
        right = logits.argmax(dim=1) == target
        valid = target != task.ignore_index
        parts = [(right & valid).sum(), valid.sum(), zero, zero]
    elif isinstance(task, MultiLabel):
        predicted, true, valid = logits > 0, target > 0.5, ~torch.isnan(target)
        parts = [
            (predicted & true & valid).sum(),
            (predicted & ~true & valid).sum(),
            (~predicted & true & valid).sum(),
            zero,
        ]
    else:
        valid = ~torch.isnan(target)
        value, error = target[valid].double(), (logits[valid] - target[valid]).double()
        parts = [(error**2).sum(), value.sum(), (value**2).sum(), valid.sum()]
    return torch.stack([part.double() for part in parts])


def _metric(task: Task, a: float, b: float, c: float, d: float) -> float:
    if isinstance(task, Classification):
        return a / b if b else float("nan")
    if isinstance(task, MultiLabel):
        return 2 * a / (2 * a + b + c) if a + b + c else float("nan")
    variation = c - b * b / d if d else 0.0
    return 1.0 - a / variation if variation > 0 else float("nan")

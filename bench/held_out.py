"""Held-out rows: how many of them every task hits, by the Trainer and by the loop that people write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.accuracy import InaccurateError
from bench.step_cases import Step, trainer_step
from bench.step_models import StepModel
from mt2st_fast import MultiTask, Trainer

CANDIDATES = ("ours", "eager")
WARMING_STEPS = 4
# Of all rows, those whose best two logits may be so near to each other that their order is one of rounding.
MOST_DIFFERENT = 1e-3


def held_out_passes(model: StepModel) -> dict[str, Step]:
    """An evaluation of all tasks on the model's held-out batch, in the midst of a run.

    Raises InaccurateError where the two do not agree.
    """
    assert model.held_out is not None
    trainer, step = trainer_step(model, MultiTask())
    for _ in range(WARMING_STEPS):
        step()
    batch = model.held_out
    passes: dict[str, Any] = {
        "ours": lambda: trainer.evaluate([batch]),
        "eager": lambda: _by_torch(trainer, *batch),
    }
    found, expected = (passes[name]() for name in CANDIDATES)
    for task, value in expected.items():
        if abs(found[task] - value) > MOST_DIFFERENT:
            raise InaccurateError(f"{task}: {found[task]:.5f} of the held-out rows, and {value:.5f} by torch")
    return passes


@torch.no_grad()
def _by_torch(trainer: Trainer, inputs: Tensor, targets: dict[str, Tensor]) -> dict[str, float]:
    """The share of labelled rows that each task's own nn.Linear hits."""
    trainer.encoder.eval()
    features = trainer.encoder(inputs)
    found = {}
    for name, target in targets.items():
        labelled = target != trainer.heads.tasks[name].head.ignore_index
        hits = (trainer.heads.linear(name)(features).argmax(1) == target) & labelled
        found[name] = (hits.sum() / labelled.sum()).item()
    trainer.encoder.train()
    return found

"""Evaluation on held-out rows: the hits of every task, by the Trainer and by an ordinary loop."""

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
# The share of rows whose two best logits may be so close that rounding decides their order.
MOST_DIFFERENT = 1e-3


def held_out_passes(model: StepModel) -> dict[str, Step]:
    """Return evaluations of all tasks on the model's held-out batch, as during a run.

    Raises InaccurateError where the two do not agree.
    """
    assert model.held_out is not None
    trainer, step = trainer_step(model, MultiTask())
    for _ in range(WARMING_STEPS):
        step()
    batch = model.held_out
    passes: dict[str, Any] = {
        "ours": lambda: trainer.evaluate([batch]),
        "eager": lambda: by_torch(trainer, *batch),
    }
    found, expected = (passes[name]() for name in CANDIDATES)
    for task, value in expected.items():
        if abs(found[task] - value) > MOST_DIFFERENT:
            raise InaccurateError(
                f"{task}: {found[task]:.5f} of the held-out rows, but {value:.5f} with torch"
            )
    return passes


@torch.no_grad()
def by_torch(trainer: Trainer, inputs: Tensor, targets: dict[str, Tensor]) -> dict[str, float]:
    """Return the share of labelled rows that each task's own nn.Linear predicts correctly."""
    trainer.encoder.eval()
    features = trainer.encoder(inputs)
    found = {}
    for name, target in targets.items():
        labelled = target != trainer.heads.tasks[name].head.ignore_index
        hits = (trainer.heads.linear(name)(features).argmax(1) == target) & labelled
        found[name] = (hits.sum() / labelled.sum()).item()
    trainer.encoder.train()
    return found

"""What a schedule may be shown of training: losses, gradients, evaluations, and how much each part of a model matters.

Data alone; `training/phases/observations.py` and `training/phases/importance.py` measure it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Measure = Literal["fisher", "taylor"]  # of importance; the formulas are in training/phases/importance.py


@dataclass(frozen=True)
class TaskGradient:
    """A task's gradient on the features of one batch: its 2-norm, and the cosine with the main task's (0 for none).

    row_norm: the root mean square, over labelled rows, of each row's contribution to the gradient, times the number of
    rows: for a mean loss it does not grow with the batch. learnt: how far its loss is below the loss against the labels
    of other labelled rows, as a share of that: 0 if it predicts the same for all rows, 1 if it knows every label; None
    if unknown: for tasks without a head, and for fewer than two labels.
    """

    norm: float
    cosine: float
    row_norm: float = 0.0
    learnt: float | None = None


@dataclass(frozen=True)
class Observation:
    """Mean losses by active task over the steps since the previous observation, up to and including `step`.

    gradients: of the unweighted losses, on the last step's batch with the encoder in evaluation mode; None if the
    schedule does not want them, if a phase has just ended, and for batches without the main task. epoch: passes over
    the main task's data so far, a whole number if one has just ended.
    """

    step: int
    losses: Mapping[str, float]
    gradients: Mapping[str, TaskGradient] | None = None
    epoch: float = 0.0


@dataclass(frozen=True)
class HeldOut:
    """What was measured on held-out batches after `step` steps, `epoch` epochs: the metric of every active task.

    gradients: as in `Observation`, on some rows of one held-out batch, a different one each time. freshness: what the
    rows of the last training step still teach the main task: its row_norm on them, over its row_norm on held-out rows.
    It is about 1 if the task learns from both alike, and tends to 0 as it memorizes its training rows; None if unknown.
    rate_left: the learning rate over that of the first step, if it falls linearly to zero; else None. share_done: the
    share of the run's steps; None if unknown. self_training: whether rows without a main label get one when the main
    task is alone. labelled_by: the tasks by whose labels they get it then, beside the model.
    """

    step: int
    main: str
    metrics: Mapping[str, float]
    gradients: Mapping[str, TaskGradient] | None = None
    freshness: float | None = None
    epoch: float = 0.0
    rate_left: float | None = None
    share_done: float | None = None
    self_training: bool = False
    labelled_by: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ModelPart:
    """Parameters that are frozen together; rows: (V,) bool, only these rows of the one table.

    cost: how many of its numbers a step moves. task: the task if it is a head, None for a part of the encoder.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    cost: float
    rows: Tensor | None = None
    task: str | None = None


@dataclass(frozen=True, eq=False)
class Importances:
    """The parts of a model, and for each task the importance of each part, in the same order."""

    main: str
    parts: tuple[ModelPart, ...]
    by_task: Mapping[str, tuple[float, ...]]

    def shares(self, task: str) -> tuple[float, ...]:
        """Return each part's share of the total importance to one task; all 0 if nothing matters."""
        total = sum(self.by_task[task])
        return tuple(value / total if total else 0.0 for value in self.by_task[task])

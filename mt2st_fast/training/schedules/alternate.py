"""ATE-SG (arXiv 2312.16340): shared and task parameters train in turns, by epochs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count
from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment, Part, PerTask, check, value_of
from mt2st_fast.training.schedules.strategy import (
    AUX_WEIGHT,
    RunFacts,
    Strategy,
    StrategyOption,
    required,
)


@dataclass(frozen=True)
class Alternate(AuxiliaryWeights):
    """Epochs that train only what the tasks share, then epochs that train only their own parameters, and again.

    All on the joint loss at constant weights, by one optimizer that leaves alone what does not train: ATE-SG of
    Bellavia, Della Santa and Papini, "ATE-SG: Alternate Through the Epochs Stochastic Gradient for Multi-Task Neural
    Networks" (arXiv 2312.16340). Epochs of shared parameters compute no gradient of heads; epochs of task parameters
    run the encoder without gradient.
    """

    shared_epochs: int = 1
    task_epochs: int = 1
    weights: PerTask = 1.0

    def __post_init__(self) -> None:
        check_count(shared_epochs=self.shared_epochs, task_epochs=self.task_epochs)
        check("weights", self.weights, 0.0)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The constant weight."""
        return value_of(self.weights, task, 1.0)

    def part(self, moment: Moment) -> Part:
        """What trains. Raises InputError for a run that ends before task parameters have had a turn."""
        if moment.total_steps <= self.shared_epochs * moment.steps_per_epoch:
            raise InputError(
                f"Alternate trains no head before epoch {self.shared_epochs + 1}, and the run ends after "
                f"{moment.total_steps / moment.steps_per_epoch:g}: give more epochs, or fewer shared_epochs"
            )
        epoch = moment.step // moment.steps_per_epoch
        return "shared" if epoch % (self.shared_epochs + self.task_epochs) < self.shared_epochs else "tasks"

    @property
    def turns(self) -> str:
        """How they take turns."""
        return f"shared and task parameters in turns of {self.shared_epochs} and {self.task_epochs} epochs"


def build(values: Mapping[str, float | None], facts: RunFacts) -> Alternate:
    """By its options."""
    del facts
    return Alternate(
        int(required(values, "shared_epochs")),
        int(required(values, "task_epochs")),
        required(values, "aux_weight"),
    )


OPTIONS = (
    StrategyOption("shared_epochs", "epochs in a row that train the encoder alone", 1.0, low=1.0, whole=True),
    StrategyOption(
        "task_epochs", "epochs in a row that train the heads alone, after those", 1.0, low=1.0, whole=True
    ),
    AUX_WEIGHT,
)
STRATEGY = Strategy(
    "alternate", "all tasks; encoder and heads train in turns, by epochs (ATE-SG)", build, OPTIONS
)

"""SAT-SG (arXiv 2312.16340): shared and task parameters train in turns, by steps."""

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
class AlternateSteps(AuxiliaryWeights):
    """Steps that train only what the tasks share, then steps that train only their own parameters, and again.

    As `Alternate`, by mini-batches in place of epochs: SAT-SG of the same paper (arXiv 2312.16340).
    """

    shared_steps: int = 1
    task_steps: int = 1
    weights: PerTask = 1.0

    def __post_init__(self) -> None:
        check_count(shared_steps=self.shared_steps, task_steps=self.task_steps)
        check("weights", self.weights, 0.0)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The constant weight."""
        return value_of(self.weights, task, 1.0)

    def part(self, moment: Moment) -> Part:
        """What trains. Raises InputError for a run that ends before task parameters have had a turn."""
        if moment.total_steps <= self.shared_steps:
            raise InputError(
                f"AlternateSteps trains no head before step {self.shared_steps + 1}, and the run ends after "
                f"{moment.total_steps}: give more epochs, or fewer shared_steps"
            )
        return (
            "shared" if moment.step % (self.shared_steps + self.task_steps) < self.shared_steps else "tasks"
        )

    @property
    def turns(self) -> str:
        """How they take turns."""
        return f"shared and task parameters in turns of {self.shared_steps} and {self.task_steps} steps"


def build(values: Mapping[str, float | None], facts: RunFacts) -> AlternateSteps:
    """By its options."""
    del facts
    return AlternateSteps(
        int(required(values, "shared_steps")),
        int(required(values, "task_steps")),
        required(values, "aux_weight"),
    )


OPTIONS = (
    StrategyOption("shared_steps", "steps in a row that train the encoder alone", 1.0, low=1.0, whole=True),
    StrategyOption(
        "task_steps", "steps in a row that train the heads alone, after those", 1.0, low=1.0, whole=True
    ),
    AUX_WEIGHT,
)
STRATEGY = Strategy(
    "alternate-steps", "all tasks; encoder and heads train in turns, by steps (SAT-SG)", build, OPTIONS
)

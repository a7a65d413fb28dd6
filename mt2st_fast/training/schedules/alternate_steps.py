"""SAT-SG (arXiv 2312.16340): shared parameters and task parameters train in turns, by steps."""

from __future__ import annotations

from dataclasses import dataclass

from mt2st_fast.numbers import check_count
from mt2st_fast.training.schedules.base import PerTask, check
from mt2st_fast.training.schedules.taking_turns import TakingTurns, strategy_of


@dataclass(frozen=True)
class AlternateSteps(TakingTurns):
    """Alternates between steps that train only the shared parameters and steps that train only the tasks' own.

    As `Alternate`, by mini-batches instead of epochs: SAT-SG of the same paper (arXiv 2312.16340).
    """

    shared_steps: int = 1
    task_steps: int = 1
    weights: PerTask = 1.0

    unit = "step"

    def __post_init__(self) -> None:
        check_count(shared_steps=self.shared_steps, task_steps=self.task_steps)
        check("weights", self.weights, 0.0)

    @property
    def lengths(self) -> tuple[int, int]:
        """Steps of each turn: (shared, task)."""
        return self.shared_steps, self.task_steps


STRATEGY = strategy_of("alternate-steps", "SAT-SG", "step", AlternateSteps)

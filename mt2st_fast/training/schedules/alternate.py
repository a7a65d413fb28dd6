"""ATE-SG (arXiv 2312.16340): shared parameters and task parameters train in turns, by epochs."""

from __future__ import annotations

from dataclasses import dataclass

from mt2st_fast.numbers import check_count
from mt2st_fast.training.schedules.alternate_steps import AlternateSteps
from mt2st_fast.training.schedules.base import PerTask, check
from mt2st_fast.training.schedules.taking_turns import TakingTurns, strategy_of


@dataclass(frozen=True)
class Alternate(TakingTurns):
    """Alternates between epochs that train only the shared parameters and epochs that train only the tasks' own.

    All epochs use the joint loss at constant weights, and one optimizer that leaves alone what does not train: ATE-SG
    of Bellavia, Della Santa and Papini, "ATE-SG: Alternate Through the Epochs Stochastic Gradient for Multi-Task Neural
    Networks" (arXiv 2312.16340). Epochs of shared parameters compute no gradient of heads; epochs of task parameters
    run the encoder without gradient.
    """

    shared_epochs: int = 1
    task_epochs: int = 1
    weights: PerTask = 1.0

    unit = "epoch"

    def __post_init__(self) -> None:
        check_count(shared_epochs=self.shared_epochs, task_epochs=self.task_epochs)
        check("weights", self.weights, 0.0)

    @property
    def lengths(self) -> tuple[int, int]:
        """Epochs of each turn: (shared, task)."""
        return self.shared_epochs, self.task_epochs

    def in_small(self) -> AlternateSteps:
        """Return a schedule with both turns within a few steps, for a run that only has to see each of them once."""
        return AlternateSteps(weights=self.weights)


STRATEGY = strategy_of("alternate", "ATE-SG", "epoch", Alternate)

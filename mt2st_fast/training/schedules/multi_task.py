"""MTL: all tasks train to the end."""

from __future__ import annotations

from dataclasses import dataclass

from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment, PerTask, check, value_of
from mt2st_fast.training.schedules.strategy import AUX_WEIGHT, Strategy, required


@dataclass(frozen=True)
class MultiTask(AuxiliaryWeights):
    """Constant weights for all tasks to the end (MTL)."""

    weights: PerTask = 1.0

    def __post_init__(self) -> None:
        check("weights", self.weights, 0.0)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return the constant weight."""
        return value_of(self.weights, task, 1.0)


STRATEGY = Strategy(
    "mtl",
    "all tasks to the end, at constant weights",
    lambda values, facts: MultiTask(weights=required(values, "aux_weight")),
    (AUX_WEIGHT,),
)

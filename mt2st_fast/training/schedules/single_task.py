"""STL: the main task only."""

from __future__ import annotations

from dataclasses import dataclass

from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment
from mt2st_fast.training.schedules.strategy import Strategy


@dataclass(frozen=True)
class SingleTask(AuxiliaryWeights):
    """The main task only (STL)."""

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return None: retired from the start."""
        return None


STRATEGY = Strategy("stl", "the main task only", lambda values, facts: SingleTask())

"""Switch (MT2ST, arXiv 2406.18038): every auxiliary task retires at one point."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mt2st_fast.training.schedules.base import (
    AuxiliaryWeights,
    Moment,
    PerTask,
    check,
    check_steps,
    value_of,
)
from mt2st_fast.training.schedules.strategy import AUX_WEIGHT, SWITCH_AT, RunFacts, Strategy, required


@dataclass(frozen=True, kw_only=True)
class Switch(AuxiliaryWeights):
    """Constant weights, then every auxiliary task retires at one point (arXiv 2406.18038, Switch).

    The point is a fraction of the run (`at`), or `at_epoch`, or `at_step`.
    """

    at: PerTask | None = None
    at_epoch: PerTask | None = None
    at_step: PerTask | None = None
    weights: PerTask = 1.0

    def __post_init__(self) -> None:
        given = [name for name in ("at", "at_epoch", "at_step") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"Switch takes one of at, at_epoch and at_step, not {' and '.join(given)}")
        if not given:
            object.__setattr__(self, "at", 0.6)
        if self.at is not None:
            check("at", self.at, 0.0, 1.0)
        if self.at_epoch is not None:
            check("at_epoch", self.at_epoch, 0.0)
        if self.at_step is not None:
            check_steps("at_step", self.at_step)
        check("weights", self.weights, 0.0)

    def switch_step(self, moment: Moment, task: str) -> float:
        """First step without the task; infinite for a task that a mapping does not name."""
        if self.at_step is not None:
            return value_of(self.at_step, task, math.inf)
        if self.at_epoch is not None:
            return value_of(self.at_epoch, task, math.inf) * moment.steps_per_epoch
        assert self.at is not None
        # 0.07 * 100 is a little more than 7 in floating point, and must not become step 8.
        return round(value_of(self.at, task, math.inf) * moment.total_steps, 6)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return the constant weight before the switch point, None after it."""
        return value_of(self.weights, task, 1.0) if moment.step < self.switch_step(moment, task) else None


def build(values: Mapping[str, float | None], facts: RunFacts) -> Switch:
    """Build it with a switch point that is a fraction of the run."""
    return Switch(at=required(values, "switch_at"), weights=required(values, "aux_weight"))


STRATEGY = Strategy(
    "switch", "constant weights, then all retire at once", build, (SWITCH_AT, AUX_WEIGHT), retires=True
)

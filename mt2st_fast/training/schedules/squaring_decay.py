"""Squaring decay: what the published code of MT2ST (arXiv 2406.18038) does."""

from __future__ import annotations

from dataclasses import dataclass

from mt2st_fast.training.schedules.base import (
    LEAST_WEIGHT,
    AuxiliaryWeights,
    Moment,
    PerTask,
    Unit,
    check,
    check_unit,
    value_of,
)
from mt2st_fast.training.schedules.strategy import FLOOR, Strategy, StrategyOption, required

ALPHA = 0.95


@dataclass(frozen=True, kw_only=True)
class SquaringDecay(AuxiliaryWeights):
    """weight = alpha^(2^t): the weight is squared every unit of time; a task below `floor` retires."""

    alpha: PerTask = ALPHA
    floor: PerTask = LEAST_WEIGHT
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        check("alpha", self.alpha, 0.0, 1.0)
        check("floor", self.floor, 0.0)
        check_unit(self.unit)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return the decayed weight; t = 0 gives alpha."""
        # 2^1024 overflows a float; alpha^(2^64) is 0 long before, or 1 for alpha = 1.
        weight = value_of(self.alpha, task, ALPHA) ** (2.0 ** min(moment.time(self.unit), 64.0))
        return weight if weight >= value_of(self.floor, task, LEAST_WEIGHT) else None


STRATEGY = Strategy(
    "squaring",
    "the weight is squared every epoch, down to the floor",
    lambda values, facts: SquaringDecay(alpha=required(values, "alpha"), floor=required(values, "floor")),
    (StrategyOption("alpha", "initial weight, squared every epoch", ALPHA, low=0.0, high=1.0), FLOOR),
    retires=True,
)

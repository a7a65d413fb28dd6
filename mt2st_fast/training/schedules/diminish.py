"""Diminish (MT2ST, arXiv 2406.18038): auxiliary weights decay exponentially."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mt2st_fast.errors import InputError
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
from mt2st_fast.training.schedules.strategy import (
    AUX_WEIGHT,
    FLOOR,
    SWITCH_AT,
    RunFacts,
    Strategy,
    StrategyOption,
    required,
)

MOST_NU = 10.0


@dataclass(frozen=True, kw_only=True)
class Diminish(AuxiliaryWeights):
    """weight = gamma * exp(-eta * t^nu); a task below `floor` retires (arXiv 2406.18038, Diminish)."""

    eta: PerTask
    gamma: PerTask = 1.0
    nu: PerTask = 1.0
    floor: PerTask = LEAST_WEIGHT
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        for name in ("eta", "gamma", "floor"):
            check(name, getattr(self, name), 0.0)
        check("nu", self.nu, 0.0, MOST_NU)
        check_unit(self.unit)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return the decayed weight; t = 0 gives gamma."""
        eta = value_of(self.eta, task, 0.0)
        t = moment.time(self.unit)
        exponent = eta * min(t, 1e30) ** value_of(self.nu, task, 1.0) if t > 0 else 0.0
        weight = value_of(self.gamma, task, 1.0) * math.exp(-exponent)
        return weight if weight >= value_of(self.floor, task, LEAST_WEIGHT) else None


def found_eta(values: Mapping[str, float | None], facts: RunFacts) -> dict[str, float]:
    """Return the given decay, or the one that reaches the floor where Switch would retire the task."""
    gamma, floor, nu = (required(values, name) for name in ("aux_weight", "floor", "nu"))
    eta = values["eta"]
    if eta is None:
        switch_at = required(values, "switch_at")
        if not 0.0 < floor < gamma or switch_at <= 0.0:
            raise InputError(
                f"diminish needs 0 < floor ({floor}) < aux-weight ({gamma}) and a positive "
                f"switch-at ({switch_at}) to find its decay; set those, or give eta"
            )
        # Solve gamma * exp(-eta t^nu) = floor for t = switch_at * epochs.
        eta = math.log(gamma / floor) / (switch_at * facts.epochs) ** nu
    return {"eta": eta}


def build(values: Mapping[str, float | None], facts: RunFacts) -> Diminish:
    """Build it with the decay that was given or found."""
    gamma, floor, nu = (required(values, name) for name in ("aux_weight", "floor", "nu"))
    return Diminish(eta=found_eta(values, facts)["eta"], gamma=gamma, nu=nu, floor=floor)


OPTIONS = (
    StrategyOption(
        "eta", "decay rate per epoch; by default weights reach the floor at --switch-at", None, low=0.0
    ),
    StrategyOption("nu", "exponent of time", 1.0, low=0.0, high=MOST_NU),
    AUX_WEIGHT,
    FLOOR,
    SWITCH_AT,
)
STRATEGY = Strategy(
    "diminish", "weights decay exponentially, down to the floor", build, OPTIONS, found_eta, retires=True
)

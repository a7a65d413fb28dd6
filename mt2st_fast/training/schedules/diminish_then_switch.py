"""Diminish, then Switch: weights decay, and the remaining tasks retire at one point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mt2st_fast.training.schedules import diminish as diminishing
from mt2st_fast.training.schedules import switch as switching
from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment
from mt2st_fast.training.schedules.diminish import Diminish
from mt2st_fast.training.schedules.strategy import RunFacts, Strategy
from mt2st_fast.training.schedules.switch import Switch


@dataclass(frozen=True, kw_only=True)
class DiminishThenSwitch(AuxiliaryWeights):
    """Weights decay as in `Diminish`, and the remaining tasks retire at the point of `Switch`."""

    diminish: Diminish
    switch: Switch

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return the decayed weight before the switch point, None after it."""
        if self.switch.auxiliary_weight(moment, task) is None:
            return None
        return self.diminish.auxiliary_weight(moment, task)


def build(values: Mapping[str, float | None], facts: RunFacts) -> DiminishThenSwitch:
    """Build both from the same options."""
    return DiminishThenSwitch(
        diminish=diminishing.build(values, facts), switch=switching.build(values, facts)
    )


STRATEGY = Strategy(
    "diminish-switch",
    "weights decay, and what is left retires at once",
    build,
    diminishing.OPTIONS,
    diminishing.found_eta,
    retires=True,
)

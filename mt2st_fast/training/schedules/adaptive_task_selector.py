"""Finish on what matters: after the auxiliary tasks retire, only the parts that matter to the main task train.

When the last auxiliary task retires, the importance of every part for the main task is measured on held-out batches
(see training/importance.py). The parts that matter least relative to their cost are frozen, until a single-task step
moves as few numbers as requested. A frozen part costs no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_within
from mt2st_fast.training.schedules import switch as switching
from mt2st_fast.training.schedules.abilities import (
    OBSERVING,
    Ability,
    Observing,
    ObservingHeldOut,
    Stateful,
    abilities_of,
    check_allowed,
    evidence_of,
    reasons_of,
)
from mt2st_fast.training.schedules.base import Moment, Schedule
from mt2st_fast.training.schedules.shown import HeldOut, Importances, Measure, Observation
from mt2st_fast.training.schedules.strategy import RunFacts, Strategy, StrategyOption, required
from mt2st_fast.training.schedules.switch import Switch

MEASURES = get_args(Measure)
SKIP = 0.7


@dataclass(kw_only=True)
class AdaptiveTaskSelector:
    """Runs the phases of another schedule, and trains only the parts that matter to the main task in the last one.

    schedule: which tasks train, and how much they weigh. skip: the share of the numbers moved by a single-task step
    that no longer move: parts are frozen in order of their importance per number, least important first, until they
    make up that share; the most important part always trains. measure: "fisher" or "taylor". Only Fisher can tell
    layers apart where layers are homogeneous (linear, ReLU): there sum g w is the same number for each of them, by
    Euler's theorem.

    Needs `fit(val=...)`. `history.selections` keeps what was measured and decided. In a run without an auxiliary task
    nothing retires, and nothing is frozen.

    Raises InputError for a share outside [0, 1], for an unknown measure, and for a schedule that does more than observe
    training and weigh tasks: one that learns its weights, trains parts in turns, or selects parts itself.
    """

    schedule: Schedule = field(default_factory=Switch)
    skip: float = SKIP
    measure: Measure = "fisher"

    def __post_init__(self) -> None:
        check_within(0.0, 1.0, skip=self.skip)
        if self.measure not in MEASURES:
            raise InputError(f"measure {self.measure!r} is unknown; available: {', '.join(MEASURES)}")
        check_allowed(
            self.schedule,
            OBSERVING,
            why_not="which AdaptiveTaskSelector cannot pass on; use a schedule that only sets active tasks and "
            "weights, such as Switch or AdaptiveSwitch",
        )

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Return the weights of the wrapped schedule."""
        return self.schedule.task_weights(moment, main, auxiliary)

    def select(self, found: Importances) -> list[str]:
        """Return the names of the parts to freeze; heads of retired tasks do not count."""
        parts = [part for part in found.parts if part.task in (None, found.main)]
        share_of = dict(zip((part.name for part in found.parts), found.shares(found.main), strict=True))
        parts.sort(key=lambda part: _by_number(share_of[part.name], part.cost))
        most = self.skip * sum(part.cost for part in parts)
        frozen: list[str] = []
        skipped = 0.0
        for part in parts[:-1]:
            if skipped >= most:
                break
            frozen.append(part.name)
            skipped += part.cost
        return frozen

    # --- everything that the wrapped schedule wants to observe is passed on ------------------------------

    @property
    def reasons(self) -> dict[str, str]:
        """Why tasks have retired, if the wrapped schedule says so."""
        return reasons_of(self.schedule)

    @property
    def evidence(self) -> list[str]:
        """What the wrapped schedule has decided, if it says so."""
        return evidence_of(self.schedule)

    @property
    def wants_gradients(self) -> bool:
        """Whether the wrapped schedule wants gradients."""
        return Ability.SEES_GRADIENTS in abilities_of(self.schedule)

    @property
    def wants_held_out_gradients(self) -> bool:
        """Whether the wrapped schedule wants gradients on held-out batches."""
        return Ability.SEES_HELD_OUT_GRADIENTS in abilities_of(self.schedule)

    def observe(self, observation: Observation) -> None:
        """Pass the observation on to the wrapped schedule."""
        if isinstance(self.schedule, Observing):
            self.schedule.observe(observation)

    def observe_held_out(self, seen: HeldOut) -> None:
        """Pass the evaluation on to the wrapped schedule."""
        if isinstance(self.schedule, ObservingHeldOut):
            self.schedule.observe_held_out(seen)

    def state_dict(self) -> dict[str, Any]:
        """Return the constructor arguments, and the state of the wrapped schedule."""
        state = dict(self.schedule.state_dict()) if isinstance(self.schedule, Stateful) else None
        return {**self._made_with(), "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned. Raises InputError if it was made with other arguments."""
        for name, value in self._made_with().items():
            if state[name] != value:
                raise InputError(
                    f"the checkpoint's AdaptiveTaskSelector was made with {name} {state[name]}, this one with "
                    f"{value}; use the same, or start a new run without resume"
                )
        if isinstance(self.schedule, Stateful):
            self.schedule.load_state_dict(state["state"])

    def _made_with(self) -> dict[str, Any]:
        # The repr of a schedule may contain what it has observed.
        schedule = (
            type(self.schedule).__name__ if isinstance(self.schedule, Stateful) else repr(self.schedule)
        )
        return {"schedule": schedule, "skip": self.skip, "measure": self.measure}


def _by_number(share: float, cost: float) -> float:
    """Importance per number moved; a part without cost is frozen last if it matters, and first if it does not."""
    if share == 0.0:
        return 0.0
    return share / cost if cost else float("inf")


def build(values: Mapping[str, float | None], facts: RunFacts) -> AdaptiveTaskSelector:
    """Build it on top of Switch, whose options it shares."""
    return AdaptiveTaskSelector(schedule=switching.build(values, facts), skip=required(values, "skip"))


STRATEGY = Strategy(
    "selector",
    "as switch, then only the parts that matter to the main task train on",
    build,
    (
        *switching.STRATEGY.options,
        StrategyOption(
            "skip", "freeze this share of the numbers that a single-task step moves", SKIP, low=0.0, high=1.0
        ),
    ),
    retires=True,
)

"""Finish on what matters: when the auxiliary tasks have retired, only the parts that matter to the main task train on.

Where the last auxiliary task retires, the importance of every part for the main task is measured on held-out batches
(see training/importance.py). What matters least for what it costs is frozen, until a step of the single-task phase
moves as few numbers as asked for; what is frozen costs a step no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_within
from mt2st_fast.training.schedules import switch as switching
from mt2st_fast.training.schedules.base import Moment, Schedule
from mt2st_fast.training.schedules.strategy import RunFacts, Strategy, StrategyOption, required
from mt2st_fast.training.schedules.switch import Switch

if TYPE_CHECKING:
    from mt2st_fast.training.importance import Importances
    from mt2st_fast.training.observations import HeldOut, Observation

MEASURES = ("fisher", "taylor")
SKIP = 0.7


@dataclass(kw_only=True)
class AdaptiveTaskSelector:
    """Another schedule's phases, the last of them on the parts that matter to the main task.

    schedule: which tasks train, and what they weigh. skip: the share of
    the numbers moved by a single-task step that are to move no more: parts are frozen in the order of their importance
    by number, until they make up that share; the one that matters most trains in any case. measure: "fisher" or
    "taylor". Of the two Fisher can tell layers apart: where layers are homogeneous (linear, ReLU), sum g w is the same
    number for each of them, by Euler's theorem.

    Needs `fit(val=...)`. `history.selections` keeps what was measured and decided. In a run without an auxiliary task
    nothing retires, and nothing is frozen.

    Raises ValueError for a share outside [0, 1] and for an unknown measure, TypeError for a schedule that learns, has
    parts take turns or keeps moments a task.
    """

    schedule: Schedule = field(default_factory=Switch)
    skip: float = SKIP
    measure: Literal["fisher", "taylor"] = "fisher"

    def __post_init__(self) -> None:
        check_within(0.0, 1.0, skip=self.skip)
        if self.measure not in MEASURES:
            raise ValueError(f"measure {self.measure!r} is unknown; there are {', '.join(MEASURES)}")
        for given, does in (
            (isinstance(self.schedule, nn.Module), "learns its weights"),
            (hasattr(self.schedule, "part"), "has shared parameters and those of tasks take turns"),
            (getattr(self.schedule, "accumulator_a_task", False), "has the optimizer keep moments a task"),
        ):
            if given:
                raise TypeError(
                    f"{type(self.schedule).__name__} {does}, which AdaptiveTaskSelector cannot hand on: give a "
                    "schedule that only says when tasks train and what they weigh, such as Switch"
                )

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Those of the schedule."""
        return self.schedule.task_weights(moment, main, auxiliary)

    def select(self, found: Importances) -> list[str]:
        """The names of the parts to freeze; heads of retired tasks do not count."""
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

    # --- what the schedule wants to see, it sees ---------------------------------------------------------

    @property
    def reasons(self) -> dict[str, str]:
        """Why tasks have retired, where the schedule says it."""
        return dict(getattr(self.schedule, "reasons", {}))

    @property
    def evidence(self) -> list[str]:
        """What the schedule has decided, where it says it."""
        return list(getattr(self.schedule, "evidence", ()))

    @property
    def wants_gradients(self) -> bool:
        """Whether the schedule does."""
        return bool(getattr(self.schedule, "wants_gradients", False))

    @property
    def wants_held_out_gradients(self) -> bool:
        """Whether the schedule does."""
        return bool(getattr(self.schedule, "wants_held_out_gradients", False))

    def observe(self, observation: Observation) -> None:
        """Hand on."""
        if hasattr(self.schedule, "observe"):
            self.schedule.observe(observation)

    def observe_held_out(self, seen: HeldOut) -> None:
        """Hand on."""
        if hasattr(self.schedule, "observe_held_out"):
            self.schedule.observe_held_out(seen)

    def state_dict(self) -> dict[str, Any]:
        """What it was made with, and what its schedule remembers."""
        return {**self._made_with(), "state": dict(self.schedule.state_dict()) if self._remembers() else None}  # type: ignore[attr-defined]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave. Raises InputError for one that was made otherwise."""
        for name, value in self._made_with().items():
            if state[name] != value:
                raise InputError(
                    f"the checkpoint's AdaptiveTaskSelector was made with {name} {state[name]}, this one with {value}; "
                    "give the same, or begin a run of its own, without resume"
                )
        if self._remembers():
            self.schedule.load_state_dict(state["state"])  # type: ignore[attr-defined]

    def _made_with(self) -> dict[str, Any]:
        # What a schedule has noted may stand in its repr.
        schedule = type(self.schedule).__name__ if self._remembers() else repr(self.schedule)
        return {"schedule": schedule, "skip": self.skip, "measure": self.measure}

    def _remembers(self) -> bool:
        return hasattr(self.schedule, "state_dict") and hasattr(self.schedule, "load_state_dict")


def _by_number(share: float, cost: float) -> float:
    """Importance by number moved; what costs nothing is frozen last where it matters, and first where it does not."""
    if share == 0.0:
        return 0.0
    return share / cost if cost else float("inf")


def build(values: Mapping[str, float | None], facts: RunFacts) -> AdaptiveTaskSelector:
    """After Switch, whose options it shares."""
    return AdaptiveTaskSelector(schedule=switching.build(values, facts), skip=required(values, "skip"))


STRATEGY = Strategy(
    "selector",
    "as switch, then only the parts that matter to the main task train on",
    build,
    (
        *switching.STRATEGY.options,
        StrategyOption(
            "skip", "share of the numbers moved by a single-task step to freeze", SKIP, low=0.0, high=1.0
        ),
    ),
)

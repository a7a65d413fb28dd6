"""What every schedule is built on: the moment, the protocol, per-task values and their checks.

A schedule is a pure function of the moment, so a resumed run needs only the step number. A schedule that observes
losses and remembers them declares so (see `abilities.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, Protocol

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count, check_within

PerTask = float | Mapping[str, float]
LEAST_WEIGHT = 1e-3  # by default, a task whose weight decays below it retires
Unit = Literal["epoch", "step"]
Part = Literal["all", "shared", "tasks"]  # which parameters train in a step; see training/phases/turns.py


@dataclass(frozen=True)
class Moment:
    """A step of a run, counted from 0."""

    step: int
    steps_per_epoch: int
    total_steps: int

    def time(self, unit: Unit) -> float:
        """t in fractions of an epoch, or in steps."""
        return self.step / self.steps_per_epoch if unit == "epoch" else float(self.step)


class Schedule(Protocol):
    """Any object with `task_weights` can be a schedule."""

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Return the weight of each active task, main task first; a task that is left out has retired for good."""
        ...


def checked_weights(
    schedule: Schedule, weights: Any, main: str, auxiliary: Sequence[str]
) -> dict[str, float]:
    """Return what a schedule's `task_weights` returned, as numbers.

    Raises InputError, naming the schedule, for a task that there is not (it may be another's misspelt name, and that
    one would retire), without the main task, and for a weight that is not a finite number.
    """
    said = f"{type(schedule).__name__}.task_weights"
    if not isinstance(weights, Mapping):
        raise InputError(f"{said} must return {{task: weight}}, not a {type(weights).__name__}")
    if unknown := [str(name) for name in weights if name != main and name not in auxiliary]:
        raise InputError(
            f"{said} has a weight for {unknown[0]}, which is not a task; available: {', '.join((main, *auxiliary))}"
        )
    if main not in weights:
        raise InputError(f"{said} has no weight for {main}: the main task {main} cannot retire")
    found = {}
    for name, weight in weights.items():
        try:
            found[name] = float(weight)
        except (TypeError, ValueError):
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise InputError(f"{said} must have a finite number for {name}, not {weight!r}")
    return found


class AuxiliaryWeights:
    """A schedule that keeps the main task at weight 1 and computes the weight of each auxiliary task."""

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Return the weight of each active task, main task first; a retired task is left out."""
        self._check_tasks(auxiliary)
        result = {main: 1.0}
        for task in auxiliary:
            weight = self.auxiliary_weight(moment, task)
            if weight is not None:
                result[task] = weight
        return result

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return the weight of one auxiliary task, or None once it has retired."""
        raise TypeError(f"{type(self).__name__} must say what an auxiliary task weighs")

    def _check_tasks(self, auxiliary: Sequence[str]) -> None:
        for name in _fields_of(type(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if isinstance(value, AuxiliaryWeights):
                value._check_tasks(auxiliary)
            unknown = [t for t in value if t not in auxiliary] if isinstance(value, Mapping) else []
            if unknown:
                raise ValueError(
                    f"{name} names {unknown[0]}, which is not an auxiliary task; available: "
                    f"{', '.join(auxiliary)}"
                )


@cache  # asked at every step
def _fields_of(schedule: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(schedule))


def value_of(value: PerTask, task: str, default: float) -> float:
    """Return a task's own value, or `default` for a task that the mapping does not name."""
    # Nearly always, and asked first: to be a Mapping takes longer to find out.
    if isinstance(value, int | float):
        return float(value)
    return float(value.get(task, default)) if isinstance(value, Mapping) else float(value)


def check(name: str, value: PerTask, low: float, high: float = math.inf) -> None:
    """Raises InputError, naming the field, for a value that is not a finite number within [low, high]."""
    for v in _values(value):
        check_within(low, high, **{name: v})


def check_steps(name: str, value: PerTask) -> None:
    """Raises InputError, naming the field, for a value that is not a whole number of steps."""
    for v in _values(value):
        check_count(0, **{name: v})


def _values(value: PerTask) -> list[float]:
    return [*value.values()] if isinstance(value, Mapping) else [value]


def check_unit(unit: str) -> None:
    """Raises ValueError for an unknown unit of time."""
    if unit not in ("epoch", "step"):
        raise ValueError(f"unit must be epoch or step, not {unit}")

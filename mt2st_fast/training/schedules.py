"""Which tasks are active at a step, and what they weigh.

A schedule is a pure function of the moment, so a resumed run needs nothing but the step number. The
formulas are those of MT2ST (arXiv 2406.18038): Diminish, Switch; SquaringDecay is what its authors'
published code does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

PerTask = float | Mapping[str, float]
Unit = Literal["epoch", "step"]


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
    """Anything with `task_weights` can be a schedule."""

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Weight by active task, main task first; a task that is left out has retired for good."""
        ...


class _Auxiliary:
    """A schedule that keeps the main task at weight 1 and says what an auxiliary task weighs."""

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Weight by active task, main task first; a retired task is left out."""
        self._check_tasks(auxiliary)
        result = {main: 1.0}
        for task in auxiliary:
            weight = self.auxiliary_weight(moment, task)
            if weight is not None:
                result[task] = weight
        return result

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Weight of one auxiliary task, None once it has retired."""
        raise TypeError(f"{type(self).__name__} must say what an auxiliary task weighs")

    def _check_tasks(self, auxiliary: Sequence[str]) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, _Auxiliary):
                value._check_tasks(auxiliary)
            unknown = [t for t in value if t not in auxiliary] if isinstance(value, Mapping) else []
            if unknown:
                raise ValueError(
                    f"{field.name} names {unknown[0]}, which is no auxiliary task; there are {', '.join(auxiliary)}"
                )


def _of(value: PerTask, task: str, default: float) -> float:
    return float(value.get(task, default)) if isinstance(value, Mapping) else float(value)


def _check(name: str, value: PerTask | None, low: float, high: float = math.inf) -> None:
    values = value.values() if isinstance(value, Mapping) else [] if value is None else [value]
    for v in values:
        if not (math.isfinite(v) and low <= v <= high):
            raise ValueError(f"{name} must lie in [{low}, {high}], not {v}")


@dataclass(frozen=True)
class SingleTask(_Auxiliary):
    """The main task only (STL)."""

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Retired from the start."""
        return None


@dataclass(frozen=True)
class MultiTask(_Auxiliary):
    """Constant weights for all tasks to the end (MTL)."""

    weights: PerTask = 1.0

    def __post_init__(self) -> None:
        _check("weights", self.weights, 0.0)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The constant weight."""
        return _of(self.weights, task, 1.0)


@dataclass(frozen=True, kw_only=True)
class Diminish(_Auxiliary):
    """weight = gamma * exp(-eta * t^nu); under `floor` the task retires (arXiv 2406.18038, Diminish)."""

    eta: PerTask
    gamma: PerTask = 1.0
    nu: PerTask = 1.0
    floor: PerTask = 1e-3
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        for name in ("eta", "gamma", "floor"):
            _check(name, getattr(self, name), 0.0)
        _check("nu", self.nu, 0.0, 10.0)
        _check_unit(self.unit)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The decayed weight; t = 0 gives gamma."""
        eta = _of(self.eta, task, 0.0)
        t = moment.time(self.unit)
        exponent = eta * min(t, 1e30) ** _of(self.nu, task, 1.0) if t > 0 else 0.0
        weight = _of(self.gamma, task, 1.0) * math.exp(-exponent)
        return weight if weight >= _of(self.floor, task, 1e-3) else None


@dataclass(frozen=True, kw_only=True)
class SquaringDecay(_Auxiliary):
    """weight = alpha^(2^t): the weight is squared every unit of time; under `floor` the task retires."""

    alpha: PerTask = 0.95
    floor: PerTask = 1e-3
    unit: Unit = "epoch"

    def __post_init__(self) -> None:
        _check("alpha", self.alpha, 0.0, 1.0)
        _check("floor", self.floor, 0.0)
        _check_unit(self.unit)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The decayed weight; t = 0 gives alpha."""
        # 2^1024 overflows a float; alpha^(2^64) is 0 long before, or 1 for alpha = 1.
        weight = _of(self.alpha, task, 0.95) ** (2.0 ** min(moment.time(self.unit), 64.0))
        return weight if weight >= _of(self.floor, task, 1e-3) else None


@dataclass(frozen=True, kw_only=True)
class Switch(_Auxiliary):
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
        _check("at", self.at, 0.0, 1.0)
        _check("at_epoch", self.at_epoch, 0.0)
        _check("at_step", self.at_step, 0.0)
        _check("weights", self.weights, 0.0)

    def switch_step(self, moment: Moment, task: str) -> float:
        """First step without the task; infinite for one that a mapping does not name."""
        if self.at_step is not None:
            return _of(self.at_step, task, math.inf)
        if self.at_epoch is not None:
            return _of(self.at_epoch, task, math.inf) * moment.steps_per_epoch
        assert self.at is not None
        # 0.07 * 100 is a little more than 7 in floating point, and must not become step 8.
        return round(_of(self.at, task, math.inf) * moment.total_steps, 6)

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The constant weight before the switch point."""
        return _of(self.weights, task, 1.0) if moment.step < self.switch_step(moment, task) else None


@dataclass(frozen=True, kw_only=True)
class DiminishThenSwitch(_Auxiliary):
    """Weights decay as in `Diminish`, and what is left retires at the point of `Switch`."""

    diminish: Diminish
    switch: Switch

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The decayed weight before the switch point."""
        if self.switch.auxiliary_weight(moment, task) is None:
            return None
        return self.diminish.auxiliary_weight(moment, task)


def _check_unit(unit: str) -> None:
    if unit not in ("epoch", "step"):
        raise ValueError(f"unit must be epoch or step, not {unit}")

"""A switch that nobody has to set: every auxiliary task trains for as long as held-out rows say that it helps.

Four signs, all read at every evaluation:

    alignment   the cosine of its gradient on the shared features with the main task's (Du et al. 2018, "Adapting
                Auxiliary Losses Using Gradient Similarity", arXiv 1812.02224): what a task pulls the features towards.
                On training rows the main task's own gradient fades as they are learnt by heart; on held-out rows, where
                it is read, it does not
    learnt      how far its loss is below that against the labels of other rows: what it can tell from the inputs.
                Labels that cannot be told from them (of permuted rows, say) teach nothing but the training rows by
                heart. Not known of a task with a loss of its own, which is judged without it
    freshness   how large the main task's gradients are on training rows, over those on held-out rows. Where they are
                alike, its own labels still teach all that there is to learn, and other tasks take room in the encoder;
                where they fade, it has learnt its rows by heart, and what else it learns comes from the others
    progress    whether the main task still gets better (the plateau of early stopping, Prechelt 1998). Of a rate that
                falls linearly half has to be gone before a plateau is heeded: the rise that a low rate brings is not
                there yet

A task rests that pulls against the main task, or is neither aligned with it nor learnt. One that is learnt may be worth
its place without alignment, as it shapes the encoder below the features. Where the main task's own labels stay fresh,
and where it has stopped getting better, all that are left rest. A task that rests has weight 0 and costs nothing but
the reading of its labels. Some evaluations later it retires for good, or, where the main task has become worse, comes
back, once. A task on words, which has no gradient on the features, is judged by the last two signs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from mt2st_fast.numbers import check_count
from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment, PerTask, check, value_of
from mt2st_fast.training.schedules.strategy import AUX_WEIGHT, RunFacts, Strategy, required

if TYPE_CHECKING:
    from mt2st_fast.training.observations import HeldOut

LEAST_COSINE = 0.01  # of tasks that have to do with each other: 512 rows of unrelated labels stay below it
# Of a task that pulls against the main one: what is nearer to zero is worth less than it teaches.
AGAINST = -0.05
LEAST_LEARNT = 0.05  # of a task that the inputs tell something of: 512 rows of permuted labels stay below it
RATE_OF_PLATEAU = 0.5  # of the first step's: what is left where a plateau is first heeded
FRESH = (
    0.75  # of a main task whose labels teach it: about 0.9 with all labels of a treebank, below 0.5 with 5 %
)
ERRORS = 2.0  # standard errors that a mean has to lie beyond zero


@dataclass(frozen=True)
class _Mean:
    """Of what was seen, with its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Mean:
        return cls(fmean(values), stdev(values) / math.sqrt(len(values)))

    @property
    def is_beyond_zero(self) -> bool:
        return abs(self.mean) > ERRORS * self.error

    def is_at_least(self, least: float) -> bool:
        """Whether it is so large, and not by chance."""
        return self.mean >= least and self.is_beyond_zero

    def __str__(self) -> str:
        return f"{self.mean:.3f}, standard error {self.error:.3f}"


@dataclass(kw_only=True)
class AdaptiveSwitch(AuxiliaryWeights):
    """Constant weights for as long as held-out rows say that a task helps; see above for the signs.

    weights: of auxiliary tasks while they train. patience: evaluations that a judgement needs. margin: what a metric
    has to move by to count: the main task has stopped getting better where the mean of the last third of evaluations,
    and of 2 * patience at least, is not above the mean of as many before by this much (a best of few would be one by
    chance); it has become worse where its best is that much below. Needs `fit(val=...)`.

    `reasons` says of every retired task why it did, `evidence` tells every decision in order. What was seen is part of
    a checkpoint. Raises ValueError for numbers out of range, and for weights of tasks that are not there.
    """

    weights: PerTask = 1.0
    patience: int = 3
    margin: float = 0.001
    reasons: dict[str, str] = field(default_factory=dict, init=False)
    evidence: list[str] = field(default_factory=list, init=False)
    _freshness: list[float] = field(default_factory=list, init=False, repr=False)  # from the second epoch on
    _cosines: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    _learnt: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    _metrics: list[float] = field(default_factory=list, init=False, repr=False)
    _resting: dict[str, int] = field(
        default_factory=dict, init=False, repr=False
    )  # since so many evaluations
    _why: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # they rest
    _came_back: list[str] = field(default_factory=list, init=False, repr=False)
    _judged_from: int = field(
        default=0, init=False, repr=False
    )  # evaluations before say nothing of a plateau
    # All auxiliary tasks, those too that no held-out row is measured by.
    _auxiliary: tuple[str, ...] = field(default=(), init=False, repr=False)

    wants_held_out_gradients = True

    def __post_init__(self) -> None:
        check("weights", self.weights, 0.0)
        check("margin", self.margin, 0.0)
        check_count(2, patience=self.patience)

    def _check_tasks(self, auxiliary: Sequence[str]) -> None:
        unknown = [t for t in self.weights if t not in auxiliary] if isinstance(self.weights, Mapping) else []
        if unknown:
            raise ValueError(f"weights names {unknown[0]}, which is no auxiliary task; there are "
                             f"{', '.join(auxiliary)}")  # fmt: skip

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The constant weight, 0 while the task rests, None once it has retired."""
        if task in self.reasons:
            return None
        return 0.0 if task in self._resting else value_of(self.weights, task, 1.0)

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """By what it has seen; a run that begins has seen nothing, whatever a run before has shown."""
        if moment.step == 0 and self._metrics:
            self.load_state_dict(type(self)().state_dict())
        self._auxiliary = tuple(auxiliary)
        return super().task_weights(moment, main, auxiliary)

    def observe_held_out(self, seen: HeldOut) -> None:
        """Judge every auxiliary task; the next step heeds it."""
        n_before, metric = len(self._metrics), seen.metrics[seen.main]
        self._metrics.append(metric)
        auxiliary = [n for n in dict.fromkeys((*seen.metrics, *self._auxiliary)) if n != seen.main]
        for name in auxiliary:
            if name in self._resting:
                self._end_rest(name, seen.step)
        for name, gradient in (seen.gradients or {}).items():
            if name != seen.main:
                self._cosines.setdefault(name, []).append(gradient.cosine)
                if gradient.learnt is not None:
                    self._learnt.setdefault(name, []).append(gradient.learnt)
        training = [name for name in auxiliary if name not in self._resting and name not in self.reasons]
        if seen.freshness is not None and seen.epoch >= 1:  # in the first one all rows are new
            self._freshness.append(seen.freshness)
        dispensable = self._fresh() or self._stopped(seen.rate_left)
        for name in training:
            if reason := self._unhelpful(name) or dispensable:
                self._resting[name], self._why[name] = n_before + 1, f"{reason} at step {seen.step}"
                self.evidence.append(f"step {seen.step}: {name} rests, as {reason}")

    def _end_rest(self, name: str, step: int) -> None:
        """Have a task that has rested for long enough retire, or come back where the main task is worse without it."""
        since = self._resting[name]
        if len(self._metrics) < since + self.patience:
            return
        before, without = max(self._metrics[:since]), max(self._metrics[since:])
        del self._resting[name]
        seen = f"the main task reached {without:.4f} without it, after {before:.4f}"
        if without < before - self.margin and name not in self._came_back:
            self._came_back.append(name)
            self._cosines.pop(name, None)
            self._learnt.pop(name, None)
            self._freshness.clear()
            self._judged_from = len(self._metrics)
            self.evidence.append(f"step {step}: {name} is back, as {seen}")
        else:
            self.reasons[name] = self._why[name]
            self.evidence.append(f"step {step}: {name} retires; {seen}")

    def _unhelpful(self, name: str) -> str | None:
        """Why a task does not help, or None where it does or nobody knows yet."""
        cosine, learnt = self._recent(self._cosines, name), self._recent(self._learnt, name)
        if cosine is None:
            return None
        if cosine.mean <= AGAINST and cosine.is_beyond_zero:
            return f"its gradient pulls against the main task's (cosine {cosine})"
        if cosine.is_at_least(LEAST_COSINE) or (learnt is not None and learnt.is_at_least(LEAST_LEARNT)):
            return None
        reason = f"its gradient is not aligned with the main task's (cosine {cosine})"
        if learnt is not None:
            reason += f", and it can tell nothing of a row (its own label takes {learnt} off the loss)"
        return reason

    def _recent(self, seen: Mapping[str, Sequence[float]], name: str) -> _Mean | None:
        """Of the last half of what was seen of a task; None where that is too little to judge by.

        What is no number decides nothing.
        """
        values = [value for value in seen.get(name, ()) if math.isfinite(value)]
        recent = values[-max(self.patience, len(values) // 2) :]
        return _Mean.of(recent) if len(recent) >= self.patience else None

    def _fresh(self) -> str | None:
        """What says that the main task's own labels teach it all there is to learn, or None."""
        recent = self._freshness[-self.patience :]
        if len(recent) < self.patience or fmean(recent) < FRESH:
            return None
        return f"the main task's own labels still teach it (freshness {fmean(recent):.2f})"

    def _stopped(self, rate_left: float | None) -> str | None:
        """What says that the main task does not get better any more, or None."""
        if rate_left is not None and rate_left > RATE_OF_PLATEAU:
            return None
        seen = self._metrics[self._judged_from :]
        window = max(2 * self.patience, len(seen) // 3)
        if len(seen) < 2 * window:
            return None
        before, recent = fmean(seen[-2 * window : -window]), fmean(seen[-window:])
        if not recent < before + self.margin:  # a metric that is not a number decides nothing
            return None
        return f"the main task has not risen by {self.margin:g} in {window} evaluations (to {recent:.4f} in the mean)"

    def state_dict(self) -> dict[str, Any]:
        """What it has seen and decided."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in _STATE:
            if name in state:  # a checkpoint of before has less
                setattr(self, name, copy.deepcopy(state[name]))


_STATE = (
    "reasons",
    "evidence",
    "_cosines",
    "_learnt",
    "_freshness",
    "_metrics",
    "_resting",
    "_why",
    "_came_back",
    "_judged_from",
)


def build(values: Mapping[str, float | None], facts: RunFacts) -> AdaptiveSwitch:
    """By its own defaults: there is no point to set."""
    del facts
    return AdaptiveSwitch(weights=required(values, "aux_weight"))


STRATEGY = Strategy(
    "adaptive", "each retires when held-out rows say that it does not help any more", build, (AUX_WEIGHT,)
)

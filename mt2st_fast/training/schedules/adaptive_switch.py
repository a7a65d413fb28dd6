"""A switch that sets itself: every auxiliary task trains for as long as held-out rows say that it helps.

Five signs are read at every evaluation:

    alignment   the cosine of a task's gradient on the shared features with the main task's (Du et al. 2018, "Adapting
                Auxiliary Losses Using Gradient Similarity", arXiv 1812.02224): where the task pulls the features. On
                training rows the main task's own gradient fades as they are memorized; on held-out rows, which are used
                here, it does not
    learnt      how far the task's loss is below its loss against the labels of other rows: what it can predict from the
                inputs. Labels that cannot be predicted from the inputs (those of permuted rows, say) only make the
                encoder memorize the training rows. Unknown for a task with a loss of its own, which is judged without
                it
    freshness   how large the main task's gradients are on training rows, relative to held-out rows. If they are alike,
                its own labels still teach all there is to learn, and other tasks take up room in the encoder. If they
                fade, it has memorized its rows, and what else it learns comes from the other tasks
    progress    whether the main task still gets better (the plateau of early stopping, Prechelt 1998). If the learning
                rate falls linearly, a plateau counts only after half of it is gone: until then, the rise that a low
                rate brings is still to come
    own labels  whether the labels of auxiliary tasks tell those of the main task, so that self-training labels other
                rows by them once the main task is alone. These rows then teach it directly what the tasks teach it
                through the encoder; so all tasks retire as soon as the main task's error falls slowly: by less than
                SLOW from one stretch of the run (WINDOW) to the next. Where the model alone labels them, it should know
                as much as it can before, and then have time to learn from them: the tasks retire at LATEST

A task rests if it pulls against the main task, or if it is neither aligned with it nor learnt. A learnt task may be
worth its place without alignment, as it shapes the encoder below the features. If the main task's own labels stay
fresh, or if it has stopped getting better, all remaining tasks rest. A resting task has weight 0 and costs only the
reading of its labels. Some evaluations later it retires for good; or, if the main task has become worse, it comes back,
once. A task on words, which has no gradient on the features, is judged by the last three signs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count
from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment, PerTask, check, value_of
from mt2st_fast.training.schedules.shown import HeldOut
from mt2st_fast.training.schedules.strategy import AUX_WEIGHT, RunFacts, Strategy, required

LEAST_COSINE = 0.01  # of related tasks: 512 rows of unrelated labels stay below it
# Of a task that pulls against the main task: a cosine nearer to zero harms less than the task teaches.
AGAINST = -0.05
LEAST_LEARNT = 0.05  # of a task that the inputs can predict: 512 rows of permuted labels stay below it
RATE_OF_PLATEAU = 0.5  # of the first step's rate: how much may be left when a plateau first counts
# Of a main task whose labels still teach it: about 0.9 with all labels of a treebank, below 0.5 with 5 %.
FRESH = 0.75
ERRORS = 2.0  # standard errors that a mean has to be away from zero
WINDOW = 1 / 8  # of the run
SLOW = 0.2  # of the error
LATEST = 0.6  # of the run, as for `Switch`
ROUNDED = 6  # digits of a share of the run: five times 0.025 are 0.125


@dataclass(frozen=True)
class _Mean:
    """The mean of some observations, with its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Mean:
        return cls(fmean(values), stdev(values) / math.sqrt(len(values)))

    @property
    def is_beyond_zero(self) -> bool:
        return abs(self.mean) > ERRORS * self.error

    def is_at_least(self, least: float) -> bool:
        """Whether it is this large, and not by chance."""
        return self.mean >= least and self.is_beyond_zero

    def __str__(self) -> str:
        return f"{self.mean:.3f}, standard error {self.error:.3f}"


@dataclass(kw_only=True)
class AdaptiveSwitch(AuxiliaryWeights):
    """Constant weights for as long as held-out rows say that a task helps; the signs are described in the module.

    weights: of auxiliary tasks while they train. patience: how many evaluations a judgement needs. margin: the change
    of a metric that counts. The main task has stopped getting better if the mean of the last third of evaluations (at
    least 2 * patience) is not above the mean of as many before by this margin (a best of few would be one by chance).
    It has become worse if its best is that much below. Needs `fit(val=...)`.

    `reasons` says why each retired task retired; `evidence` lists every decision in order. The observations are part of
    a checkpoint. Raises ValueError for numbers out of range, and for weights of unknown tasks.
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
    # Of each evaluation: its share of the run may change, as a run may go on for more epochs.
    _steps: list[int] = field(default_factory=list, init=False, repr=False)
    # The number of evaluations when its rest began.
    _resting: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _why: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # why they rest
    _came_back: list[str] = field(default_factory=list, init=False, repr=False)
    # Earlier evaluations do not count for a plateau.
    _judged_from: int = field(default=0, init=False, repr=False)
    # All auxiliary tasks, including those that no held-out row measures.
    _auxiliary: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        check("weights", self.weights, 0.0)
        check("margin", self.margin, 0.0)
        check_count(2, patience=self.patience)

    @property
    def wants_held_out_gradients(self) -> bool:
        """Whether there is a task left to judge by them: they take time at every evaluation."""
        return not self._auxiliary or any(task not in self.reasons for task in self._auxiliary)

    def _check_tasks(self, auxiliary: Sequence[str]) -> None:
        unknown = [t for t in self.weights if t not in auxiliary] if isinstance(self.weights, Mapping) else []
        if unknown:
            raise ValueError(
                f"weights names {unknown[0]}, which is not an auxiliary task; available: {', '.join(auxiliary)}"
            )

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """Return the constant weight, 0 while the task rests, None once it has retired."""
        if task in self.reasons:
            return None
        return 0.0 if task in self._resting else value_of(self.weights, task, 1.0)

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Return the weights, by what it has observed in this run: a new run starts without observations."""
        if moment.step == 0 and self._metrics:
            self.load_state_dict(type(self)().state_dict())
        self._auxiliary = tuple(auxiliary)
        return super().task_weights(moment, main, auxiliary)

    def observe_held_out(self, seen: HeldOut) -> None:
        """Judge every auxiliary task; the decision takes effect at the next step."""
        n_before, metric = len(self._metrics), seen.metrics[seen.main]
        self._metrics.append(metric)
        self._steps.append(seen.step)
        auxiliary = [n for n in dict.fromkeys((*seen.metrics, *self._auxiliary)) if n != seen.main]
        left = [name for name in auxiliary if name not in self.reasons]
        if left and (reason := self._taught_by_own_labels(seen)):
            self._retire_all(left, f"{reason} at step {seen.step}")
            return
        for name in auxiliary:
            if name in self._resting:
                self._end_rest(name, seen.step)
        for name, gradient in (seen.gradients or {}).items():
            if name != seen.main:
                self._cosines.setdefault(name, []).append(gradient.cosine)
                if gradient.learnt is not None:
                    self._learnt.setdefault(name, []).append(gradient.learnt)
        training = [name for name in auxiliary if name not in self._resting and name not in self.reasons]
        if seen.freshness is not None and seen.epoch >= 1:  # in the first epoch all rows are new
            self._freshness.append(seen.freshness)
        dispensable = self._fresh() or self._stopped(seen.rate_left)
        for name in training:
            if reason := self._unhelpful(name) or dispensable:
                self._resting[name], self._why[name] = n_before + 1, f"{reason} at step {seen.step}"
                self.evidence.append(f"step {seen.step}: {name} rests, as {reason}")

    def _end_rest(self, name: str, step: int) -> None:
        """End a long enough rest: the task retires, or comes back if the main task is worse without it."""
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

    def _taught_by_own_labels(self, seen: HeldOut) -> str | None:
        """Return the reason if rows that self-training labels now teach the main task more than these tasks."""
        done = seen.share_done
        if not seen.self_training or done is None:
            return None
        if round(done - LATEST, ROUNDED) >= 0:
            return f"self-training needs the last {100 * (1 - LATEST):.0f} % of the run"
        if not seen.labelled_by or round(done - 2 * WINDOW, ROUNDED) < 0:
            return None
        recent, before = self._error_in(seen), self._error_in(seen, WINDOW)
        is_slow = recent > (1 - SLOW) * before  # not of NaN: such a metric decides nothing
        if not is_slow:
            return None
        return (
            f"the labels of {', '.join(seen.labelled_by)} tell the main task's, and its error only fell from "
            f"{before:.4f} to {recent:.4f}"
        )

    def _error_in(self, seen: HeldOut, ago: float = 0.0) -> float:
        """Return 1 - the mean metric in a stretch of WINDOW that ended some share of the run ago; NaN without any."""
        assert seen.share_done is not None
        end, share_of_step = seen.share_done - ago, seen.share_done / seen.step
        shares = (round(step * share_of_step, ROUNDED) for step in self._steps)
        found = [
            metric
            for done, metric in zip(shares, self._metrics, strict=True)
            if round(end - WINDOW, ROUNDED) < done <= round(end, ROUNDED)
        ]
        return 1 - fmean(found) if found else math.nan

    def _retire_all(self, names: Sequence[str], reason: str) -> None:
        for name in names:
            self._resting.pop(name, None)
            self.reasons[name] = reason
            self.evidence.append(f"{name} retires, as {reason}")

    def _unhelpful(self, name: str) -> str | None:
        """Return why a task does not help, or None if it does or it is too early to tell."""
        cosine, learnt = self._recent(self._cosines, name), self._recent(self._learnt, name)
        if cosine is None:
            return None
        if cosine.mean <= AGAINST and cosine.is_beyond_zero:
            return f"its gradient pulls against the main task's (cosine {cosine})"
        if cosine.is_at_least(LEAST_COSINE) or (learnt is not None and learnt.is_at_least(LEAST_LEARNT)):
            return None
        reason = f"its gradient is not aligned with the main task's (cosine {cosine})"
        if learnt is not None:
            reason += f", and it cannot tell anything about a row (its own label lowers the loss by {learnt})"
        return reason

    def _recent(self, seen: Mapping[str, Sequence[float]], name: str) -> _Mean | None:
        """Return the mean of the last half of a task's observations; None if these are too few to judge.

        Values that are not finite are ignored.
        """
        values = [value for value in seen.get(name, ()) if math.isfinite(value)]
        recent = values[-max(self.patience, len(values) // 2) :]
        return _Mean.of(recent) if len(recent) >= self.patience else None

    def _fresh(self) -> str | None:
        """Return the reason if the main task's own labels teach it all there is to learn, else None."""
        recent = self._freshness[-self.patience :]
        if len(recent) < self.patience or fmean(recent) < FRESH:
            return None
        return f"the main task's own labels still teach it (freshness {fmean(recent):.2f})"

    def _stopped(self, rate_left: float | None) -> str | None:
        """Return the reason if the main task no longer gets better, else None."""
        if rate_left is not None and rate_left > RATE_OF_PLATEAU:
            return None
        seen = self._metrics[self._judged_from :]
        window = max(2 * self.patience, len(seen) // 3)
        if len(seen) < 2 * window:
            return None
        before, recent = fmean(seen[-2 * window : -window]), fmean(seen[-window:])
        if not recent < before + self.margin:  # a NaN metric decides nothing
            return None
        return f"the main task has not risen by {self.margin:g} in {window} evaluations (to {recent:.4f} in the mean)"

    def state_dict(self) -> dict[str, Any]:
        """Return what it has observed and decided."""
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned. Raises InputError for that of another version."""
        if state.keys() != set(_STATE):
            raise InputError(
                "the checkpoint's AdaptiveSwitch is of another version, which observed other things; start a new run "
                "without resume"
            )
        for name in _STATE:
            setattr(self, name, copy.deepcopy(state[name]))


_STATE = (
    "reasons",
    "evidence",
    "_cosines",
    "_learnt",
    "_freshness",
    "_metrics",
    "_steps",
    "_resting",
    "_why",
    "_came_back",
    "_judged_from",
)


def build(values: Mapping[str, float | None], facts: RunFacts) -> AdaptiveSwitch:
    """Build it with its own defaults: there is no point to set."""
    del facts
    return AdaptiveSwitch(weights=required(values, "aux_weight"))


STRATEGY = Strategy(
    "adaptive",
    "each retires when held-out rows say that it does not help any more",
    build,
    (AUX_WEIGHT,),
    retires=True,
)

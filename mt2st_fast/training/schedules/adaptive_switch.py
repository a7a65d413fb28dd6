"""A switch that nobody has to set: every auxiliary task trains for as long as held-out rows say that it helps.

Two signs, both read on held-out rows at every evaluation:

    alignment   the cosine of its gradient on the shared features with the main task's (Du et al. 2018, "Adapting
                Auxiliary Losses Using Gradient Similarity", arXiv 1812.02224): what a task pulls the features towards.
                On training rows the main task's own gradient fades as they are learnt by heart; held out it does not
    progress    whether the main task still gets better (the plateau of early stopping, Prechelt 1998)

A task that is not aligned has nothing to teach and retires by itself; where the main task has stopped getting better
all that are left retire, and training ends on the main task alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from mt2st_fast.training.schedules.base import AuxiliaryWeights, Moment, PerTask, check, value_of
from mt2st_fast.training.schedules.strategy import AUX_WEIGHT, RunFacts, Strategy, required

if TYPE_CHECKING:
    from mt2st_fast.training.observations import HeldOut

LEAST_COSINE = 0.01  # of tasks that have to do with each other: 512 rows of unrelated labels stay below it
ERRORS = 2.0  # standard errors that a mean cosine has to lie above zero


@dataclass(kw_only=True)
class AdaptiveSwitch(AuxiliaryWeights):
    """Constant weights until a task's gradient is not aligned with the main task's, or the main task's plateau.

    weights: of auxiliary tasks while they train. patience: evaluations that a judgement needs. margin: the main task
    has stopped getting better where its best of the last `patience` evaluations is not above the best before by this
    much. Needs `fit(val=...)`. `reasons` says of every retired task why it did. What was seen is part of a checkpoint.
    """

    weights: PerTask = 1.0
    patience: int = 3
    margin: float = 0.001
    reasons: dict[str, str] = field(default_factory=dict, init=False)
    _cosines: dict[str, list[float]] = field(default_factory=dict, init=False, repr=False)
    _metrics: list[float] = field(default_factory=list, init=False, repr=False)

    wants_held_out_gradients = True

    def __post_init__(self) -> None:
        check("weights", self.weights, 0.0)
        check("margin", self.margin, 0.0)
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 2:
            raise ValueError(f"patience must be a whole number of at least 2, not {self.patience!r}")

    def _check_tasks(self, auxiliary: Sequence[str]) -> None:
        unknown = [t for t in self.weights if t not in auxiliary] if isinstance(self.weights, Mapping) else []
        if unknown:
            raise ValueError(f"weights names {unknown[0]}, which is no auxiliary task; there are "
                             f"{', '.join(auxiliary)}")  # fmt: skip

    def auxiliary_weight(self, moment: Moment, task: str) -> float | None:
        """The constant weight until the task has retired."""
        return None if task in self.reasons else value_of(self.weights, task, 1.0)

    def observe_held_out(self, seen: HeldOut) -> None:
        """Judge every task that still trains; from the next step on those that do not help are left out."""
        gradients = seen.gradients or {}
        auxiliary = [name for name in gradients if name != seen.main]
        for name in auxiliary:
            self._cosines.setdefault(name, []).append(gradients[name].cosine)
            if reason := self._unaligned(self._cosines[name]):
                self.reasons.setdefault(name, f"{reason} at step {seen.step}")
        self._metrics.append(seen.metrics[seen.main])
        if reason := self._stopped():
            for name in auxiliary:
                self.reasons.setdefault(name, f"{reason} at step {seen.step}")

    def _unaligned(self, cosines: Sequence[float]) -> str | None:
        """Why a task does not help, or None where it does or nobody knows yet."""
        recent = cosines[-max(self.patience, len(cosines) // 2) :]
        if len(recent) < self.patience:
            return None
        mean, error = fmean(recent), stdev(recent) / math.sqrt(len(recent))
        if mean >= LEAST_COSINE and mean > ERRORS * error:
            return None
        return f"its gradient is not aligned with the main task's (cosine {mean:.3f}, standard error {error:.3f})"

    def _stopped(self) -> str | None:
        """What says that the main task does not get better any more, or None."""
        if len(self._metrics) <= self.patience:
            return None
        before, recent = max(self._metrics[: -self.patience]), max(self._metrics[-self.patience :])
        if not recent < before + self.margin:  # a metric that is not a number decides nothing
            return None
        return f"the main task has not risen by {self.margin:g} in {self.patience} evaluations ({recent:.4f})"

    def state_dict(self) -> dict[str, Any]:
        """What it has seen and decided."""
        return {"reasons": self.reasons, "cosines": self._cosines, "metrics": self._metrics}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.reasons, self._cosines = (
            dict(state["reasons"]),
            {k: list(v) for k, v in state["cosines"].items()},
        )
        self._metrics = list(state["metrics"])


def build(values: Mapping[str, float | None], facts: RunFacts) -> AdaptiveSwitch:
    """By its own defaults: there is no point to set."""
    del facts
    return AdaptiveSwitch(weights=required(values, "aux_weight"))


STRATEGY = Strategy(
    "adaptive", "each retires when held-out rows say that it does not help any more", build, (AUX_WEIGHT,)
)

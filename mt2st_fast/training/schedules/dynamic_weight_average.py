"""Dynamic weight average (Liu, Johns and Davison 2019): a task whose loss falls more slowly weighs more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mt2st_fast.numbers import check_positive_in_float32
from mt2st_fast.training.schedules.base import Moment
from mt2st_fast.training.schedules.shown import Observation
from mt2st_fast.training.schedules.strategy import RunFacts, Strategy, StrategyOption, required


@dataclass(kw_only=True)
class DynamicWeightAverage:
    """weight_k = K exp(r_k / T) / sum over i of exp(r_i / T), with r_k = L_k(t - 1) / L_k(t - 2) by epochs t.

    "End-to-End Multi-Task Learning with Attention" (CVPR 2019), "Dynamic Weight Average": L_k(t) is the mean loss of
    epoch t, and r_k is 1 in the first two epochs; a large `temperature` T makes the weights even. The K weights of all
    tasks, including the main task, sum to K, and all tasks train to the end. A task without a loss in one of the two
    epochs has r_k = 1. The observed losses are part of a checkpoint.
    """

    temperature: float = 2.0
    # Of the last two epochs.
    _means: list[dict[str, float]] = field(default_factory=list, init=False, repr=False)
    _sums: dict[str, float] = field(default_factory=dict, init=False, repr=False)  # over this epoch's steps
    _steps: int = field(default=0, init=False, repr=False)  # of this epoch
    _seen: int = field(default=0, init=False, repr=False)  # all steps so far

    def __post_init__(self) -> None:
        check_positive_in_float32(temperature=self.temperature)

    def task_weights(self, moment: Moment, main: str, auxiliary: Sequence[str]) -> dict[str, float]:
        """Return the weights of all tasks, from the finished epochs; a new run starts without any."""
        if moment.step == 0:
            self._means, self._sums, self._steps, self._seen = [], {}, 0, 0
        names = (main, *auxiliary)
        if len(self._means) < 2:
            return dict.fromkeys(names, 1.0)
        before, last = self._means
        ratios = {
            name: last[name] / before[name] if before.get(name) and name in last else 1.0 for name in names
        }
        largest = max(ratios.values())  # so that no exponential overflows
        shares = {name: math.exp((ratio - largest) / self.temperature) for name, ratio in ratios.items()}
        total = sum(shares.values())
        return {name: len(names) * share / total for name, share in shares.items()}

    def observe(self, observation: Observation) -> None:
        """Add up the losses, and close the epoch when it ends."""
        steps = observation.step - self._seen
        self._seen, self._steps = observation.step, self._steps + steps
        for name, loss in observation.losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + steps * loss
        if observation.epoch == int(observation.epoch):
            self._means = [
                *self._means[-1:],
                {name: total / self._steps for name, total in self._sums.items()},
            ]
            self._sums, self._steps = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what it has observed."""
        return {"means": self._means, "sums": self._sums, "steps": self._steps, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._means = [dict(means) for means in state["means"]]
        self._sums, self._steps, self._seen = dict(state["sums"]), state["steps"], state["seen"]


def build(values: Mapping[str, float | None], facts: RunFacts) -> DynamicWeightAverage:
    """Build it with its temperature."""
    del facts
    return DynamicWeightAverage(temperature=required(values, "temperature"))


STRATEGY = Strategy(
    "dwa",
    "all tasks; what falls slower from epoch to epoch weighs more (dynamic weight average)",
    build,
    (StrategyOption("temperature", "how even the weights are; must be positive", 2.0, low=1e-3),),
)

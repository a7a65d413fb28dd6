"""Tuning before a comparison: the same number of trials for every strategy, on a seed that no reported run has.

The first trial has the values as they were given, and the defaults of others. The others are a Latin hypercube (McKay,
Beckman and Conover 1979): each number's range is cut into as many parts as there are other trials, and each part is
tried once, at a random place in it. The same trial of two strategies has the same learning rate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mt2st_fast.errors import InputError
from mt2st_fast.runs.comparison_schema import Trial, Tuning
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.run_schema import RunSummary
from mt2st_fast.training.schedules import find_strategy

TUNED = ("lr", "switch_at", "aux_weight")
BY_DATA = ("switch_at",)  # their defaults depend on the data: a trial without them has the run's own
RATE_SPAN = 5.0  # rates are tried from a fifth to five times the given one


@dataclass(frozen=True)
class Range:
    """The range in which a number is tried; logarithmic if it must be positive."""

    low: float
    high: float
    ratios: bool = False

    def at(self, place: float) -> float:
        """Return the value at a place in [0, 1), rounded to three digits, so that reports show it in full."""
        ratio, width = self.high / self.low, self.high - self.low
        return float(f"{self.low * ratio**place if self.ratios else self.low + width * place:.3g}")


def ranges_of(config: Config, fixed: Collection[str]) -> dict[str, Range]:
    """Return the ranges of the tuned options, by name: all but those that the user has fixed."""
    every = {
        "lr": Range(config.lr / RATE_SPAN, config.lr * RATE_SPAN, ratios=True),
        "switch_at": Range(0.1, 0.9),
        "aux_weight": Range(0.1, 3.0, ratios=True),
    }
    return {name: found for name, found in every.items() if name not in fixed}


def trials_of(config: Config, strategy: str, n: int, fixed: Collection[str]) -> list[dict[str, float]]:
    """Return the values of n trials for the options that the strategy takes; none if all of these are fixed.

    They are the same in every call. Raises InputError where there is nothing to choose from.
    """
    if n < 2:
        raise InputError(f"--tune {n} leaves nothing to choose from; use 2 or more trials, or 0 for none")
    ranges = ranges_of(config, fixed)
    if not ranges:
        raise InputError(
            f"--tune {n} has nothing to tune, as {', '.join(sorted(fixed))} are given; leave one of them out"
        )
    options = {option.name: option.default for option in find_strategy(strategy).options}
    given = {"lr": config.lr, **options, **config.for_strategy(strategy).strategy_options}
    taken = [name for name in ranges if name == "lr" or name in options]
    if not taken:
        return []
    chance = np.random.default_rng(config.seed)
    # Drawn for all numbers, used or not, so that trials of different strategies have the same rate.
    places = {name: (chance.permutation(n - 1) + chance.random(n - 1)) / (n - 1) for name in TUNED}
    of_run = set(BY_DATA) - set(config.strategy_options)
    first = {
        name: float(value) for name in taken if name not in of_run and (value := given[name]) is not None
    }
    others = [{name: ranges[name].at(places[name][trial]) for name in taken} for trial in range(n - 1)]
    return [first, *others]


def with_values(config: Config, values: Mapping[str, float]) -> Config:
    """Return a strategy's configuration with the values of a trial."""
    options = {name: value for name, value in values.items() if name != "lr"}
    return replace(
        config, lr=values.get("lr", config.lr), strategy_options={**config.strategy_options, **options}
    )


def trial_result(values: Mapping[str, float], summary: RunSummary | None, error: str | None) -> Trial:
    """Return the record of a trial: its values, and its best with the step of it, or why it has none."""
    if summary is None:
        return {"values": dict(values), "best": None, "step": None, "error": error}
    points = [point for point in summary["curve"] if point["quality"] == summary["best"]]
    return {"values": dict(values), "best": summary["best"], "step": points[0]["step"], "error": None}


def chosen(strategy: str, trials: Sequence[Trial]) -> int:
    """Return the best trial: by quality on development rows, then by the steps to it, then the first.

    Raises InputError where no trial completed.
    """
    done = [
        (-trial["best"], trial["step"], number)
        for number, trial in enumerate(trials)
        if trial["best"] is not None
    ]
    if not done:
        raise InputError(f"none of the {len(trials)} trials of {strategy} finished: {trials[0]['error']}")
    return min(done)[-1]


def tuning_record(
    config: Config, fixed: Collection[str], seed: int, trials: Mapping[str, Sequence[Trial]]
) -> Tuning:
    """Return what compare.json has about tuning; trials: by strategy, as `trial_result` made them."""
    return {
        "trials": max(map(len, trials.values())),
        "seed": seed,
        "fixed": sorted(fixed),
        "ranges": {name: [found.low, found.high] for name, found in ranges_of(config, fixed).items()},
        "strategies": {
            strategy: {"chosen": chosen(strategy, of_strategy), "trials": list(of_strategy)}
            for strategy, of_strategy in trials.items()
        },
    }

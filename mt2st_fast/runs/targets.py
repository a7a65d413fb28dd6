"""The targets of a comparison, and where on its curve each run reaches them.

A curve has a point per evaluation. Runs of one seed
share their data and the selection of hidden labels, so "STL's best" is a different number for each seed: the best of
its own STL run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mt2st_fast.runs.arms import Arm
from mt2st_fast.runs.comparison_schema import SeedRun, TargetSummary
from mt2st_fast.runs.run_schema import CurvePoint, RunSummary

POINT = 0.01  # one point of quality: 0.2 points are 0.002
LESS = 0.2 * POINT
PLATEAU = "plateau"  # the key of a run's own plateau, beside the keys of targets

Runs = Mapping[str, Sequence[SeedRun]]  # by the names of arms


@dataclass(frozen=True)
class Target:
    """A quality of the main task on development rows, for each seed. key: its name in compare.json."""

    key: str
    label: str
    of_seed: Mapping[int, float]

    @property
    def median(self) -> float:
        """The median over the seeds."""
        return statistics.median(self.of_seed.values())

    def to_json(self) -> TargetSummary:
        """Return the target as compare.json has it."""
        return {
            "label": self.label,
            "median": self.median,
            "of_seed": {str(seed): value for seed, value in self.of_seed.items()},
        }


def make_targets(runs: Runs, arms: Sequence[Arm], given: float | None) -> list[Target]:
    """Return the given quality, or else the highest that all runs reach; then what STL and MTL of the first engine
    reach.

    runs: by the names of the arms, all of them over the same seeds.
    """
    every = [run for of_arm in runs.values() for run in of_arm]
    seeds = sorted({run["seed"] for run in every})
    if given is not None:
        targets = [Target("given", f"{given:.4g} (given)", dict.fromkeys(seeds, given))]
    else:
        common = min(run["best"] for run in every)
        targets = [Target("common", "the best that all runs reach", dict.fromkeys(seeds, common))]
    best = {arm.strategy: {r["seed"]: r["best"] for r in runs[arm.name]} for arm in reversed(arms)}
    if "stl" in best:
        targets.append(Target("stl_best", "STL's best", best["stl"]))
    if "mtl" in best:
        less = {seed: value - LESS for seed, value in best["mtl"].items()}
        targets.append(Target("mtl_best", "MTL's best", best["mtl"]))
        targets.append(Target("mtl_best_less", f"MTL's best minus {LESS / POINT:g} points", less))
    return targets


def first_reaching(run: RunSummary, quality: float) -> CurvePoint | None:
    """Return the first point of a run's curve that reaches a quality, or None."""
    return next((point for value, point in _measured(run) if value >= quality), None)


def plateau(run: RunSummary, margin: float) -> CurvePoint | None:
    """Return the first point after which the best of the run rises by less than `margin`.

    None if only the last point qualifies: a run that still rises at its end has shown no plateau.
    """
    points = list(_measured(run))
    last = max((quality for quality, _ in points), default=0.0)
    best = -float("inf")
    for quality, point in points[:-1]:
        best = max(best, quality)
        if last - best < margin:
            return point
    return None


def _measured(run: RunSummary) -> Iterator[tuple[float, CurvePoint]]:
    """Yield the points of a run's curve that have a quality, with it."""
    for point in run["curve"]:
        quality = point["quality"]
        if quality is not None and quality == quality:
            yield quality, point

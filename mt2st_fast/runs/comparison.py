"""Compare arms over seeds: their quality, and what each needs to reach a target, with intervals of the differences."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from mt2st_fast.errors import InputError
from mt2st_fast.runs.arms import BASELINES, Arm
from mt2st_fast.runs.comparison_schema import (
    ArmDifferences,
    ArmResult,
    Arrival,
    Comparison,
    ComparisonFacts,
    Difference,
    Measure,
    MeasuredComparison,
    Quality,
    RunNumber,
    SeedRun,
)
from mt2st_fast.runs.conclusions import conclusions, verdicts
from mt2st_fast.runs.intervals import (
    Statistic,
    change_of_medians,
    difference,
    median,
    median_of_differences,
    spread,
)
from mt2st_fast.runs.run_schema import CurvePoint, RunSummary
from mt2st_fast.runs.targets import PLATEAU, Runs, Target, first_reaching, make_targets, plateau
from mt2st_fast.training.history import History

MEASURES: tuple[Measure, ...] = ("seconds", "steps", "examples", "joules")
QUALITIES: tuple[Quality, ...] = ("best", "test", "test_span_f1")

_TO_TARGET: tuple[tuple[str, Literal["seconds_to_target_median", "steps_to_target_median"]], ...] = (
    ("", "seconds_to_target_median"),
    ("steps_", "steps_to_target_median"),
)

Points = Sequence[CurvePoint | None]  # of an arm's runs, in the order of seeds


def summarise_seed(
    history: History, test: float, rows_read: Callable[[int], int], test_span_f1: float | None = None
) -> RunSummary:
    """Summarize one run; its evaluations are kept, so that a target can be set afterwards.

    rows_read: gives the rows of all steps up to a step. test_span_f1: beside `test`, if classes are tags of spans.
    Raises InputError where no evaluation has a value to compare by.
    """
    best = history.best
    if best is None:
        raise InputError(
            f"no evaluation has a value for {history.main}: its development labels are all equal, or there are none; "
            "label others, or choose another main task"
        )
    joules = dict(history.joules)
    steps = history.steps[-1].step
    return {
        "best": best.metrics[history.main],
        "test": None if test != test else test,
        "test_span_f1": None if test_span_f1 != test_span_f1 else test_span_f1,
        "steps": steps,
        "seconds": history.train_seconds,
        "examples": rows_read(steps),
        "joules": joules.get(steps),
        "stopped": history.stopped,
        "taken_by": list(dict.fromkeys(phase.engine for phase in history.phases)),
        "own_labels": history.phases[-1].own_labels,
        "labelled_by": list(history.phases[-1].labelled_by),
        # By task, if the schedule gives a reason for retiring it.
        "retired": {
            task: {"step": phase.first_step, "why": why}
            for phase in history.phases
            for task, why in phase.reasons.items()
        },
        "curve": [
            {
                "step": e.step,
                "seconds": e.train_seconds,
                "examples": rows_read(e.step),
                "joules": joules.get(e.step),
                "quality": e.metrics[history.main],
            }
            for e in history.evaluations
        ],
    }


def compare_runs(
    runs: Runs,
    arms: Sequence[Arm],
    facts: ComparisonFacts,
    target: float | None = None,
    plateau_margin: float = 0.002,
) -> Comparison:
    """Return the content of compare.json: `facts`, and the runs' targets, medians, quartiles, differences and
    conclusions.

    runs: by the names of the arms, in the order of seeds. target: a quality of the main task; None takes the
    highest that every run reached. plateau_margin: a run has reached its plateau once its best rises by less than this.
    A run that never arrives has None, and so has the median if most runs do not arrive.
    """
    targets = make_targets(runs, arms, target)
    arrivals = {arm.name: _arrivals(runs[arm.name], targets, plateau_margin) for arm in arms}
    strategies = {arm.name: _arm_result(arm, runs[arm.name], arrivals[arm.name], targets[0]) for arm in arms}
    by_place = {(arm.strategy, arm.engine): arm.name for arm in arms}

    def against(own: str, base: str) -> ArmDifferences:
        return _differences(runs, arrivals, own, base)

    first = arms[0].engine
    measured: MeasuredComparison = {
        **facts,
        "target": targets[0].median,
        "targets": {each.key: each.to_json() for each in targets},
        "plateau_margin": plateau_margin,
        "steps_between_evaluations": runs[arms[0].name][0]["curve"][0]["step"],
        "strategies": strategies,
        "reductions": {
            arm.name: _reductions(strategies, arm.name, {b: by_place.get((b, arm.engine)) for b in BASELINES})
            for arm in arms
        },
        # What the algorithm saves, within one engine.
        "differences": {
            arm.name: {
                base: against(arm.name, name) if name not in (None, arm.name) else None
                for base in BASELINES
                for name in (by_place.get((base, arm.engine)),)
            }
            for arm in arms
        },
        # What the engine saves: the same strategy on the first engine against each of the others.
        "engine_differences": {
            arm.name: against(by_place[(arm.strategy, first)], arm.name)
            for arm in arms
            if arm.engine != first
        },
        # What both save together: a strategy on the first engine against STL and MTL on each of the others.
        "joint_differences": {
            base.name: {arm.name: against(arm.name, base.name) for arm in arms if arm.engine == first}
            for base in arms
            if base.engine != first and base.strategy in BASELINES
        },
    }
    found = verdicts(measured)
    return {**measured, "verdicts": found, "conclusions": conclusions(measured, len(found))}


def has_spans(runs: Iterable[RunSummary]) -> bool:
    """Return whether any of these runs was tested by spans."""
    return any(run["test_span_f1"] is not None for run in runs)


def _arrivals(runs: Sequence[SeedRun], targets: Sequence[Target], margin: float) -> dict[str, Points]:
    """Return the points at which an arm's runs reach each target and their plateau; None for a run that does not."""
    to_targets = {
        target.key: [first_reaching(run, target.of_seed[run["seed"]]) for run in runs] for target in targets
    }
    return {**to_targets, PLATEAU: [plateau(run, margin) for run in runs]}


def taken(point: CurvePoint | None, measure: Measure) -> float | None:
    """Return what a run had spent by a point of its curve; None for a run that never arrived."""
    if point is None:
        return None
    return point["step"] if measure == "steps" else point[measure]


def _all_taken(points: Points, measure: Measure) -> list[float | None]:
    return [taken(point, measure) for point in points]


def _arrival(points: Points) -> Arrival:
    """Return what an arm's runs had spent by these points."""
    return {
        "reached": sum(point is not None for point in points),
        "seconds": spread(_all_taken(points, "seconds")),
        "steps": spread(_all_taken(points, "steps")),
        "examples": spread(_all_taken(points, "examples")),
        "joules": spread(_all_taken(points, "joules")),
    }


def _arm_result(
    arm: Arm, runs: Sequence[SeedRun], arrivals: Mapping[str, Points], first: Target
) -> ArmResult:
    """Return an arm's medians and quartiles, and its runs."""
    to = {key: _arrival(points) for key, points in arrivals.items()}
    to[PLATEAU]["quality"] = spread([point and point["quality"] for point in arrivals[PLATEAU]])
    return {
        "strategy": arm.strategy,
        "engine": arm.engine,
        "best_median": statistics.median([run["best"] for run in runs]),
        "test_median": median([run["test"] for run in runs]),
        "test_span_f1_median": median([run["test_span_f1"] for run in runs]),
        "seconds_median": statistics.median([run["seconds"] for run in runs]),
        "steps_median": statistics.median([run["steps"] for run in runs]),
        "examples_median": statistics.median([run["examples"] for run in runs]),
        "joules_median": median([run["joules"] for run in runs]),
        "spread": {name: spread([run[name] for run in runs]) for name in (*QUALITIES, *MEASURES)},
        "steps_to_target_median": to[first.key]["steps"]["median"],
        "seconds_to_target_median": to[first.key]["seconds"]["median"],
        "to": to,
        "stopped": sum(run["stopped"] is not None for run in runs),
        "seeds": [
            {
                **run,
                "steps_to_target": point and point["step"],
                "seconds_to_target": point and point["seconds"],
                "to": {key: points[i] for key, points in arrivals.items()},
            }
            for i, (run, point) in enumerate(zip(runs, arrivals[first.key], strict=True))
        ],
    }


def _reductions(
    strategies: Mapping[str, ArmResult], own: str, bases: Mapping[str, str | None]
) -> dict[str, float | None]:
    """Return 1 - time / time of the baseline, in seconds and in steps to target; None where either never arrived."""
    found = {}
    for prefix, key in _TO_TARGET:
        for baseline, name in bases.items():
            theirs = None if name is None else strategies[name][key]
            found[f"{prefix}vs_{baseline}"] = _reduction(strategies[own][key], theirs)
    return found


def _reduction(value: float | None, baseline: float | None) -> float | None:
    return None if value is None or not baseline else 1.0 - value / baseline


def _differences(
    runs: Runs, arrivals: Mapping[str, Mapping[str, Points]], own: str, base: str
) -> ArmDifferences:
    """Return how much more (+) or less (-) an arm needs than another, as a share, and how much better (+) it ends."""

    def of_runs(statistic: Statistic, name: RunNumber) -> Difference:
        return difference(statistic, [run[name] for run in runs[own]], [run[name] for run in runs[base]])

    return {
        "best": of_runs(median_of_differences, "best"),
        "test": of_runs(median_of_differences, "test"),
        "whole": {measure: of_runs(change_of_medians, measure) for measure in MEASURES},
        "to": {
            key: {
                measure: difference(
                    change_of_medians, _all_taken(points, measure), _all_taken(arrivals[base][key], measure)
                )
                for measure in MEASURES
            }
            for key, points in arrivals[own].items()
        },
    }

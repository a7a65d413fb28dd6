"""Compare arms over seeds: their quality, and what each needs to reach a target, with intervals of the differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.runs.arms import BASELINES, Arm
from mt2st_fast.runs.conclusions import conclusions, verdicts
from mt2st_fast.runs.intervals import (
    change_of_medians,
    difference,
    median,
    median_of_differences,
    spread,
)
from mt2st_fast.runs.targets import PLATEAU, Run, Runs, Target, first_reaching, make_targets, plateau
from mt2st_fast.training.history import History

MEASURES = ("seconds", "steps", "examples", "joules")
OF_RUNS = ("best", "test", "test_span_f1", *MEASURES)


def summarise_seed(
    history: History, test: float, rows_read: Callable[[int], int], test_span_f1: float | None = None
) -> dict[str, Any]:
    """Return one run as JSON-able values; its evaluations are kept, so that a target can be set afterwards.

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
    facts: Mapping[str, Any],
    target: float | None = None,
    plateau_margin: float = 0.002,
) -> dict[str, Any]:
    """Return the content of compare.json: `facts`, and the runs' targets, medians, quartiles, differences and
    conclusions.

    runs: by the names of the arms, in the order of seeds. facts: metric, n_seeds, engines, environment, load, and
    further entries for the report. target: a quality of the main task; None takes the highest that every run reached.
    plateau_margin: a run has reached its plateau once its best rises by less than this. A run that never arrives has
    None, and so has the median if most runs do not arrive.
    """
    targets = make_targets(runs, arms, target)
    arrivals = {arm.name: _arrivals(runs[arm.name], targets, plateau_margin) for arm in arms}
    strategies = {arm.name: _strategy(arm, runs[arm.name], arrivals[arm.name], targets[0]) for arm in arms}
    by_place = {(arm.strategy, arm.engine): arm.name for arm in arms}

    def against(own: str, base: str | None) -> dict[str, Any] | None:
        return None if base in (None, own) else _differences(runs, arrivals, own, str(base))

    first = arms[0].engine
    comparison: dict[str, Any] = {
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
            arm.name: {base: against(arm.name, by_place.get((base, arm.engine))) for base in BASELINES}
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
    comparison["verdicts"] = verdicts(comparison)
    return comparison | {"conclusions": conclusions(comparison)}


def has_spans(runs: Iterable[Run]) -> bool:
    """Return whether any of these runs was tested by spans."""
    return any(run["test_span_f1"] is not None for run in runs)


def _arrivals(runs: Sequence[Run], targets: Sequence[Target], margin: float) -> dict[str, list[Any]]:
    """Return the points at which an arm's runs reach each target and their plateau; None for a run that does not."""
    to_targets = {
        target.key: [first_reaching(run, target.of_seed[run["seed"]]) for run in runs] for target in targets
    }
    return {**to_targets, PLATEAU: [plateau(run, margin) for run in runs]}


def _taken(points: Sequence[Mapping[str, Any] | None], measure: str) -> list[float | None]:
    """Return what each run had spent by its point: seconds, steps, examples or joules."""
    name = "step" if measure == "steps" else measure
    return [None if point is None else point[name] for point in points]


def _strategy(
    arm: Arm, runs: Sequence[Run], arrivals: Mapping[str, Sequence[Any]], first: Target
) -> dict[str, Any]:
    """Return an arm's medians and quartiles, and its runs."""
    spreads: dict[str, Any] = {name: spread([run[name] for run in runs]) for name in OF_RUNS}
    reached = arrivals[first.key]
    to: dict[str, Any] = {
        key: {
            "reached": sum(point is not None for point in points),
            **{measure: spread(_taken(points, measure)) for measure in MEASURES},
        }
        for key, points in arrivals.items()
    }
    to[PLATEAU]["quality"] = spread(_taken(arrivals[PLATEAU], "quality"))
    return {
        "strategy": arm.strategy,
        "engine": arm.engine,
        **{f"{name}_median": median([run[name] for run in runs]) for name in OF_RUNS},
        "spread": spreads,
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
            for i, (run, point) in enumerate(zip(runs, reached, strict=True))
        ],
    }


def _reductions(
    strategies: Mapping[str, Mapping[str, Any]], own: str, bases: Mapping[str, str | None]
) -> dict[str, float | None]:
    """Return 1 - time / time of the baseline, in seconds and in steps to target; None where either never arrived."""
    return {
        f"{prefix}vs_{baseline}": _reduction(strategies[own][key], strategies.get(name or "", {}).get(key))
        for prefix, key in (("", "seconds_to_target_median"), ("steps_", "steps_to_target_median"))
        for baseline, name in bases.items()
    }


def _reduction(value: float | None, baseline: float | None) -> float | None:
    return None if value is None or not baseline else 1.0 - value / baseline


def _differences(
    runs: Runs, arrivals: Mapping[str, Mapping[str, Sequence[Any]]], own: str, base: str
) -> dict[str, Any]:
    """Return how much more (+) or less (-) an arm needs than another, as a share, and how much better (+) it ends."""
    found: dict[str, Any] = {
        name: difference(
            median_of_differences, [run[name] for run in runs[own]], [run[name] for run in runs[base]]
        )
        for name in ("best", "test")
    }
    found["whole"] = {
        measure: difference(
            change_of_medians, [run[measure] for run in runs[own]], [run[measure] for run in runs[base]]
        )
        for measure in MEASURES
    }
    found["to"] = {
        key: {
            measure: difference(
                change_of_medians, _taken(points, measure), _taken(arrivals[base][key], measure)
            )
            for measure in MEASURES
        }
        for key, points in arrivals[own].items()
    }
    return found

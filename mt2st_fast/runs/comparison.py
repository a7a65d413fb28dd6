"""Strategies on the same data, over seeds: quality, steps, seconds, and what it takes to reach a target."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from mt2st_fast.runs.markdown import markdown_table
from mt2st_fast.training.history import History

COLUMNS = (
    "strategy",
    "best development:",
    "test:",
    "steps:",
    "seconds:",
    "steps to target:",
    "seconds to target:",
    "time to target vs stl:",
    "vs mtl:",
)


def summarise_seed(history: History, test: float) -> dict[str, Any]:
    """One run as JSON-able values; its evaluations are kept, so that a target can be set afterwards."""
    best = history.best
    return {
        "best": best.metrics[history.main] if best else None,
        "test": test,
        "steps": history.steps[-1].step,
        "seconds": history.train_seconds,
        "curve": [
            {"step": e.step, "seconds": e.train_seconds, "quality": e.metrics[history.main]}
            for e in history.evaluations
        ],
    }


def compare_runs(runs: dict[str, list[dict[str, Any]]], target: float | None = None) -> dict[str, Any]:
    """Medians over seeds by strategy, and the reductions of time to target against stl and mtl.

    `target` is a quality of the main task; None takes the highest that every run reached. A run that does
    not reach it has None, and so has the median where most do not.
    """
    if target is None:
        target = min(run["best"] for seeds in runs.values() for run in seeds)
    strategies: dict[str, dict[str, Any]] = {}
    for name, seeds in runs.items():
        reached = [_first_reaching(run, target) for run in seeds]
        strategies[name] = {
            "best_median": statistics.median(run["best"] for run in seeds),
            "test_median": statistics.median(run["test"] for run in seeds),
            "steps_median": statistics.median(run["steps"] for run in seeds),
            "seconds_median": statistics.median(run["seconds"] for run in seeds),
            "steps_to_target_median": _median([None if r is None else r["step"] for r in reached]),
            "seconds_to_target_median": _median([None if r is None else r["seconds"] for r in reached]),
            "seeds": [
                {**run, "steps_to_target": r and r["step"], "seconds_to_target": r and r["seconds"]}
                for run, r in zip(seeds, reached, strict=True)
            ],
        }
    return {"target": target, "strategies": strategies, "reductions": _reductions(strategies)}


def _first_reaching(run: dict[str, Any], target: float) -> dict[str, Any] | None:
    return next((point for point in run["curve"] if point["quality"] >= target), None)


def _median(values: Sequence[float | None]) -> float | None:
    """The median, a run that never arrived counting as later than any other."""
    median = statistics.median(float("inf") if value is None else value for value in values)
    return None if median == float("inf") else median


def _reductions(strategies: dict[str, dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """1 - time / time of the baseline, in seconds and in steps to target; None where either never arrived."""
    return {
        name: {
            f"{prefix}vs_{baseline}": _reduction(strategy[key], strategies.get(baseline, {}).get(key))
            for prefix, key in (("", "seconds_to_target_median"), ("steps_", "steps_to_target_median"))
            for baseline in ("stl", "mtl")
        }
        for name, strategy in strategies.items()
    }


def _reduction(value: float | None, baseline: float | None) -> float | None:
    return None if value is None or not baseline else 1.0 - value / baseline


def render(comparison: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        f"# {comparison['main']} on {comparison['data']}: strategies compared",
        "",
        f"Medians over {comparison['n_seeds']} seeds. Target: development {comparison['metric']} "
        f"{comparison['target']:.4f}. Seconds are training steps only, on {comparison['environment']['processor']}, "
        f"{comparison['environment']['threads']} threads.",
        "",
        *markdown_table(
            COLUMNS,
            table_rows(comparison),
        ),
        "",
        "![time to target](compare.png)",
        "",
    ]
    return "\n".join(lines)


def table_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """The cells of the table, a row a strategy."""
    rows = []
    for name, strategy in comparison["strategies"].items():
        reached = sum(run["steps_to_target"] is not None for run in strategy["seeds"])
        seeds = len(strategy["seeds"])
        steps, seconds = strategy["steps_to_target_median"], strategy["seconds_to_target_median"]
        missing = f"reached by {reached} of {seeds}"
        reduction = comparison["reductions"][name]
        rows.append(
            [
                name,
                f"{strategy['best_median']:.4f}",
                f"{strategy['test_median']:.4f}",
                f"{strategy['steps_median']:,.0f}",
                f"{strategy['seconds_median']:.1f}",
                missing if steps is None else f"{steps:,.0f}",
                missing if seconds is None else f"{seconds:.1f}",
                _percent(reduction["vs_stl"]),
                _percent(reduction["vs_mtl"]),
            ]
        )
    return rows


def _percent(reduction: float | None) -> str:
    """A change as people say it: 60 % less time is -60 %."""
    return "–" if reduction is None else f"{round(-100 * reduction):+d} %"

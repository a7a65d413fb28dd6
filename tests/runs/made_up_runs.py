"""Runs of a comparison as a test makes them up: curves of one second a step."""

from __future__ import annotations

from mt2st_fast.runs.arms import arms_of
from mt2st_fast.runs.comparison import compare_runs

FACTS = {
    "metric": "accuracy",
    "n_seeds": 3,
    "engines": ["fused"],
    "environment": {"cores": 4},
    "load": 0.1,
    "diverged": {},
}


def run_of(seed, *qualities, seconds=1.0, test=0.5, span_f1=None, joules=None, retired=None):
    """A run that is evaluated after every step."""
    curve = [
        {
            "step": i,
            "seconds": i * seconds,
            "examples": 8 * i,
            "joules": joules and i * joules,
            "quality": quality,
        }
        for i, quality in enumerate(qualities, 1)
    ]
    best = max(quality for quality in qualities if quality == quality)
    last = {name: curve[-1][name] for name in ("seconds", "examples", "joules")}
    return {
        "seed": seed,
        "best": best,
        "test": test,
        "test_span_f1": span_f1,
        "steps": len(curve),
        "stopped": None,
        "taken_by": ["eager"],
        "own_labels": 0,
        "labelled_by": [],
        "retired": retired or {},
        "curve": curve,
        **last,
    }


def compared(runs, engines=("fused",), target=None, **facts):
    """The comparison of runs by strategy, or by (strategy, engine)."""
    strategies = list(dict.fromkeys(name.partition(" ")[0] for name in runs))
    n_seeds = min(map(len, runs.values()))
    arms = arms_of(strategies, engines)
    return compare_runs(runs, arms, {**FACTS, "n_seeds": n_seeds, "engines": list(engines), **facts}, target)

"""What can be concluded from a comparison and what cannot: in general, and for each difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from mt2st_fast.runs.arms import BASELINES
from mt2st_fast.runs.comparison_schema import (
    ArmDifferences,
    ArmResult,
    Difference,
    MeasuredComparison,
    Verdict,
)
from mt2st_fast.runs.formatting import in_percent, in_points
from mt2st_fast.runs.intervals import FEW_SEEDS, LEAST_SEEDS, LEVEL
from mt2st_fast.runs.targets import PLATEAU
from mt2st_fast.spelling import counted

# The target at which each baseline is compared, unless the user has given one.
OWN_TARGET = {"stl": "stl_best", "mtl": "mtl_best_less"}
LESS_OR_MORE = ("less time", "more time")
BUSY = 0.5  # share of the CPUs that others use: from here on, times depend on them


def conclusions(comparison: MeasuredComparison, n_verdicts: int) -> list[str]:
    """Return sentences on how much the number of seeds and the machine allow one to conclude at all."""
    n_seeds = comparison["n_seeds"]
    said = [_on_seeds(n_seeds), *_on_diverged(comparison), *_on_load(comparison)]
    if n_seeds >= LEAST_SEEDS and n_verdicts > 1:
        said.append(
            "Each difference has its own interval: of twenty intervals where there is no real difference, about one "
            "would exclude 0 by chance."
        )
    return said


def _on_seeds(n: int) -> str:
    seeds = counted(n, "seed")
    if n < LEAST_SEEDS:
        return (
            f"{seeds}: nothing can be concluded about differences between strategies; use --seeds {LEAST_SEEDS} or "
            f"more for a hint, {FEW_SEEDS} or more for an answer."
        )
    intervals = (
        f"{100 * LEVEL:g} % intervals, from a bootstrap over seeds that keeps the runs of each seed together"
    )
    if n < FEW_SEEDS:
        return (
            f"{seeds}; {intervals}. With fewer than {FEW_SEEDS} seeds such intervals are too narrow, and even a "
            f"difference of the same sign for all seeds may be chance (p = {2 * 0.5**n:.2g} in a sign test): take what "
            "they show as a hint."
        )
    return f"{seeds}; {intervals}."


def _on_diverged(comparison: MeasuredComparison) -> Iterator[str]:
    for seed, line in comparison["diverged"].items():
        yield f"Seed {seed} is left out for all strategies, as a run of it diverged: {line}."


def _on_load(comparison: MeasuredComparison) -> Iterator[str]:
    load, cpus = comparison["load"], comparison["environment"]["cores"]
    if load is not None and cpus and load > BUSY * cpus:
        yield (
            f"The machine was busy when the comparison began (load {load:.1f} on {cpus} CPUs): do not trust the "
            "seconds; steps, examples and qualities are not affected."
        )


def verdicts(comparison: MeasuredComparison) -> list[Verdict]:
    """Return what is shown for each arm against STL and MTL on its engine, and for each engine with the same strategy.

    Its time is to the target that it names, and `whole` is the time of the run.
    """
    strategies = comparison["strategies"]
    found = [
        _verdict(
            comparison,
            own,
            _baseline(strategies, base, strategies[own]["engine"]),
            _target(comparison, base),
            d,
        )
        for own, bases in comparison["differences"].items()
        for base, d in bases.items()
        if d is not None and strategies[own]["strategy"] not in BASELINES[: BASELINES.index(base)]
    ]
    first = next(iter(comparison["targets"]))
    for other, d in comparison["engine_differences"].items():
        own = _baseline(strategies, strategies[other]["strategy"], comparison["engines"][0])
        found.append(_verdict(comparison, own, other, first, d))
    return found


def _baseline(strategies: Mapping[str, ArmResult], strategy: str, engine: str) -> str:
    return next(n for n, s in strategies.items() if (s["strategy"], s["engine"]) == (strategy, engine))


def _target(comparison: MeasuredComparison, base: str) -> str:
    return "given" if "given" in comparison["targets"] else OWN_TARGET[base]


def _verdict(comparison: MeasuredComparison, own: str, base: str, key: str, found: ArmDifferences) -> Verdict:
    hint = comparison["n_seeds"] < FEW_SEEDS
    tested = found["test"]["value"] is not None
    rows = "on test rows" if tested else "on development rows"
    quality = _said(found["test" if tested else "best"], ("lower", "higher"), in_points, hint)
    return {
        "own": own,
        "base": base,
        "time": f"to {comparison['targets'][key]['label']}: {_on_time(comparison, own, base, key, found, hint)}",
        "plateau": _on_time(comparison, own, base, PLATEAU, found, hint),
        "whole": _said(found["whole"]["seconds"], LESS_OR_MORE, in_percent, hint),
        "quality": f"{comparison['metric']} {rows}, in points: {quality}",
    }


def _on_time(
    comparison: MeasuredComparison, own: str, base: str, key: str, found: ArmDifferences, hint: bool
) -> str:
    missing = list(_missing(comparison, own, base, key))
    if missing:
        return f"{' and '.join(missing)}, so times are not compared"
    return _said(found["to"][key]["seconds"], LESS_OR_MORE, in_percent, hint)


def _missing(comparison: MeasuredComparison, own: str, base: str, key: str) -> Iterator[str]:
    for name in (own, base):
        strategy = comparison["strategies"][name]
        n, reached = len(strategy["seeds"]), strategy["to"][key]["reached"]
        if reached < n:
            yield f"{name} reached it for {reached} of {counted(n, 'seed')}"


def _said(
    difference: Difference, words: tuple[str, str], shown: Callable[[Difference], str], hint: bool
) -> str:
    """Say what an interval shows: if it contains 0, no difference is shown, though there may be one."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "nothing can be concluded"
    if low <= 0.0 <= high:
        return f"no difference shown ({shown(difference)})"
    return f"{words[0] if high < 0 else words[1]} ({'hint: ' * hint}{shown(difference)})"


def sentence(verdict: Verdict) -> str:
    """Return a verdict as one line for a terminal."""
    return (
        f"{verdict['own']} against {verdict['base']}: {verdict['time']}; to its plateau: {verdict['plateau']}; "
        f"for the whole run: {verdict['whole']}; {verdict['quality']}."
    )

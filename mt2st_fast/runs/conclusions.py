"""What can be concluded from a comparison and what cannot, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mt2st_fast.runs.arms import BASELINES
from mt2st_fast.runs.intervals import FEW_SEEDS, LEAST_SEEDS, LEVEL
from mt2st_fast.runs.shown import change, points
from mt2st_fast.runs.targets import PLATEAU

# By what each baseline is measured, where it is not a quality that the user has given.
OWN_TARGET = {"stl": "stl_best", "mtl": "mtl_best_less"}


def conclusions(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence on how much the seeds say at all, one for each difference from a baseline, and one for each engine."""
    strategies = comparison["strategies"]
    n_seeds = min(len(strategy["seeds"]) for strategy in strategies.values())
    said = [_on_seeds(n_seeds)]
    if n_seeds < LEAST_SEEDS:
        return said
    of_pairs = [
        _against(comparison, own, base, found)
        for own, bases in comparison["differences"].items()
        for base, found in bases.items()
        if found is not None and strategies[own]["strategy"] not in BASELINES[: BASELINES.index(base)]
    ]
    if len(of_pairs) > 1:
        said.append(
            "Each difference has an interval of its own: of twenty with nothing behind them, about one would lie apart "
            "from 0 by chance."
        )
    return [*said, *of_pairs, *_on_engines(comparison)]


def _on_seeds(n: int) -> str:
    seeds = f"{n} seed{'s' * (n != 1)}"
    if n < LEAST_SEEDS:
        return (
            f"{seeds}: nothing can be concluded about differences between strategies; give --seeds {LEAST_SEEDS} or "
            f"more, {FEW_SEEDS} or more for a firm answer."
        )
    intervals = f"intervals are {LEVEL:.0%}, by a bootstrap over seeds that keeps runs of one seed together"
    if n < FEW_SEEDS:
        return (
            f"{seeds}; {intervals}. Of fewer than {FEW_SEEDS} seeds such intervals are too narrow, and even all seeds "
            f"on one side may be chance (p = {2 * 0.5**n:.2g} in a sign test): take what follows as a hint."
        )
    return f"{seeds}; {intervals}."


def _against(comparison: Mapping[str, Any], own: str, base: str, found: Mapping[str, Any]) -> str:
    """An arm against STL or MTL of its engine: time to the baseline's target, then quality at the end."""
    targets = comparison["targets"]
    key = "given" if "given" in targets else OWN_TARGET[base]
    engine = comparison["strategies"][own]["engine"]
    base_arm = next(
        name for name, s in comparison["strategies"].items() if (s["strategy"], s["engine"]) == (base, engine)
    )
    times = [_on_time(comparison, own, base_arm, each, found) for each in (key, PLATEAU)]
    return f"{own} against {base_arm}: {'; '.join(times)}; {_on_quality(comparison, found)}."


def _on_time(comparison: Mapping[str, Any], own: str, base: str, key: str, found: Mapping[str, Any]) -> str:
    label = "its plateau" if key == PLATEAU else comparison["targets"][key]["label"]
    missing = list(_missing(comparison, own, base, key))
    if missing:
        return f"to {label}, {' and '.join(missing)}, so nothing is said of the time"
    return f"to {label}, {_verdict(found['to'][key]['seconds'], 'less time', 'more time', change)}"


def _missing(comparison: Mapping[str, Any], own: str, base: str, key: str) -> Iterator[str]:
    for name in (own, base):
        strategy = comparison["strategies"][name]
        n, reached = len(strategy["seeds"]), strategy["to"][key]["reached"]
        if reached < n:
            yield f"{name} came in {reached} of {n} seeds"


def _on_quality(comparison: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    where = "test" if found["test"]["value"] is not None else "best"
    label = f"{comparison['metric']} " + (
        "on test rows" if where == "test" else "on development rows at best"
    )
    return f"{label}: {_verdict(found[where], 'lower', 'higher', points)}"


def _verdict(difference: Mapping[str, float | None], below: str, above: str, shown: Any) -> str:
    """What an interval says: where 0 lies in it, no difference is shown, which does not say that there is none."""
    value, low, high = difference["value"], difference["low"], difference["high"]
    if value is None or low is None or high is None:
        return "no difference can be told"
    text = f"{shown(value)} [{shown(low)}, {shown(high)}]"
    if low <= 0.0 <= high:
        return f"no difference shown ({text})"
    return f"{below if high < 0 else above} ({text})"


def _on_engines(comparison: Mapping[str, Any]) -> Iterator[str]:
    """The same strategy on both engines, step for step: what the engine saves whatever the strategy."""
    for other, found in comparison["engine_differences"].items():
        strategy = comparison["strategies"][other]["strategy"]
        own = next(n for n, s in comparison["strategies"].items() if s["strategy"] == strategy)
        key = next(iter(comparison["targets"]))
        time = _on_time(comparison, own, other, key, found)
        yield f"The engine alone, {own} against {other}: {time}; {_on_quality(comparison, found)}."

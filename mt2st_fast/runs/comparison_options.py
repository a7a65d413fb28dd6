"""The options of a comparison besides the configuration of its runs; each field says what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_finite_number
from mt2st_fast.runs.config import ENGINES
from mt2st_fast.runs.options import check_options, option, positive, some_of
from mt2st_fast.training.schedules import strategies

MOST_RUNS = 10_000


def _reachable(shown: str, value: Any) -> None:
    check_finite_number(**{shown: value})
    if value > 1:
        raise InputError(f"{shown} must be at most 1, as every metric is (90 % is 0.9), not {value}")


@dataclass(frozen=True)
class ComparisonOptions:
    """What is compared, over how many seeds, and which targets the runs should reach."""

    strategies: tuple[str, ...] = option(
        ("stl", "mtl", "diminish", "switch"),
        "Strategy",
        "comma-separated strategies",
        test=some_of(tuple(strategies())),
    )
    seeds: int = option(3, "Training", "runs per strategy", min=1, max=MOST_RUNS)
    target: float | None = option(
        None,
        "Output",
        "main-task quality to reach, besides the best of stl and of mtl; by default the highest that all runs reach",
        test=_reachable,
    )
    plateau_margin: float = option(
        0.002,
        "Output",
        "a run has reached its plateau once its best result rises by less than this for the rest of the run",
        test=positive,
    )
    engine: tuple[str, ...] = option(
        ("fused",),
        "Machine",
        "fused, torch (separate layers, a dense table and torch's own optimizer), or both: fused,torch",
        test=some_of(ENGINES),
    )
    tune: int = option(
        0,
        "Strategy",
        "trials per strategy before the comparison, on a separate seed, to tune the learning rate, switch point and "
        "auxiliary weight unless they are given",
        min=0,
        max=MOST_RUNS,
    )

    def __post_init__(self) -> None:
        """Raise InputError for an option that cannot be used, naming it."""
        check_options(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ComparisonOptions:
        """Return the options that `asdict` gave, in the form that JSON stores."""
        lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
        return cls(**{**stored, **lists})

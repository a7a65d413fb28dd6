"""compare.json by its keys, which are a contract with whoever reads it. Numbers that could not be measured are null."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from mt2st_fast.runs.run_schema import BackendSummary, CurvePoint, DataSummary, RunSummary

Measure = Literal["seconds", "steps", "examples", "joules"]
Quality = Literal["best", "test", "test_span_f1"]
RunNumber = Literal[Quality, Measure]


class Spread(TypedDict):
    """Median and quartiles over seeds; null where a run that is needed never arrived."""

    q1: float | None
    median: float | None
    q3: float | None


class Difference(TypedDict):
    """A difference between two arms, with its interval."""

    value: float | None
    low: float | None
    high: float | None


class SeedRun(RunSummary):
    """A finished run of an arm."""

    seed: int


class SeedResult(SeedRun):
    """A run of an arm with the points at which it reached each target and its plateau."""

    steps_to_target: int | None
    seconds_to_target: float | None
    to: dict[str, CurvePoint | None]


class Arrival(TypedDict):
    """What an arm's runs need to a target; quality: at their plateaus."""

    reached: int
    seconds: Spread
    steps: Spread
    examples: Spread
    joules: Spread
    quality: NotRequired[Spread]


class ArmResult(TypedDict):
    """An arm: its medians and quartiles, and its runs in the order of seeds; to: by target, and for the plateau."""

    strategy: str
    engine: str
    best_median: float
    test_median: float | None
    test_span_f1_median: float | None
    seconds_median: float
    steps_median: float
    examples_median: float
    joules_median: float | None
    spread: dict[RunNumber, Spread]
    steps_to_target_median: float | None
    seconds_to_target_median: float | None
    to: dict[str, Arrival]
    stopped: int
    seeds: list[SeedResult]


class ArmDifferences(TypedDict):
    """How much better (+) an arm ends than another, and how much more (+) of each measure it needs."""

    best: Difference
    test: Difference
    whole: dict[Measure, Difference]
    to: dict[str, dict[Measure, Difference]]


class Verdict(TypedDict):
    """What the differences between two arms show, as texts."""

    own: str
    base: str
    time: str
    plateau: str
    whole: str
    quality: str


class TargetSummary(TypedDict):
    """A target: its label, and its quality by seed."""

    label: str
    median: float
    of_seed: dict[str, float]


class Trial(TypedDict):
    """A trial of tuning: its values, and its best with the step of it, or the error that ended it."""

    values: dict[str, float]
    best: float | None
    step: int | None
    error: str | None


class TunedStrategy(TypedDict):
    """The trials of a strategy, and the number of the chosen one."""

    chosen: int
    trials: list[Trial]


class Tuning(TypedDict):
    """All trials of a comparison; fixed: the options that were given, which trials do not change."""

    trials: int
    seed: int
    fixed: list[str]
    ranges: dict[str, list[float]]
    strategies: dict[str, TunedStrategy]


class ComparisonFacts(TypedDict):
    """What a comparison knows before its runs are evaluated."""

    main: str
    metric: str
    data: str
    read: DataSummary
    auxiliary: list[str]
    config: dict[str, Any]
    n_seeds: int
    diverged: dict[str, str]
    engines: list[str]
    load: float | None
    energy: str
    environment: dict[str, Any]
    backend: BackendSummary
    tuning: Tuning | None


class MeasuredComparison(ComparisonFacts):
    """The facts, and what the runs show in numbers; arms by name."""

    target: float
    targets: dict[str, TargetSummary]
    plateau_margin: float
    steps_between_evaluations: int
    strategies: dict[str, ArmResult]
    reductions: dict[str, dict[str, float | None]]
    differences: dict[str, dict[str, ArmDifferences | None]]
    engine_differences: dict[str, ArmDifferences]
    joint_differences: dict[str, dict[str, ArmDifferences]]


class Comparison(MeasuredComparison):
    """compare.json: also what can be concluded from the numbers."""

    verdicts: list[Verdict]
    conclusions: list[str]

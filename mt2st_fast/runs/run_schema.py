"""The JSON files of a run by their keys: facts.json, against.json and report.json.

The keys are a contract with whoever reads these files. Numbers that could not be measured are null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from mt2st_fast.data.record import LabelsRead
from mt2st_fast.serving.spans import SpanFigures


class FileSummary(TypedDict):
    """A file that was read; left_out counts what was skipped, by kind."""

    path: str
    part: str
    units: int
    rows: int
    left_out: Mapping[str, int]


class ColumnSummary(TypedDict):
    """A column of a table that was read."""

    name: str
    taken_as: str
    values: int
    empty: int
    nan: int


class DataSummary(TypedDict):
    """What was read; rows and tokens by part (train, dev, test)."""

    name: str
    rows: dict[str, int]
    tokens: dict[str, int]
    vocabulary: int
    files: list[FileSummary]
    columns: list[ColumnSummary]
    understood: dict[str, str]
    labels: list[LabelsRead]
    notes: list[str]


class RunData(DataSummary):
    """What a run has read, with the number of training rows that have a label of the main task."""

    main_labels: int


class BackendSummary(TypedDict):
    """The backend of the heads, and why it was chosen."""

    name: str
    reason: str


class TaskFacts(TypedDict):
    """A task of a run. A task on words has no outputs."""

    kind: str
    outputs: int | None
    metric: str
    test: float | None


class TaskResult(TaskFacts):
    """A task in a report; last_dev: at the last evaluation in which it was active."""

    last_dev: float | None
    retired_at_step: int | None


class ClassResult(TypedDict):
    """A class of the main task on test rows; support is the number of its rows."""

    name: str
    support: int
    precision: float | None
    recall: float | None
    f1: float | None


class ScoreSummary(TypedDict):
    """The score of the saved model on test rows; spans: if the classes are tags of spans."""

    metric: str
    value: float | None
    rows: int
    classes: list[ClassResult]
    spans: SpanFigures | None


class VectorsSummary(TypedDict):
    """The vectors file: how many vectors it has, their length, and how many words it leaves out."""

    count: int
    dimension: int
    left_out: int


class RunBasics(TypedDict):
    """What a run had and did, as all of its files say it."""

    environment: dict[str, Any]
    data: RunData
    config: dict[str, Any]
    init: dict[str, Any] | None
    schedule: str
    decisions: list[str]
    backend: BackendSummary
    steps: int
    epochs: float


class RunOutcome(RunBasics):
    """What a run had, did and reached; test metrics are those of its last weights."""

    main: str
    tasks: dict[str, TaskFacts]
    tokens: float


class RunFacts(RunOutcome):
    """facts.json: what a report shows beyond the history; records: the number of lines of history.jsonl."""

    format: str
    score: ScoreSummary
    kept: list[str]
    untrained: list[str]
    vectors: VectorsSummary
    neighbours: dict[str, list[str]]
    records: int


class CurvePoint(TypedDict):
    """An evaluation of a run, and what the run had spent until then."""

    step: int
    seconds: float
    examples: int
    joules: float | None
    quality: float | None


class Retirement(TypedDict):
    """The step at which a schedule retired a task, and its reason."""

    step: int
    why: str


class RunSummary(TypedDict):
    """A finished run as comparisons see it; retired: by task, if the schedule gives a reason.

    own_labels: the rows that trained with the model's own label at the end (self-training); labelled_by: the tasks by
    whose labels these rows were labelled as well.
    """

    best: float
    test: float | None
    test_span_f1: float | None
    steps: int
    seconds: float
    examples: int
    joules: float | None
    stopped: str | None
    taken_by: list[str]
    own_labels: int
    labelled_by: list[str]
    retired: dict[str, Retirement]
    curve: list[CurvePoint]


class RunAgainst(RunSummary):
    """One of two runs; at_target: where it reached the best of the other."""

    at_target: CurvePoint | None


class Against(TypedDict):
    """against.json: a run and one of another strategy, both by name; target is the best of the latter."""

    own: str
    other: str
    target: float
    runs: dict[str, RunAgainst]


class MainResult(TypedDict):
    """The main task: its quality at the end (last_dev, test) and its best on development rows."""

    task: str
    metric: str
    best: float | None
    best_step: int | None
    last_dev: float | None
    test: float | None


class PhaseSummary(TypedDict):
    """A phase of a run (`PhaseRecord`), with the median milliseconds of its steps, of all and by the part trained."""

    first_step: int
    active: list[str]
    turns: str
    own_labels: int
    labelled_by: list[str]
    engine: str
    passed_over: dict[str, str]
    graph: str | None
    step_ms_median: float | None
    step_ms_median_by_part: dict[str, float | None]


class PartSummary(TypedDict):
    """A part of the model (`PartRecord`); importance_shares: by task, of the importances of all parts."""

    name: str
    rows: int | None
    cost: float
    becomes: str
    importance: dict[str, float]
    importance_shares: dict[str, float]


class PartsChosen(TypedDict):
    """The selection of the parts that train on, and the share of the main task's updates that it has saved."""

    step: int
    measure: str
    seconds: float
    frozen_cost_share: float
    tasks: list[str]
    parts: list[PartSummary]


class RunReport(RunBasics):
    """report.json, also what report.md and report.html are made from."""

    strategy: str
    main: MainResult
    tasks: dict[str, TaskResult]
    score: ScoreSummary
    kept: list[str]
    untrained: list[str]
    stopped: str | None
    train_seconds: float
    tokens_per_second: float
    phases: list[PhaseSummary]
    chosen_parts: PartsChosen | None
    vectors: VectorsSummary
    neighbours: dict[str, list[str]]
    against: Against | None

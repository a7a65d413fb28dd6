"""What happened while training: steps, evaluations and phases, as plain records.

Seconds are not compared: two runs that computed the same thing are equal, however long they took.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mt2st_fast.files import json_text, reading, write_atomically


@dataclass(frozen=True)
class StepRecord:
    """Means over the steps since the record before, up to and including `step` (counted from 1)."""

    step: int
    epoch: float
    total: float
    losses: dict[str, float]  # by active task
    weights: dict[str, float]  # by active task, at `step`
    learning_rate: float
    step_ms: float = field(compare=False)
    # Spent so far in training steps, and in choosing what trains on.
    train_seconds: float = field(compare=False)
    # How many of the steps trained which part; empty where all parameters train in all.
    trained: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Quality on the validation batches after `step` steps, by task; the metric is the task's own."""

    step: int
    epoch: float
    metrics: dict[str, float]
    train_seconds: float = field(compare=False)


@dataclass(frozen=True)
class PhaseRecord:
    """A stretch of training with one set of active tasks, main task first.

    turns: how shared and task parameters take turns in it, "" where all train; records of steps say which did.
    engine: what took its steps. passed_over: why the engines before that one in the order did not, by their names; for
    the engine itself, why it left some steps to the last one. graph: with `Trainer(graph=True)`, "captured" or
    "not captured: ..." with the reason; None without.
    """

    first_step: int
    active: tuple[str, ...]
    reasons: dict[str, str] = field(default_factory=dict)  # why tasks retired, where the schedule says it
    turns: str = ""
    # How it was computed, not what:
    engine: str = field(default="", compare=False)
    passed_over: dict[str, str] = field(default_factory=dict, compare=False)
    graph: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PartRecord:
    """A part of the model as it was measured: a layer, a head, or some rows of a table.

    parameters: its names in the run. rows: how many of a table's it is. cost: how many numbers of it a step moved.
    importance: by task. becomes: "trained", "frozen", or "retired" with its task.
    """

    name: str
    parameters: tuple[str, ...]
    rows: int | None
    cost: float
    importance: dict[str, float]
    becomes: str


@dataclass(frozen=True)
class SelectionRecord:
    """Which parts train on from step `step` on, and by what they were chosen; see training/importance.py."""

    step: int
    measure: str
    parts: tuple[PartRecord, ...]
    seconds: float = field(compare=False)  # that measuring took

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SelectionRecord:
        """From what `asdict` gave."""
        parts = [PartRecord(**{**part, "parameters": tuple(part["parameters"])}) for part in stored["parts"]]
        return cls(**{**stored, "parts": tuple(parts)})

    def shares(self, task: str) -> tuple[float, ...]:
        """Every part's share of the importance to a task, 0 where nothing matters."""
        values = [part.importance.get(task, 0.0) for part in self.parts]
        total = sum(values)
        return tuple(value / total if total else 0.0 for value in values)


@dataclass
class History:
    """Everything that `fit` saw, in order; `main` is the main task.

    stopped: why a run ended before its last step, where something in it decided so. joules: (step, joules of all
    training steps up to it) at every record, where somebody measures them (see `training/energy.py`).
    """

    main: str
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    phases: list[PhaseRecord] = field(default_factory=list)
    selections: list[SelectionRecord] = field(default_factory=list)
    stopped: str | None = None
    joules: list[tuple[int, float]] = field(default_factory=list, compare=False)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation that is best for the main task, the earliest of equals; None without any."""
        measured = [e for e in self.evaluations if not math.isnan(e.metrics[self.main])]
        return max(measured, key=lambda e: e.metrics[self.main], default=None)

    @property
    def train_seconds(self) -> float:
        """Seconds spent in training steps and in choosing parts: no evaluation, no checkpoint, no logging."""
        return self.steps[-1].train_seconds if self.steps else 0.0

    def step_ms_median(self, phase: PhaseRecord, part: str | None = None) -> float | None:
        """Median milliseconds of a step of this phase, or of its steps that train a part; None if no record is of such
        steps alone.
        """
        later = [p.first_step for p in self.phases if p.first_step > phase.first_step]
        last = min(later, default=float("inf"))
        # The record that spans the border belongs to neither side.
        inside = [
            record.step_ms
            for before, record in zip([None, *self.steps], self.steps, strict=False)
            if (before.step if before else 0) >= phase.first_step
            and record.step <= last
            and (part is None or list(record.trained) == [part])
        ]
        return statistics.median(inside) if inside else None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> History:
        """The history that `to_json` wrote."""
        return cls(
            main=stored["main"],
            steps=[StepRecord(**record) for record in stored["steps"]],
            evaluations=[Evaluation(**record) for record in stored["evaluations"]],
            phases=[PhaseRecord(**{**phase, "active": tuple(phase["active"])}) for phase in stored["phases"]],
            selections=[SelectionRecord.from_json(record) for record in stored["selections"]],
            stopped=stored["stopped"],
            joules=[(step, joules) for step, joules in stored["joules"]],
        )

    def write_jsonl(self, path: Path) -> None:
        """One JSON object a line, {"kind": "step" | "evaluation" | "phase" | "selection" | "stopped", ...}, by step."""
        lines = [
            *(
                {
                    "kind": "phase",
                    "step": p.first_step,
                    "active": p.active,
                    "reasons": p.reasons,
                    "turns": p.turns,
                    "engine": p.engine,
                    "passed_over": p.passed_over,
                    "graph": p.graph,
                }
                for p in self.phases
            ),
            *({"kind": "step", **asdict(record)} for record in self.steps),
            *({"kind": "evaluation", **asdict(record)} for record in self.evaluations),
            *({"kind": "selection", **asdict(record)} for record in self.selections),
        ]
        lines.sort(key=lambda line: line["step"])  # type: ignore[arg-type,return-value]
        if self.stopped is not None:
            lines.append({"kind": "stopped", "step": lines[-1]["step"], "reason": self.stopped})
        write_atomically(path, "".join(json_text(line) + "\n" for line in lines).encode())

    @classmethod
    def read_jsonl(cls, path: Path, main: str) -> History:
        """The history that `write_jsonl` wrote of a run with this main task; joules are not in it.

        Raises InputError for a file that is missing or cannot be read, and KeyError, TypeError or ValueError for one
        that says something else.
        """
        history = cls(main)
        with reading(path) as file:
            lines = [json.loads(line) for line in file.read().splitlines()]
        for line in lines:
            kind, line = line["kind"], {name: value for name, value in line.items() if name != "kind"}
            if kind == "phase":
                first_step = line.pop("step")
                history.phases.append(PhaseRecord(first_step, **{**line, "active": tuple(line["active"])}))
            elif kind == "step":
                numbers = {name: _numbers(line[name]) for name in ("losses", "weights")}
                history.steps.append(StepRecord(**{**line, **numbers, "total": _number(line["total"])}))
            elif kind == "evaluation":
                history.evaluations.append(Evaluation(**{**line, "metrics": _numbers(line["metrics"])}))
            elif kind == "selection":
                history.selections.append(SelectionRecord.from_json(line))
            elif kind == "stopped":
                history.stopped = line["reason"]
            else:
                raise ValueError(f"{path}: there is no kind {kind!r} of line")
        return history


def _number(stored: float | None) -> float:
    """A number of a JSON file, which has null for what is none."""
    return math.nan if stored is None else stored


def _numbers(stored: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in stored.items()}

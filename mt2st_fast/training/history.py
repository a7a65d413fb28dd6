"""What happened during training: steps, evaluations and phases, as plain records.

Seconds are not compared: two runs that computed the same thing are equal, however long they took.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mt2st_fast.files import json_text, reading, write_atomically


@dataclass(frozen=True)
class StepRecord:
    """Means over the steps since the previous record, up to and including `step` (counted from 1)."""

    step: int
    epoch: float
    total: float
    losses: dict[str, float]  # by active task
    weights: dict[str, float]  # by active task, at `step`
    learning_rate: float
    step_ms: float = field(compare=False)
    # Total so far, in training steps and in choosing which parts train.
    train_seconds: float = field(compare=False)
    # How many of the steps trained each part; empty if every step trains all parameters.
    trained: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Quality on the validation batches after `step` steps, by task, measured by each task's own metric."""

    step: int
    epoch: float
    metrics: dict[str, float]
    train_seconds: float = field(compare=False)


@dataclass(frozen=True)
class PhaseRecord:
    """A stretch of training with one set of active tasks, main task first.

    turns: how shared and task parameters take turns, "" if all of them train; step records say which part trained.
    own_labels: how many rows train with the label that the model itself gave them (self-training). labelled_by: the
    tasks by whose labels they were labelled as well.
    engine: the engine that took the steps. passed_over: why the engines earlier in the order did not, by name; for
    the engine itself, why it left some steps to the last one. graph: with `Trainer(graph=True)`, "captured" or
    "not captured: ..." with the reason; otherwise None.
    """

    first_step: int
    active: tuple[str, ...]
    reasons: dict[str, str] = field(default_factory=dict)  # why tasks retired, if the schedule says so
    turns: str = ""
    own_labels: int = 0
    labelled_by: tuple[str, ...] = ()
    # How it was computed, not what:
    engine: str = field(default="", compare=False)
    passed_over: dict[str, str] = field(default_factory=dict, compare=False)
    graph: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PartRecord:
    """A measured part of the model: a layer, a head, or some rows of a table.

    parameters: their names in the run. rows: how many rows of a table it has. cost: how many of its numbers a step
    moved.
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
    """Which parts train from step `step` on, and the measure that chose them; see training/phases/importance.py."""

    step: int
    measure: str
    parts: tuple[PartRecord, ...]
    seconds: float = field(compare=False)  # spent measuring

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SelectionRecord:
        """Restore a record from the result of `asdict`."""
        parts = [PartRecord(**{**part, "parameters": tuple(part["parameters"])}) for part in stored["parts"]]
        return cls(**{**stored, "parts": tuple(parts)})

    def shares(self, task: str) -> tuple[float, ...]:
        """Return each part's share of the total importance to a task; all 0 if nothing matters."""
        values = [part.importance.get(task, 0.0) for part in self.parts]
        total = sum(values)
        return tuple(value / total if total else 0.0 for value in values)


@dataclass(repr=False)
class History:
    """Everything that happened in `fit`, in order; `main` is the main task.

    stopped: why a run ended before its last step, if something in it decided so. joules: (step, joules of all
    training steps up to it) at every record, if they are measured (see `training/callbacks/energy.py`).
    tasks_trained: those with a loss and a weight so far, in that order; as the joules, they are not in the lines of
    `write_jsonl`.
    """

    main: str
    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    phases: list[PhaseRecord] = field(default_factory=list)
    selections: list[SelectionRecord] = field(default_factory=list)
    stopped: str | None = None
    joules: list[tuple[int, float]] = field(default_factory=list, compare=False)
    tasks_trained: list[str] = field(default_factory=list, compare=False)

    def __repr__(self) -> str:
        phases = "; ".join(f"{', '.join(phase.active)} from step {phase.first_step}" for phase in self.phases)
        said = [
            f"main={self.main!r}",
            f"{self.steps[-1].step if self.steps else 0:,} steps",
            phases or "no phase",
        ]
        if all(self.main in evaluation.metrics for evaluation in self.evaluations) and (best := self.best):
            said.append(f"best {best.metrics[self.main]:.4f} after {best.step:,}")
        return f"History({' | '.join(said)})"

    @property
    def best(self) -> Evaluation | None:
        """The evaluation that is best for the main task, the earliest of equals; None if there is none."""
        measured = [e for e in self.evaluations if not math.isnan(e.metrics[self.main])]
        return max(measured, key=lambda e: e.metrics[self.main], default=None)

    @property
    def train_seconds(self) -> float:
        """Seconds spent in training steps and in choosing parts, without evaluation, checkpoints and logging."""
        return self.steps[-1].train_seconds if self.steps else 0.0

    def step_ms_median(self, phase: PhaseRecord, part: str | None = None) -> float | None:
        """Return the median milliseconds per step of this phase, or of its steps that train `part`.

        None if no record consists of such steps alone.
        """
        later = [p.first_step for p in self.phases if p.first_step > phase.first_step]
        last = min(later, default=float("inf"))
        # A record that spans the boundary belongs to neither side.
        inside = [
            record.step_ms
            for before, record in zip([None, *self.steps], self.steps, strict=False)
            if (before.step if before else 0) >= phase.first_step
            and record.step <= last
            and (part is None or list(record.trained) == [part])
        ]
        return statistics.median(inside) if inside else None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able form that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> History:
        """Restore the history that `to_json` returned."""
        return cls(
            main=stored["main"],
            steps=[StepRecord(**record) for record in stored["steps"]],
            evaluations=[Evaluation(**record) for record in stored["evaluations"]],
            phases=[_phase(**phase) for phase in stored["phases"]],
            selections=[SelectionRecord.from_json(record) for record in stored["selections"]],
            stopped=stored["stopped"],
            joules=[(step, joules) for step, joules in stored["joules"]],
            tasks_trained=list(stored["tasks_trained"]),
        )

    def write_jsonl(self, path: Path) -> None:
        """Write JSON lines, {"kind": "step" | "evaluation" | "phase" | "selection" | "stopped", ...}, by step."""
        lines = [
            *({"kind": "phase", "step": line.pop("first_step"), **line} for line in map(asdict, self.phases)),
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
        """Read the history that `write_jsonl` wrote of a run with this main task; joules are not in it.

        Raises InputError for a file that is missing or cannot be read, and KeyError, TypeError or ValueError for one
        with other content.
        """
        history = cls(main)
        with reading(path) as file:
            lines = [json.loads(line) for line in file.read().splitlines()]
        for line in lines:
            kind, line = line["kind"], {name: value for name, value in line.items() if name != "kind"}
            if kind == "phase":
                first_step = line.pop("step")
                history.phases.append(_phase(first_step=first_step, **line))
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
                raise ValueError(f"{path}: unknown kind of line {kind!r}")
        return history


def _number(stored: float | None) -> float:
    """A number from a JSON file; null stands for NaN."""
    return math.nan if stored is None else stored


def _numbers(stored: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in stored.items()}


def _phase(*, active: Sequence[str], labelled_by: Sequence[str] = (), **record: Any) -> PhaseRecord:
    """Return a stored phase, whose tuples JSON has as lists; before rows were labelled by tasks, none is named."""
    return PhaseRecord(active=tuple(active), labelled_by=tuple(labelled_by), **record)

"""What a run leaves behind: report.json, report.md, report.html, curves.png, history.jsonl, vectors.txt and model/.

A run that has chosen the parts to train has importance.png, too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt2st_fast.environment import environment
from mt2st_fast.files import json_text, write_atomically
from mt2st_fast.model_folder import RUN_MODEL
from mt2st_fast.runs import against as beside
from mt2st_fast.runs.chosen_parts import PICTURE, chosen_parts, section
from mt2st_fast.runs.experiment import Experiment, text_model
from mt2st_fast.runs.markdown import markdown_table, one_line
from mt2st_fast.runs.pages import plot_against, run_page
from mt2st_fast.runs.plots import plot_curves, plot_importance, write_png
from mt2st_fast.runs.shown import engine_of, shown, step_ms_of, trained_in
from mt2st_fast.runs.what_was_read import section_on_data, what_was_read
from mt2st_fast.serving.scores import TaskScore, scores
from mt2st_fast.training.history import History
from mt2st_fast.words.vectors import WordVectors, telling_neighbours

RUN_FILES = (
    "report.json",
    "report.md",
    "report.html",
    "curves.png",
    PICTURE,
    beside.PICTURE,
    "history.jsonl",
    "vectors.txt",
)


@dataclass(frozen=True)
class WrittenRun:
    """What is shown of a finished run; report: as report.json has it, score: the main task's on the test rows."""

    report: dict[str, Any]
    history: History
    score: TaskScore

    def write(self, folder: Path) -> None:
        """Write report.json, report.md, report.html and the pictures."""
        report, history = self.report, self.history
        write_png(plot_curves(history, report["main"]["metric"]), folder / "curves.png")
        if report["chosen_parts"] is not None:
            write_png(plot_importance(report["chosen_parts"]), folder / PICTURE)
        if report["against"] is not None:
            write_png(plot_against(report), folder / beside.PICTURE)
        write_atomically(folder / "report.json", json_text(report, indent=2).encode())
        write_atomically(folder / "report.html", run_page(report, history, self.score))
        write_atomically(folder / "report.md", render(report).encode("utf-8", "replace"))


def write_run(experiment: Experiment, folder: Path) -> WrittenRun:
    """Write every file of a finished run into `folder`."""
    history = experiment.trainer.history
    vocabulary = experiment.splits.vocabulary
    table_td = experiment.trainer.encoder.vectors().float().cpu().numpy()  # type: ignore[operator]
    vectors = WordVectors(vocabulary.words, table_td, vocabulary.counts).select(
        np.flatnonzero(vocabulary.counts)
    )
    report = {
        **make_report(experiment, experiment.test()),
        "vectors": {"count": vectors.write(folder / "vectors.txt"), "dimension": vectors.dim},
        "neighbours": telling_neighbours(vectors),
    }
    model = text_model(experiment)
    model.save(folder / RUN_MODEL)
    [score] = scores(model, experiment.splits, ("test",), (model.main,))
    history.write_jsonl(folder / "history.jsonl")
    written = WrittenRun(report, history, score)
    written.write(folder)
    return written


def make_report(experiment: Experiment, test: dict[str, float]) -> dict[str, Any]:
    """The report of a finished run as JSON-able values; metrics that could not be measured are None."""
    trainer, history, config, splits = (
        experiment.trainer,
        experiment.trainer.history,
        experiment.config,
        experiment.splits,
    )
    heads = trainer.heads
    tasks = {name: heads.task(name) for name in heads.names}
    main = heads.main
    best = history.best
    return {
        "environment": environment(trainer.device),
        "data": {
            **what_was_read(splits),
            "main_labels": int(splits.train.targets[main].labelled().sum()),
        },
        "config": config.to_json(),
        "init": asdict(experiment.coverage) if experiment.coverage else None,
        "strategy": config.strategy,
        "schedule": repr(trainer.schedule),
        "backend": {"name": experiment.backend.name, "reason": experiment.backend.reason},
        "main": {
            "task": main,
            "metric": heads.tasks[main].metric,
            "best": _number(best.metrics[main]) if best else None,
            "best_step": best.step if best else None,
            "test": _number(test[main]),
        },
        "tasks": {
            name: {
                "kind": type(task).__name__,
                # A task on words has no head, and its loss is all that there is to see.
                "outputs": task.head.size if name in heads.tasks else None,
                "metric": task.metric if name in heads.tasks else "loss",
                "last_dev": _last_dev(history, name),
                "test": _number(test[name]) if name in test and _retired_at(history, name) != 0 else None,
                "retired_at_step": _retired_at(history, name),
            }
            for name, task in tasks.items()
        },
        "steps": trainer.step,
        "stopped": history.stopped,
        "epochs": trainer.epoch,
        "train_seconds": history.train_seconds,
        "tokens_per_second": _tokens_per_second(experiment),
        "phases": [
            {
                "first_step": phase.first_step,
                "active": list(phase.active),
                "turns": phase.turns,
                "engine": phase.engine,
                "passed_over": phase.passed_over,
                "graph": phase.graph,
                "step_ms_median": history.step_ms_median(phase),
                "step_ms_median_by_part": {
                    part: history.step_ms_median(phase, part) for part in _parts_in(history)
                },
            }
            for phase in history.phases
        ],
        "decisions": list(getattr(trainer.schedule, "evidence", ())),
        "chosen_parts": chosen_parts(history),
        "against": None,  # until another strategy has run beside
    }


def _tokens_per_second(experiment: Experiment) -> float:
    """Tokens that training steps read a second: a row is a token, or a document of the mean length."""
    corpus, config, history = experiment.splits.train, experiment.config, experiment.trainer.history
    assert config.batch_size is not None  # `resolved` filled it in
    tokens_per_row = len(corpus.tokens) / corpus.n_rows
    rows = experiment.trainer.step * min(config.batch_size, corpus.n_rows) * config.accumulate
    return rows * tokens_per_row / history.train_seconds if history.train_seconds else 0.0


def _parts_in(history: History) -> list[str]:
    """The parts that took turns."""
    return sorted({part for record in history.steps for part in record.trained})


def _number(value: float) -> float | None:
    return None if value != value else value


def _last_dev(history: History, task: str) -> float | None:
    """The development metric when the task was last active."""
    values = [e.metrics[task] for e in history.evaluations if task in e.metrics]
    return _number(values[-1]) if values else None


def _retired_at(history: History, task: str) -> int | None:
    return next((phase.first_step for phase in history.phases if task not in phase.active), None)


def _against_lines(report: dict[str, Any]) -> list[str]:
    against = report["against"]
    if against is None:
        return []
    return [
        f"## Against {against['other']}",
        "",
        beside.sentence(against, report["main"]["metric"]),
        "",
        f"![{beside.ALT}]({beside.PICTURE})",
        "",
        *markdown_table(beside.COLUMNS, beside.table_of(against)),
        "",
    ]


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    main, data = report["main"], report["data"]
    lines = [
        one_line(f"# {main['task']} on {data['name']}, strategy {report['strategy']}"),
        "",
        f"{main['metric']} of the main task **{main['task']}**: best on development "
        f"{shown(main['best'])} (step {main['best_step']}), on test {shown(main['test'])}.",
        "",
        f"{report['steps']:,} steps, {report['epochs']:.1f} epochs, {report['train_seconds']:.1f} s of training, "
        f"{report['tokens_per_second']:,.0f} tokens/s. Backend {report['backend']['name']}: "
        f"{report['backend']['reason']}.",
        "",
        *([f"Ended early: {report['stopped']}.", ""] if report["stopped"] else []),
        *_against_lines(report),
        "![losses, task weights and quality over steps](curves.png)",
        "",
        *markdown_table(
            (
                "task",
                "kind",
                "outputs:",
                "metric",
                "development, when last active:",
                "test, at the end:",
                "retired at step:",
            ),
            [
                (
                    name,
                    task["kind"],
                    shown(task["outputs"], 0),
                    task["metric"],
                    shown(task["last_dev"]),
                    shown(task["test"]),
                    shown(task["retired_at_step"], 0),
                )
                for name, task in report["tasks"].items()
            ],
        ),
        "",
        *markdown_table(
            ("phase from step:", "active tasks", "median step, ms:", "steps taken by"),
            [
                (
                    phase["first_step"],
                    trained_in(phase),
                    step_ms_of(phase),
                    engine_of(phase),
                )
                for phase in report["phases"]
            ],
        ),
        "",
        *(f"- {one_line(decision)}" for decision in report["decisions"]),
        *([""] if report["decisions"] else []),
        *section(report["chosen_parts"]),
        *markdown_table(
            ("word", "nearest neighbours"),
            [(word, ", ".join(near)) for word, near in report["neighbours"].items()],
        ),
        "",
        f"Training: {data['rows']['train']:,} rows, {data['main_labels']:,} of them with a label of the main task; "
        f"{data['vocabulary']:,} word types.",
        "",
        *section_on_data(data),
        "Environment: " + ", ".join(f"{key} {value}" for key, value in report["environment"].items()) + ".",
        "",
    ]
    return "\n".join(lines)

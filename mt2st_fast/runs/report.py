"""Write the report of a run: report.json, report.md, report.html and curves.png, from the files in its folder.

A run that has selected the parts to train also has importance.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mt2st_fast.files import write_atomically
from mt2st_fast.markdown import one_line
from mt2st_fast.runs import baseline_run, chosen_parts
from mt2st_fast.runs.json_files import json_bytes
from mt2st_fast.runs.pages import environment_line, run_lead, run_sections, run_title
from mt2st_fast.runs.plots import png
from mt2st_fast.runs.run_facts import read_facts, read_history
from mt2st_fast.runs.run_schema import Against, PhaseSummary, RunFacts, RunReport, TaskFacts, TaskResult
from mt2st_fast.runs.sections import Section, page, sections_in_markdown
from mt2st_fast.training.history import History, PhaseRecord

OPTIONAL_PICTURES = (chosen_parts.PICTURE, baseline_run.PICTURE)
REPORT_FILES = ("report.json", "report.md", "report.html", "curves.png", *OPTIONAL_PICTURES)


def write_report(folder: Path) -> RunReport:
    """Write the report of the finished run in `folder` and return it; nothing is written before all is made.

    Raises InputError where the folder has no such run, and KeyError, TypeError or ValueError where the files have
    another content than a run writes.
    """
    facts = read_facts(folder)
    history = read_history(folder, facts)
    report = make_report(facts, history, baseline_run.read_against(folder))
    sections = run_sections(report, history)
    pictures = [picture for section in sections for picture in section.pictures if picture.file]
    environment = environment_line(report["environment"])
    files = {
        **{picture.file: png(picture.draw()) for picture in pictures},
        "report.json": json_bytes(report),
        "report.html": page(run_title(report), run_lead(report), sections, environment),
        "report.md": _in_markdown(report, sections).encode("utf-8", "replace"),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    for name in OPTIONAL_PICTURES:
        if name not in files:  # from an earlier report
            (folder / name).unlink(missing_ok=True)
    return report


def make_report(facts: RunFacts, history: History, against: Against | None) -> RunReport:
    """Return the report of a run; against: what is known of a second one."""
    main, tasks, best = facts["main"], facts["tasks"], history.best
    seconds = history.train_seconds
    return {
        "environment": facts["environment"],
        "data": facts["data"],
        "config": facts["config"],
        "init": facts["init"],
        "strategy": facts["config"]["strategy"],
        "schedule": facts["schedule"],
        "backend": facts["backend"],
        "main": {
            "task": main,
            "metric": tasks[main]["metric"],
            "best": best.metrics[main] if best else None,
            "best_step": best.step if best else None,
            "last_dev": _last_dev(history, main),
            "test": tasks[main]["test"],
        },
        "tasks": {name: _task(task, name, history) for name, task in tasks.items()},
        "score": facts["score"],
        "kept": facts["kept"],
        "untrained": facts["untrained"],
        "steps": facts["steps"],
        "stopped": history.stopped,
        "epochs": facts["epochs"],
        "train_seconds": seconds,
        "tokens_per_second": facts["tokens"] / seconds if seconds else 0.0,
        "phases": [_phase(phase, history) for phase in history.phases],
        "decisions": facts["decisions"],
        "chosen_parts": chosen_parts.chosen_parts(history),
        "vectors": facts["vectors"],
        "neighbours": facts["neighbours"],
        "against": against,
    }


def _phase(phase: PhaseRecord, history: History) -> PhaseSummary:
    return {
        "first_step": phase.first_step,
        "active": list(phase.active),
        "turns": phase.turns,
        "own_labels": phase.own_labels,
        "labelled_by": list(phase.labelled_by),
        "engine": phase.engine,
        "passed_over": phase.passed_over,
        "graph": phase.graph,
        "step_ms_median": history.step_ms_median(phase),
        "step_ms_median_by_part": {part: history.step_ms_median(phase, part) for part in _parts_in(history)},
    }


def _task(task: TaskFacts, name: str, history: History) -> TaskResult:
    retired_at = _retired_at(history, name)
    return {
        "kind": task["kind"],
        "outputs": task["outputs"],
        "metric": task["metric"],
        "last_dev": _last_dev(history, name),
        "test": task["test"] if retired_at != 0 else None,
        "retired_at_step": retired_at,
    }


def _parts_in(history: History) -> list[str]:
    """Return the parts that took turns."""
    return sorted({part for record in history.steps for part in record.trained})


def _last_dev(history: History, task: str) -> float | None:
    """Return the development metric at the last evaluation in which the task was active."""
    values = [e.metrics[task] for e in history.evaluations if task in e.metrics]
    return values[-1] if values and values[-1] == values[-1] else None


def _retired_at(history: History, task: str) -> int | None:
    return next((phase.first_step for phase in history.phases if task not in phase.active), None)


def pictures_of(report: RunReport) -> tuple[str, ...]:
    """Return the file names of a report's pictures."""
    optional = {baseline_run.PICTURE: report["against"], chosen_parts.PICTURE: report["chosen_parts"]}
    return ("curves.png", *(name for name, shown in optional.items() if shown is not None))


def _in_markdown(report: RunReport, sections: Sequence[Section]) -> str:
    lines = [
        one_line(f"# {run_title(report)}"),
        "",
        one_line(run_lead(report)),
        "",
        *sections_in_markdown(sections),
        f"Environment: {environment_line(report['environment'])}.",
        "",
    ]
    return "\n".join(lines)

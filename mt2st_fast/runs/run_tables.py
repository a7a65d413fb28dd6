"""The tables of a run's report, as text: the same on a terminal, in report.md and in report.html.

A column whose name ends in ":" is right-aligned.
"""

from __future__ import annotations

from mt2st_fast.runs.formatting import engine_of, shown, step_ms_of, trained_in
from mt2st_fast.runs.run_schema import RunReport

Rows = list[tuple[str, ...]]

TASKS = (
    "task",
    "kind",
    "outputs:",
    "metric",
    "development, when last active:",
    "test, at the end:",
    "retired at step:",
)
PHASES = ("phase from step:", "active tasks", "median step, ms:", "steps taken by")
NEIGHBOURS = ("word", "nearest neighbours")


def task_rows(report: RunReport) -> Rows:
    """Return a row per task for TASKS."""
    return [
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
    ]


def phase_rows(report: RunReport) -> Rows:
    """Return a row per phase for PHASES; the last cell also says why other engines did not take the steps."""
    return [
        (f"{phase['first_step']:,}", trained_in(phase), step_ms_of(phase), engine_of(phase))
        for phase in report["phases"]
    ]


def neighbour_rows(report: RunReport) -> Rows:
    """Return a row per word for NEIGHBOURS."""
    return [(word, ", ".join(near)) for word, near in report["neighbours"].items()]

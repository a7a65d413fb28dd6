"""The content of the pages of a run and of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mt2st_fast.runs import baseline_run, chosen_parts
from mt2st_fast.runs.comparison_plots import plot_comparison
from mt2st_fast.runs.comparison_schema import Comparison
from mt2st_fast.runs.comparison_tables import lead, sections_of, table_of
from mt2st_fast.runs.data_summary import section_on_data
from mt2st_fast.runs.formatting import (
    early_end_of,
    left_out_of_vectors,
    option,
    quality_of,
    shown,
    spans_line,
)
from mt2st_fast.runs.plots import curve_of, plot_curves, plot_seconds
from mt2st_fast.runs.run_schema import ClassResult, RunReport
from mt2st_fast.runs.run_tables import NEIGHBOURS, PHASES, TASKS, neighbour_rows, phase_rows, task_rows
from mt2st_fast.runs.sections import Picture, Section, Table, page
from mt2st_fast.spelling import counted
from mt2st_fast.training.history import History


def run_title(report: RunReport) -> str:
    """Return the title of the report of a run."""
    return f"{report['main']['task']} on {report['data']['name']}, strategy {report['strategy']}"


def run_lead(report: RunReport) -> str:
    """Return what comes before all sections of the report of a run."""
    main, data, backend = report["main"], report["data"], report["backend"]
    ended = early_end_of(report)
    return (
        f"The main task {main['task']}: {quality_of(main)}. {counted(report['steps'], 'step')}, "
        f"{report['epochs']:.1f} epochs, {report['train_seconds']:.1f} s of training, "
        f"{report['tokens_per_second']:,.0f} tokens/s. "
        f"{counted(data['rows']['train'], 'row')} of training data, {data['main_labels']:,} of them with a label of "
        f"the main task; {counted(data['vocabulary'], 'word type')}. Backend {backend['name']}: {backend['reason']}."
        + (f" {ended}" if ended else "")
    )


def run_sections(report: RunReport, history: History) -> list[Section]:
    """Return the sections of the report of a run, for its page and for report.md."""
    main, score = report["main"], report["score"]
    curves = {report["strategy"]: [[(e.train_seconds, e.metrics[history.main]) for e in history.evaluations]]}
    curves_label = f"{main['task']}: development {main['metric']}"
    return [
        *baseline_run.sections_of(report["against"], main),
        Section(
            "Curves",
            pictures=[
                Picture(
                    lambda: plot_curves(history, main["metric"]),
                    "losses, task weights and quality over steps",
                    "curves.png",
                ),
                Picture(
                    lambda: plot_seconds(curves, curves_label),
                    "quality of the main task over seconds of training",
                ),
            ],
        ),
        Section("Tasks", tables=[Table(TASKS, task_rows(report))]),
        Section(
            "Phases, and how their steps were taken",
            tables=[Table(PHASES, phase_rows(report))],
            lines=report["decisions"],
        ),
        *chosen_parts.sections_of(report["chosen_parts"]),
        Section(
            f"{main['task']} on the test rows, by class",
            lines=[
                f"{score['metric']} {shown(score['value'])} on {counted(score['rows'], 'row')}.",
                *([f"Counted {spans_line(score['spans'])}."] if score["spans"] else []),
            ],
            tables=[_classes(score["classes"])] if score["classes"] else [],
        ),
        section_on_data(report["data"]),
        Section(
            "Nearest neighbours",
            lines=[line for line in [left_out_of_vectors(report["vectors"])] if line],
            tables=[Table(NEIGHBOURS, neighbour_rows(report))],
        ),
        Section("Options", tables=[_options(report["config"])]),
    ]


def comparison_page(comparison: Comparison) -> bytes:
    """Return the report.html of a comparison."""
    curves = {
        name: [curve_of(run) for run in strategy["seeds"]]
        for name, strategy in comparison["strategies"].items()
    }
    quality = f"{comparison['main']}: development {comparison['metric']}"
    first, *rest = sections_of(comparison)
    sections = [
        first,
        Section(
            "The target at a glance",
            tables=[table_of(comparison)],
            pictures=[
                Picture(lambda: plot_comparison(comparison), "seconds and steps to every target by strategy")
            ],
        ),
        Section(
            "Every run",
            lines=[
                "With marks: the median over seeds, at evaluations that all runs have; faint: single runs."
            ],
            pictures=[Picture(lambda: plot_seconds(curves, quality), "quality over seconds of training")],
        ),
        *rest,
        section_on_data(comparison["read"]),
        Section("Options", tables=[_options(comparison["config"])]),
    ]
    title = f"{comparison['main']} on {comparison['data']}: strategies compared"
    return page(title, lead(comparison), sections, environment_line(comparison["environment"]))


def _classes(classes: Sequence[ClassResult]) -> Table:
    rows = [
        (c["name"], f"{c['support']:,}", *map(shown, (c["precision"], c["recall"], c["f1"])))
        for c in sorted(classes, key=lambda c: -c["support"])
    ]
    return Table(("class", "rows:", "precision:", "recall:", "F1:"), rows)


def _options(config: Mapping[str, Any]) -> Table:
    return Table(("option", "value"), [(name, option(value)) for name, value in config.items()])


def environment_line(environment: Mapping[str, Any]) -> str:
    """Return what a report says of the machine and the versions, in one line."""
    return ", ".join(f"{key} {value}" for key, value in environment.items())

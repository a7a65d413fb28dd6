"""Format numbers and engines for reports."""

from __future__ import annotations

from typing import Any

from mt2st_fast.runs.comparison_schema import Difference
from mt2st_fast.runs.run_schema import MainResult, PhaseSummary, RunReport, VectorsSummary
from mt2st_fast.serving.spans import SpanFigures
from mt2st_fast.spelling import counted
from mt2st_fast.training.schedules import find_strategy


def shown(value: float | None, digits: int = 4) -> str:
    """Format a number; None and NaN, which are undefined, are a dash."""
    return "–" if value is None or value != value else f"{value:,.{digits}f}"


def spans_line(spans: SpanFigures) -> str:
    """Describe the score of a task whose classes are tags of spans (`SpanScore.figures`), within a sentence."""
    f1, precision, recall = (shown(value) for value in (spans["f1"], spans["precision"], spans["recall"]))
    return (
        f"by spans, as conlleval counts: F1 {f1}, precision {precision}, recall {recall} "
        f"({spans['right']:,} right of {spans['found']:,} found; the data has {spans['present']:,})"
    )


def short(value: float) -> str:
    """Format a positive number of any size: whole from 100 on, else with three digits."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def option(value: Any) -> str:
    """Format an option's value: one that is not set is a dash, and several are a list."""
    if value is None or (isinstance(value, tuple | list | dict) and not value):
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name} {option(each)}" for name, each in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(option, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def engine_of(phase: PhaseSummary) -> str:
    """Say what took a phase's steps, and why the engines before it in the order did not."""
    passed_over = "; ".join(f"not {name}: {reason}" for name, reason in phase["passed_over"].items())
    return f"{phase['engine']} ({passed_over})" if passed_over else phase["engine"]


def trained_in(phase: PhaseSummary) -> str:
    """Say which tasks a phase has, how many rows were labelled by what, and how its parts take turns."""
    n_own = phase["own_labels"]
    labelled_by = ", ".join(("the model", *phase["labelled_by"]))
    own = f"{counted(n_own, 'row')} labelled by {labelled_by}" if n_own else ""
    return "; ".join(part for part in (", ".join(phase["active"]), own, phase["turns"]) if part)


def step_ms_of(phase: PhaseSummary) -> str:
    """Format the median milliseconds of a phase's steps, and of those that train one part."""
    by_part = ", ".join(
        f"{part} {shown(ms, 2)}" for part, ms in phase["step_ms_median_by_part"].items() if ms is not None
    )
    median = shown(phase["step_ms_median"], 2)
    return f"{median} ({by_part})" if by_part else median


def quality_of(main: MainResult) -> str:
    """Say what quality the main task of a report has at the end, when the model is saved, and its best before."""
    metric, test = main["metric"], shown(main["test"])
    if main["best_step"] is None:
        return f"development {metric} undefined (as where all values are equal), test {metric} {test}"
    return (
        f"{metric} at the end (the saved model): {shown(main['last_dev'])} on development, {test} on test; best on "
        f"development {shown(main['best'])} (step {main['best_step']:,})"
    )


def early_end_of(report: RunReport) -> str:
    """Say why a run ended early, and if it had not come to its switch; "" if it did not end early."""
    if not report["stopped"]:
        return ""
    left = [task for task in report["phases"][-1]["active"] if task != report["main"]["task"]]
    switches = any(option.name == "switch_at" for option in find_strategy(report["strategy"]).options)
    unfinished = f" It never trained {report['main']['task']} alone: {', '.join(left)} had not retired."
    return f"Ended early: {report['stopped']}.{unfinished if left and switches else ''}"


def left_out_of_vectors(vectors: VectorsSummary) -> str:
    """Say which words are missing from a run's vectors file; "" for none, or for an older run without this record."""
    n = vectors.get("left_out", 0)
    if not n:
        return ""
    return (
        f"vectors.txt leaves out {n:,} of {vectors['count'] + n:,} words because they contain white space, which ends "
        "a word in the word2vec format; the model has them"
    )


def left_out_of_model(report: RunReport) -> list[str]:
    """Say, in one line per reason, which tasks with a head are not in a run's model."""
    untrained = report["untrained"]
    others = [
        name
        for name, task in report["tasks"].items()
        if task["outputs"] is not None and name not in (*report["kept"], *untrained)
    ]
    lines = []
    if untrained:
        lines.append(f"The model leaves out {', '.join(untrained)}, as no step of this run trained the head.")
    if others:
        lines.append(
            f"The model has only {', '.join(report['kept'])}, as this strategy gives each task its own encoder."
        )
    return lines


def change(share: float | None) -> str:
    """Format a change: 60 % less is -60 %."""
    return "–" if share is None else f"{round(100 * share):+d} %"


def in_percent(difference: Difference | None) -> str:
    """Format a change with its interval, where there is one: -60 % [-70, -55]."""
    return _with_interval(difference, 0, " %")


def in_points(difference: Difference | None) -> str:
    """Format a difference in quality with its interval, in points (hundredths): +0.40 [+0.10, +0.70]."""
    return _with_interval(difference, 2, "")


def _with_interval(difference: Difference | None, digits: int, unit: str) -> str:
    def shown(share: float) -> str:
        return f"{round(100 * share, digits) + 0.0:+.{digits}f}"  # never -0

    if difference is None or difference["value"] is None:
        return "–"
    low, high = difference["low"], difference["high"]
    text = shown(difference["value"]) + unit
    return text if low is None or high is None else f"{text} [{shown(low)}, {shown(high)}]"

"""A run and another strategy's run on the same data: what it saves, as a file, a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mt2st_fast.errors import InputError
from mt2st_fast.runs.comparison import has_spans, summarise_seed
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.formatting import shown
from mt2st_fast.runs.json_files import read_json, write_json
from mt2st_fast.runs.judging import SPAN_F1
from mt2st_fast.runs.plots import curve_of, plot_seconds
from mt2st_fast.runs.run_schema import Against, MainResult, RunSummary
from mt2st_fast.runs.sections import Picture, Section, Table
from mt2st_fast.runs.targets import first_reaching
from mt2st_fast.spelling import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AGAINST, PICTURE = "against.json", "against.png"


def write_against(against: Against, folder: Path) -> None:
    """Write the result of `against_baseline` to the folder of the first run."""
    write_json(folder / AGAINST, against)


def read_against(folder: Path) -> Against | None:
    """Read what `write_against` wrote; None if there was no second run. Raises InputError for a damaged file."""
    path = folder / AGAINST
    if not path.exists():
        return None
    remedy = "remove it to get a report without it, or train again"
    found = cast(Against, read_json(path, remedy))
    try:
        found["runs"][found["own"]], found["runs"][found["other"]]["at_target"]["step"], found["target"]  # type: ignore[index]
    except (KeyError, TypeError):
        raise InputError(f"{path}: is damaged; {remedy}") from None
    return found


def summary_of(experiment: Experiment) -> RunSummary:
    """Summarize a finished run as comparisons do. Raises InputError where no evaluation has a value to compare."""
    history = experiment.trainer.history
    test = experiment.test()[history.main]
    by_spans = None if experiment.metric == SPAN_F1 else experiment.test_span_f1()
    return summarise_seed(history, test, experiment.rows_read, by_spans)


def against_baseline(own: str, runs: Mapping[str, RunSummary]) -> Against:
    """Return what reports show of two runs, {strategy: run}, one of them `own`: the target is the other one's best."""
    [other] = [name for name in runs if name != own]
    target = runs[other]["best"]
    reached = {name: first_reaching(run, target) for name, run in runs.items()}
    return {
        "own": own,
        "other": other,
        "target": target,
        "runs": {name: {**run, "at_target": reached[name]} for name, run in runs.items()},
    }


def sections_of(against: Against | None, main: MainResult) -> list[Section]:
    """Return the section on the two runs, of what `against_baseline` returned and of the main task (`make_report`).

    There is none if there was no second run.
    """
    if against is None:
        return []
    alt = "quality of the main task over seconds of training, by strategy"
    picture = Picture(lambda: _plot(against, f"{main['task']}: development {main['metric']}"), alt, PICTURE)
    lines = [sentence(against, main["metric"])]
    return [Section(f"Against {against['other']}", lines, [_table(against)], [picture])]


def sentence(against: Against, metric: str) -> str:
    """Say what the two runs show, and that they are only two runs."""
    own, other, runs = against["own"], against["other"], against["runs"]
    came, base = runs[own]["at_target"], runs[other]["at_target"]
    assert base is not None  # the target is its own best
    best = f"the best development {metric} of {other} ({shown(against['target'])})"
    if came is None:
        time = f"{own} did not reach {best}; its own best is {shown(runs[own]['best'])}"
    else:
        share = came["seconds"] / base["seconds"] - 1.0
        time = (
            f"{own} reached {best} after {came['seconds']:.2f} s and {counted(came['step'], 'step')}, {other} after "
            f"{base['seconds']:.2f} s and {base['step']:,}: {abs(share):.0%} {'less' if share < 0 else 'more'} time"
        )
    ends = ", ".join(f"{name} {shown(run['test'])}" for name, run in runs.items())
    return f"{time}. On test rows at the end: {ends}. One run each is only a hint; mt2st-fast compare shows more."


def _table(against: Against) -> Table:
    by_spans = has_spans(against["runs"].values())
    at_end = ["test, at the end:", *["test, span F1:"] * by_spans]
    taken = ["seconds of training:", "seconds to the target:", "steps to the target:"]
    rows = [
        (
            name,
            *map(shown, (run["best"], run["test"], *[run["test_span_f1"]] * by_spans)),
            f"{run['seconds']:.1f}",
            shown(run["at_target"] and run["at_target"]["seconds"], 2),
            shown(run["at_target"] and run["at_target"]["step"], 0),
        )
        for name, run in against["runs"].items()
    ]
    return Table(("strategy", "development, best:", *at_end, *taken), rows)


def _plot(against: Against, label: str) -> Figure:
    """Plot each strategy's single curve."""
    curves = {name: [curve_of(run)] for name, run in against["runs"].items()}
    target = against["target"], f"best of {against['other']}, {shown(against['target'])}"
    return plot_seconds(curves, label, target)

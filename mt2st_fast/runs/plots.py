"""The plots of runs: curves over steps, and over seconds."""

from __future__ import annotations

import io
import re
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mt2st_fast.runs.run_schema import PartsChosen, RunSummary
from mt2st_fast.training.history import History

if TYPE_CHECKING:  # importing it takes a second, which `--help` and `info` should not wait for
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = "os^Dv*Pp"
MOST_LETTERS = 60  # of a name in a picture
_NO_LETTER = r"Glyph \d+ .* missing from"  # a warning of matplotlib's

# Figures are drawn without pyplot: no window, no global state, safe in any thread.


def plain(name: str) -> str:
    """Return a user's name so that matplotlib shows it literally: no formula, no line break, not hidden, and no wider
    than a picture.
    """
    shown = " ".join(name.encode("utf-8", "replace").decode("utf-8").split())
    if len(shown) > MOST_LETTERS:
        shown = f"{shown[: MOST_LETTERS - 1]}…"
    shown = shown.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown  # legends leave out labels that begin so


@contextmanager
def _whatever_letters() -> Iterator[None]:
    """Suppress warnings about letters that the font lacks, which are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _NO_LETTER, UserWarning)
        yield


def plot_curves(history: History, metric: str) -> Figure:
    """Plot losses, task weights and main-task quality over steps, with every phase border marked."""
    figure = new_figure(figsize=(8, 8.5), layout="constrained")
    losses, weights, quality = figure.subplots(3, 1, sharex=True)
    tasks = list(dict.fromkeys(task for record in history.steps for task in record.losses))
    every = [record.step for record in history.steps]
    for index, task in enumerate(tasks):
        steps = [record.step for record in history.steps if task in record.losses]
        style: dict[str, Any] = {"color": f"C{index}", "label": plain(task)}
        width = 2 if task == history.main else 1.2
        losses.plot(steps, [r.losses[task] for r in history.steps if task in r.losses], lw=width, **style)
        # Weights often coincide: the main task has a solid line, and each other task has dashes in different places.
        values = [r.weights.get(task, 0.0) for r in history.steps]
        dashes = "-" if task == history.main else (4.0 * index, (4.0, 4.0 * (len(tasks) - 1)))
        weights.plot(every, values, drawstyle="steps-pre", lw=2.5, ls=dashes, **style)
    losses.set(ylabel="training loss")
    if any(loss > 0 for record in history.steps for loss in record.losses.values()):
        _log_scale(losses)
    weights.set(ylabel="task weight", ylim=(-0.05, None))
    points = [(e.step, e.metrics[history.main]) for e in history.evaluations]
    quality.plot(*zip(*points, strict=True), "o-", color="C0", ms=4) if points else None
    if history.best:
        best = history.best
        quality.plot([best.step], [best.metrics[history.main]], "o", color="C0", ms=9, mfc="none")
        quality.set_title(
            f"best {best.metrics[history.main]:.4f} at step {best.step:,}", loc="right", fontsize="small"
        )
    quality.set(ylabel=plain(f"{history.main}: development {metric}"), xlabel="step")
    for axes in (losses, weights, quality):
        _mark_phases(axes, [phase.first_step for phase in history.phases[1:]])
        axes.grid(alpha=0.25)
    figure.legend(
        *losses.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small", frameon=False,
        title=plain(f"main task {history.main}") + "; dotted: a task retires",
    )  # fmt: skip
    return figure


def _log_scale(axes: Axes) -> None:
    """Give the values a logarithmic scale with plain numbers, 0.7 rather than 7 × 10⁻¹."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        """As LogFormatter chooses which values have a number."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:.4g}" if super().__call__(x, pos) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain())


def plot_seconds(
    runs: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    label: str,
    target: tuple[float, str] | None = None,
) -> Figure:
    """Plot quality over seconds of training; runs has the curves of every strategy, points (seconds, quality).

    Of several curves the median is drawn with marks, and each as a faint line. target: a quality to mark, and its name.
    """
    figure = new_figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for index, (name, curves) in enumerate(runs.items()):
        # Curves of different strategies may coincide: each has its own marks, and is wider than the next.
        style: dict[str, Any] = {"color": f"C{index}", "marker": MARKS[index % len(MARKS)], "mfc": "none"}
        width = 1.2 + 0.5 * (len(runs) - 1 - index)
        for points in curves if len(curves) > 1 else ():
            axes.plot(*zip(*points, strict=True), lw=0.8, alpha=0.3, color=f"C{index}") if points else None
        points = median_curve(curves)
        if points:
            axes.plot(
                *zip(*points, strict=True), lw=width, ms=4 + width, alpha=0.8, label=plain(name), **style
            )
    if target is not None:
        axes.axhline(target[0], color="black", ls="--", lw=1, label=plain(target[1]))
    axes.set(xlabel="seconds of training", ylabel=plain(label))
    axes.grid(alpha=0.25)
    if len(runs) > 1:
        figure.legend(loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    return figure


def plot_importance(chosen: PartsChosen) -> Figure:
    """Plot the map of parts and tasks, as shares of a task's importance; chosen: from runs/chosen_parts.py."""
    parts, tasks = chosen["parts"], chosen["tasks"]
    figure = new_figure(figsize=(4.5 + 0.9 * len(tasks), 1.6 + 0.34 * len(parts)), layout="constrained")
    axes = figure.subplots()
    shares = [[part["importance_shares"][task] for task in tasks] for part in parts]
    # By the square root, so that a share of a thousandth is distinguishable from zero.
    axes.imshow(
        [[share**0.5 for share in row] for row in shares], aspect="auto", cmap="Blues", vmin=0, vmax=1
    )
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            axes.text(
                x, y, f"{share:.1%}", ha="center", va="center", fontsize="x-small",
                color="white" if share > 0.3 else "black",
            )  # fmt: skip
    axes.set_xticks(
        range(len(tasks)), [plain(task) for task in tasks], rotation=30, ha="right", fontsize="small"
    )
    names = [plain(f"{part['name']}: {part['becomes']}") for part in parts]
    axes.set_yticks(range(len(parts)), names, fontsize="small")
    for label, part in zip(axes.get_yticklabels(), parts, strict=True):
        label.set_fontweight("bold" if part["becomes"] == "trained" else "normal")
    axes.set_title("share of a task's importance; bold: continues to train", fontsize="small")
    return figure


def curve_of(run: RunSummary) -> list[tuple[float, float]]:
    """Return seconds and quality at each evaluation of a run; NaN for a quality that is missing."""
    missing = float("nan")
    return [(p["seconds"], missing if p["quality"] is None else p["quality"]) for p in run["curve"]]


def median_curve(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return median seconds and quality at each evaluation that all curves have."""
    return [
        (statistics.median(seconds), statistics.median(qualities))
        for seconds, qualities in (zip(*same, strict=True) for same in zip(*curves, strict=False))
    ]


def new_figure(**options: Any) -> Figure:
    """Return a figure without a window."""
    from matplotlib.figure import Figure

    return Figure(**options)


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    picture = io.BytesIO()
    with _whatever_letters():
        figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def svg(figure: Figure) -> bytes:
    """Return the figure as SVG, the same bytes for the same figure.

    Letters are drawn as outlines, which look alike everywhere, unless the font lacks some.
    """
    from matplotlib import rc_context

    def saved(letters: str) -> bytes:
        picture = io.StringIO()
        with rc_context({"svg.hashsalt": "mt2st-fast", "svg.fonttype": letters}):
            figure.savefig(picture, format="svg", metadata={"Date": None})
        return picture.getvalue().encode("utf-8", "replace")

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", _NO_LETTER, UserWarning)
            return saved("path")
    except UserWarning as warning:
        if not re.match(_NO_LETTER, str(warning)):
            raise
    with _whatever_letters():  # as text, for which a browser has other fonts
        return saved("none")


def _mark_phases(axes: Axes, borders: Sequence[float]) -> None:
    for border in borders:
        axes.axvline(border, color="black", ls=":", lw=1)

"""The pictures: a run's curves, and the comparison of strategies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt2st_fast.files import write_atomically
from mt2st_fast.training.history import History

if TYPE_CHECKING:  # importing it takes a second, which `--help` and `info` need not wait for
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Figures are drawn without pyplot: no window, no global state, safe in any thread.


def plot_curves(history: History, metric: str, path: Path) -> None:
    """Losses, task weights and main-task quality over steps, every phase border marked."""
    figure = _figure(figsize=(8, 8.5), layout="constrained")
    losses, weights, quality = figure.subplots(3, 1, sharex=True)
    tasks = list(dict.fromkeys(task for record in history.steps for task in record.losses))
    for index, task in enumerate(tasks):
        steps = [record.step for record in history.steps if task in record.losses]
        style: dict[str, Any] = {
            "color": f"C{index}",
            "label": task,
            "lw": 2 if task == history.main else 1.2,
        }
        losses.plot(steps, [r.losses[task] for r in history.steps if task in r.losses], **style)
        every = [record.step for record in history.steps]
        weights.plot(every, [r.weights.get(task, 0.0) for r in history.steps], drawstyle="steps-pre", **style)
    losses.set(ylabel="training loss", yscale="log")
    weights.set(ylabel="task weight", ylim=(-0.05, None))
    points = [(e.step, e.metrics[history.main]) for e in history.evaluations]
    quality.plot(*zip(*points, strict=True), "o-", color="C0", ms=4) if points else None
    if history.best:
        best = history.best
        quality.annotate(
            f"best {best.metrics[history.main]:.4f}",
            (best.step, best.metrics[history.main]),
            xytext=(-8, -18),
            textcoords="offset points",
            ha="right",
        )
    quality.set(ylabel=f"{history.main}: development {metric}", xlabel="step")
    for axes in (losses, weights, quality):
        _mark_phases(axes, history)
        axes.grid(alpha=0.25)
    losses.legend(ncols=3, fontsize="small", frameon=False)
    figure.suptitle(f"main task {history.main}; dotted: a task retires")
    _save(figure, path)


def _figure(**options: Any) -> Figure:
    from matplotlib.figure import Figure

    return Figure(**options)


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    write_atomically(path, picture.getvalue())


def _mark_phases(axes: Axes, history: History) -> None:
    for phase in history.phases[1:]:
        axes.axvline(phase.first_step, color="black", ls=":", lw=1)


def plot_comparison(comparison: dict[str, Any], path: Path) -> None:
    """Seconds and steps to the target quality by strategy, every seed a dot on its bar."""
    names = list(comparison["strategies"])
    figure = _figure(figsize=(9, 4), layout="constrained")
    for axes, key, label in zip(
        figure.subplots(1, 2), ("seconds_to_target", "steps_to_target"), ("seconds", "steps"), strict=True
    ):
        for position, name in enumerate(names):
            strategy = comparison["strategies"][name]
            median = strategy[f"{key}_median"]
            if median is None:
                axes.text(position, 0, "not\nreached", ha="center", va="bottom", fontsize="small")
            else:
                axes.bar(position, median, color=f"C{position}", alpha=0.75, width=0.65)
                axes.annotate(f"{median:,.1f}" if key.startswith("sec") else f"{median:,.0f}",
                              (position, median), xytext=(0, 3), textcoords="offset points",
                              ha="center", fontsize="small")  # fmt: skip
            dots = [run[key] for run in strategy["seeds"] if run[key] is not None]
            axes.plot([position] * len(dots), dots, "k.", ms=5)
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel=f"training {label} to target")
        axes.margins(y=0.12)
    figure.suptitle(f"{comparison['main']}: to development {comparison['metric']} {comparison['target']:.4f}")
    _save(figure, path)

"""The plot of a comparison: what every arm needs to reach each target, run by run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mt2st_fast.runs.comparison import taken
from mt2st_fast.runs.comparison_schema import ArmResult, Comparison, Measure, SeedResult
from mt2st_fast.runs.formatting import short
from mt2st_fast.runs.plots import new_figure, plain
from mt2st_fast.runs.targets import PLATEAU
from mt2st_fast.spelling import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES: dict[Measure, str] = {"seconds": "seconds of training", "steps": "steps"}
HATCHES = ("", "///", "xxx")  # by engine
MOST_RATIO = 30  # of the longest to the shortest, for a scale that begins at 0
ROOM = 1.3  # times the longest bar: medians are written to the right of all bars


def plot_comparison(comparison: Comparison) -> Figure:
    """Plot seconds and steps to every target and to the plateau: bars are medians, lines quartiles, dots runs."""
    keys = [*comparison["targets"], PLATEAU]
    height = 0.75 + 0.27 * len(comparison["strategies"])  # inches per panel
    figure = new_figure(figsize=(9, 0.6 + height * len(keys)), layout="constrained")
    grid = figure.subplots(len(keys), len(MEASURES), squeeze=False, sharey=True)
    for row, key in zip(grid, keys, strict=True):
        for axes, measure in zip(row, MEASURES, strict=True):
            _panel(axes, comparison, key, measure)
        row[0].set_title(_title(comparison, key), loc="left", fontsize="medium")
    for axes, label in zip(grid[-1], MEASURES.values(), strict=True):
        axes.set_xlabel(label)
    figure.suptitle(
        plain(
            f"{comparison['main']}: development {comparison['metric']}, {counted(comparison['n_seeds'], 'seed')}"
        )
        + " (bar or mark: median; line: quartiles; dots: runs)",
        fontsize="large",
    )
    return figure


def _title(comparison: Comparison, key: str) -> str:
    if key == PLATEAU:
        return f"to the plateau (later rises below {100 * comparison['plateau_margin']:g} points)"
    target = comparison["targets"][key]
    return plain(f"to {target['label']} (median {target['median']:.4f})")


def _panel(axes: Axes, comparison: Comparison, key: str, measure: Measure) -> None:
    strategies = comparison["strategies"]
    kinds = list(dict.fromkeys(strategy["strategy"] for strategy in strategies.values()))
    every = [dot for strategy in strategies.values() for dot in _dots(strategy["seeds"], key, measure)]
    wide = bool(every) and min(every) > 0 and max(every) > MOST_RATIO * min(every)
    for place, strategy in enumerate(strategies.values()):
        spread = strategy["to"][key][measure]
        color = f"C{kinds.index(strategy['strategy'])}"
        if spread["median"] is not None and wide:  # a scale without 0 has no bars
            axes.plot([spread["median"]], [place], "|", color=color, ms=14, mew=5)
        elif spread["median"] is not None:
            hatch = HATCHES[comparison["engines"].index(strategy["engine"]) % len(HATCHES)]
            axes.barh(place, spread["median"], color=color, alpha=0.55, height=0.7, hatch=hatch)
        if spread["q1"] is not None and spread["q3"] is not None:
            axes.plot(
                [spread["q1"], spread["q3"]], [place, place], color="black", lw=2, solid_capstyle="butt"
            )
        dots = _dots(strategy["seeds"], key, measure)
        axes.plot(dots, [place] * len(dots), "o", color="black", ms=3, mfc="white", mew=0.8)
        axes.annotate(
            _said(strategy, key, measure), (0.985, place), xycoords=("axes fraction", "data"),
            ha="right", va="center", fontsize="small",
        )  # fmt: skip
    _set_range(axes, every, wide)
    axes.set_ylim(len(strategies) - 0.4, -0.6)  # the first at the top
    axes.set_yticks(range(len(strategies)), [plain(name) for name in strategies])
    axes.tick_params(labelsize="small")
    axes.grid(axis="x", alpha=0.25)


def _set_range(axes: Axes, every: Sequence[float], wide: bool) -> None:
    """Leave room for the medians to the right of all dots; use a log scale where the shortest would be invisible."""
    if wide:
        axes.set_xscale("log")
        low, high = min(every) / 1.5, max(every)
        axes.set_xlim(low, high * (high / low) ** (ROOM - 1.0))
    else:
        axes.set_xlim(0, ROOM * max(every, default=0.0) or 1.0)
        axes.locator_params(axis="x", nbins=5)


def _dots(seeds: Sequence[SeedResult], key: str, measure: Measure) -> list[float]:
    spent = (taken(run["to"][key], measure) for run in seeds)
    return [value for value in spent if value is not None]


def _said(strategy: ArmResult, key: str, measure: Measure) -> str:
    """Return the median, and how many runs reached the target if not all did."""
    to, n = strategy["to"][key], len(strategy["seeds"])
    median = to[measure]["median"]
    reached = "" if to["reached"] == n else f"{to['reached']} of {n}"
    if median is None:
        return f"{reached} reached it"
    return f"{short(median)}{f' ({reached})' if reached else ''}"

"""The picture of a comparison: what it takes every arm to come to each target, run by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mt2st_fast.runs.plots import new_figure, plain
from mt2st_fast.runs.shown import short
from mt2st_fast.runs.targets import PLATEAU

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {"seconds": "seconds of training", "steps": "steps"}
HATCHES = ("", "///", "xxx")  # by engine
ROOM = 1.45  # of the longest bar: medians are written to the right of all bars


def plot_comparison(comparison: Mapping[str, Any]) -> Figure:
    """Seconds and steps to every target and to the plateau: a bar for the median, a line over the quartiles, dots."""
    keys = [*comparison["targets"], PLATEAU]
    n_arms = len(comparison["strategies"])
    height = len(MEASURES) * (1.15 + 0.34 * n_arms) + 0.7
    figure = new_figure(figsize=(2.1 + 2.75 * len(keys), height), layout="constrained")
    grid = figure.subplots(len(MEASURES), len(keys), squeeze=False, sharey=True)
    for row, (measure, label) in zip(grid, MEASURES.items(), strict=True):
        for axes, key in zip(row, keys, strict=True):
            _panel(axes, comparison, key, measure)
            axes.set_xlabel(label, fontsize="small")
    for axes, key in zip(grid[0], keys, strict=True):
        axes.set_title(_title(comparison, key), fontsize="small")
    figure.suptitle(
        plain(f"{comparison['main']}: development {comparison['metric']}, {comparison['n_seeds']} seeds; ")
        + "bar: median, line: quartiles, dot: a run",
        fontsize="medium",
    )
    return figure


def _title(comparison: Mapping[str, Any], key: str) -> str:
    if key == PLATEAU:
        return f"to the plateau\n(rises by less than {100 * comparison['plateau_margin']:g} points)"
    target = comparison["targets"][key]
    return plain(f"to {target['label']}") + f"\n(median {target['median']:.4f})"


def _panel(axes: Axes, comparison: Mapping[str, Any], key: str, measure: str) -> None:
    strategies: Mapping[str, Any] = comparison["strategies"]
    kinds = list(dict.fromkeys(strategy["strategy"] for strategy in strategies.values()))
    longest = 0.0
    for place, strategy in enumerate(strategies.values()):
        spread = strategy["to"][key][measure]
        color = f"C{kinds.index(strategy['strategy'])}"
        if spread["median"] is not None:
            hatch = HATCHES[comparison["engines"].index(strategy["engine"]) % len(HATCHES)]
            axes.barh(place, spread["median"], color=color, alpha=0.55, height=0.7, hatch=hatch)
            longest = max(longest, spread["median"])
        if spread["q1"] is not None and spread["q3"] is not None:
            axes.plot(
                [spread["q1"], spread["q3"]], [place, place], color="black", lw=2, solid_capstyle="butt"
            )
        dots = _dots(strategy["seeds"], key, measure)
        axes.plot(dots, [place] * len(dots), "o", color="black", ms=3, mfc="white", mew=0.8)
        longest = max([longest, *dots])
    axes.set_xlim(0, ROOM * longest or 1.0)
    axes.set_ylim(len(strategies) - 0.4, -0.6)  # the first on top
    for place, strategy in enumerate(strategies.values()):
        axes.annotate(
            _said(strategy, key, measure), (0.985, place), xycoords=("axes fraction", "data"),
            ha="right", va="center", fontsize="small",
        )  # fmt: skip
    axes.set_yticks(range(len(strategies)), [plain(name) for name in strategies])
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(labelsize="small")
    axes.grid(axis="x", alpha=0.25)


def _dots(seeds: Sequence[Mapping[str, Any]], key: str, measure: str) -> list[float]:
    name = "step" if measure == "steps" else measure
    return [run["to"][key][name] for run in seeds if run["to"][key] is not None]


def _said(strategy: Mapping[str, Any], key: str, measure: str) -> str:
    """The median, and how many runs came there where some did not."""
    to, n = strategy["to"][key], len(strategy["seeds"])
    median = to[measure]["median"]
    reached = "" if to["reached"] == n else f"{to['reached']} of {n}"
    if median is None:
        return f"{reached} came"
    return f"{short(median)}{f' ({reached})' if reached else ''}"

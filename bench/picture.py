"""Plots: time of all heads by case and peer over the bare GEMMs, and time and memory against S, K and N."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    "eager": "#9a9a9a",
    "compiled": "#bdbdbd",
    "linear_cross_entropy": "#d9d9d9",
    "liger": "#c9b18f",
    "cut_cross_entropy": "#ddcba9",
    "eager_graph": "#7a7a7a",
    "ours_no_bias": "#6fa8d6",
    "ours": "#1f6fb4",
    "ours_graph": "#174f80",
}
LABELS = {
    "ours_no_bias": "ours,\nno bias",
    "linear_cross_entropy": "linear\ncross-ent.",
    "cut_cross_entropy": "cut\ncross-ent.",
    "eager_graph": "eager,\ngraph",
    "ours_graph": "ours,\ngraph",
}
FLOOR_COLOUR = "#c0392b"
COLUMNS = 4


def draw(medians_us: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Draw one panel per case, each with its own axis; `medians_us` is {case: {peer: microseconds}}."""
    rows = -(-len(medians_us) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(3.1 * COLUMNS, 2.7 * rows), squeeze=False, layout="constrained"
    )
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, (case, by_peer) in zip(axes.flat, medians_us.items(), strict=False):
        _draw_case(panel, case, by_peer)
    floors = [handle for panel in axes.flat for handle in panel.get_legend_handles_labels()[0]]
    if floors:
        figure.legend(handles=floors[:1], loc="upper right", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_case(panel: Axes, case: str, by_peer: Mapping[str, float]) -> None:
    panel.set_axis_on()
    peers = [peer for peer in COLOURS if peer in by_peer]
    times_ms = [by_peer[peer] / 1e3 for peer in peers]
    bars = panel.bar(range(len(peers)), times_ms, color=[COLOURS[peer] for peer in peers])
    panel.bar_label(bars, [f"{time:.3g}" for time in times_ms], fontsize=8)
    if "gemms" in by_peer:
        panel.axhline(
            by_peer["gemms"] / 1e3, color=FLOOR_COLOUR, linestyle="--", linewidth=1, label="bare GEMMs"
        )
    panel.set_xticks(range(len(peers)), [LABELS.get(peer, peer) for peer in peers], fontsize=7)
    panel.set_title(case.replace(" C=[", "\nC=["), fontsize=8)  # a list of sizes is as wide as a panel
    panel.set_ylabel("ms", fontsize=8)
    panel.tick_params(axis="y", labelsize=7)
    panel.margins(y=0.15)
    panel.spines[["top", "right"]].set_visible(False)


Series = Mapping[str, list[tuple[int, float]]]  # by peer: (value on the axis, number)


def draw_scaling(sweeps: Mapping[str, Mapping[str, Series]], title: str, path: Path) -> None:
    """Draw one column per axis, time (`p50`, µs) above memory (`peak_extra_bytes`); the bare GEMMs are the floor."""
    figure, axes = plt.subplots(
        2, len(sweeps), figsize=(3.8 * len(sweeps), 6), squeeze=False, layout="constrained"
    )
    for column, (axis, fields) in enumerate(sweeps.items()):
        _draw_sweep(axes[0, column], axis, fields["p50"], 1e3, "ms")
        _draw_sweep(axes[1, column], axis, fields["peak_extra_bytes"], 1e6, "MB beside inputs and gradients")
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_sweep(panel: Axes, axis: str, by_peer: Series, unit: float, label: str) -> None:
    for peer, series in by_peer.items():
        floor = peer == "gemms"
        values, numbers = zip(*sorted(series), strict=True)
        panel.plot(
            values,
            [number / unit for number in numbers],
            label="bare GEMMs" if floor else peer,
            color=FLOOR_COLOUR if floor else COLOURS[peer],
            linestyle="--" if floor else "-",
            marker="" if floor else "o",
            markersize=3,
            linewidth=1.8 if peer == "ours" else 1.2,
        )
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel(axis, fontsize=8)
    panel.set_ylabel(label, fontsize=8)
    panel.tick_params(labelsize=7)
    panel.spines[["top", "right"]].set_visible(False)

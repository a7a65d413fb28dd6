"""The plot of all heads: time by case and peer, over the bare GEMMs."""

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

"""bench/heads.png: time of forward and backward by case and peer, over the bare GEMMs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"eager": "#9a9a9a", "compiled": "#bdbdbd", "linear_cross_entropy": "#d9d9d9", "ours": "#1f6fb4"}
LABELS = {"linear_cross_entropy": "linear\ncross-ent."}
COLUMNS = 4


def draw(medians_us: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """One panel a case, each with an axis of its own; `medians_us` is {case: {peer: microseconds}}."""
    rows = -(-len(medians_us) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(3.1 * COLUMNS, 2.7 * rows), squeeze=False, layout="constrained"
    )
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, (case, by_peer) in zip(axes.flat, medians_us.items(), strict=False):
        _draw_case(panel, case, by_peer)
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
            by_peer["gemms"] / 1e3, color="#c0392b", linestyle="--", linewidth=1, label="bare GEMMs"
        )
        panel.legend(fontsize=7, frameon=False)
    panel.set_xticks(range(len(peers)), [LABELS.get(peer, peer) for peer in peers], fontsize=7)
    panel.set_title(case, fontsize=9)
    panel.set_ylabel("ms", fontsize=8)
    panel.tick_params(axis="y", labelsize=7)
    panel.margins(y=0.15)
    panel.spines[["top", "right"]].set_visible(False)

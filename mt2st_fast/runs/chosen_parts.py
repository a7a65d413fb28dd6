"""The map of parts and tasks: how important each part is to each task, how much of it a step updated, and its fate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mt2st_fast.runs.markdown import markdown_table
from mt2st_fast.training.history import History

TITLE = "Parts selected for the main task"
PICTURE = "importance.png"
ALT = "importance of every part for every task"
MEASURES = {
    "fisher": "the Fisher information (how fast the task's loss falls if a gradient step moves this part alone)",
    "taylor": "the squared change of the task's loss if the part is set to zero, to first order",
}


def chosen_parts(history: History) -> dict[str, Any] | None:
    """Return what a run's history says about the selection of parts, JSON-able; None if none were selected."""
    if not history.selections:
        return None
    selection = history.selections[-1]
    tasks = list(dict.fromkeys(task for part in selection.parts for task in part.importance))
    shares = {task: selection.shares(task) for task in tasks}
    counted = sum(part.cost for part in selection.parts if part.becomes != "retired")
    return {
        "step": selection.step,
        "measure": selection.measure,
        "seconds": selection.seconds,
        "frozen_cost_share": sum(p.cost for p in selection.parts if p.becomes == "frozen") / (counted or 1.0),
        "tasks": tasks,
        "parts": [
            {
                "name": part.name,
                "rows": part.rows,
                "cost": part.cost,
                "becomes": part.becomes,
                "importance": part.importance,
                "importance_shares": {task: shares[task][place] for task in tasks},
            }
            for place, part in enumerate(selection.parts)
        ],
    }


def lines_of(chosen: Mapping[str, Any]) -> list[str]:
    """Return the sentences that explain the map."""
    return [
        f"Selected at step {chosen['step']:,} on held-out batches, in {chosen['seconds']:.2f} s. A part's importance "
        f"is its share of {MEASURES[chosen['measure']]}. {chosen['frozen_cost_share']:.0%} of the numbers that a step "
        "of the main task updated until then are frozen, and no longer cost a gradient.",
    ]


def table_of(chosen: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Return columns and rows of the map."""
    columns = (
        "part",
        "rows:",
        "numbers a step updated:",
        *(f"{task}:" for task in chosen["tasks"]),
        "becomes",
    )
    rows = [
        (
            part["name"],
            "–" if part["rows"] is None else f"{part['rows']:,}",
            f"{part['cost']:,.0f}",
            *(f"{part['importance_shares'][task]:.1%}" for task in chosen["tasks"]),
            part["becomes"],
        )
        for part in chosen["parts"]
    ]
    return columns, rows


def section(chosen: Mapping[str, Any] | None) -> list[str]:
    """Return the map as Markdown; nothing if no parts were selected."""
    if chosen is None:
        return []
    return [
        f"## {TITLE}",
        "",
        *lines_of(chosen),
        "",
        f"![{ALT}]({PICTURE})",
        "",
        *markdown_table(*table_of(chosen)),
        "",
    ]

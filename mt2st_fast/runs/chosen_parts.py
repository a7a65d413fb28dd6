"""The map of parts and tasks: how important each part is to each task, what a step moved of it, and what it became."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mt2st_fast.runs.markdown import markdown_table
from mt2st_fast.training.history import History

TITLE = "Parts that the main task trained on"
PICTURE = "importance.png"
ALT = "importance of every part to every task"
MEASURES = {
    "fisher": "Fisher information: how fast the task's loss falls where a gradient step moves the part alone",
    "taylor": "the squared change of the task's loss where the part is set to zero, to first order",
}


def chosen_parts(history: History) -> dict[str, Any] | None:
    """Return what a run's history says about the choice of parts, JSON-able; None where none were chosen."""
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
        f"Chosen at step {chosen['step']:,} on held-out batches, in {chosen['seconds']:.2f} s. A part's importance is "
        f"its share of {MEASURES[chosen['measure']]}. {chosen['frozen_cost_share']:.0%} of the numbers that a step of "
        "the main task moved are frozen, and cost no gradient since.",
    ]


def table_of(chosen: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Return columns and rows of the map."""
    columns = ("part", "rows:", "numbers a step moved:", *(f"{task}:" for task in chosen["tasks"]), "becomes")
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
    """Return the map as Markdown; nothing where no parts were chosen."""
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

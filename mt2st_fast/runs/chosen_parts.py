"""The map of parts and tasks: how important each part is to each task, how much of it a step updated, and its fate."""

from __future__ import annotations

from mt2st_fast.runs.plots import plot_importance
from mt2st_fast.runs.run_schema import PartsChosen
from mt2st_fast.runs.sections import Picture, Section, Table
from mt2st_fast.training.history import History

PICTURE = "importance.png"
MEASURES = {
    "fisher": "the Fisher information (how fast the task's loss falls if a gradient step moves this part alone)",
    "taylor": "the squared change of the task's loss if the part is set to zero, to first order",
}


def chosen_parts(history: History) -> PartsChosen | None:
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


def sections_of(chosen: PartsChosen | None) -> list[Section]:
    """Return the section on the map, of what `chosen_parts` returned; none if no parts were selected."""
    if chosen is None:
        return []
    line = (
        f"Selected at step {chosen['step']:,} on held-out batches, in {chosen['seconds']:.2f} s. A part's importance "
        f"is its share of {MEASURES[chosen['measure']]}. {chosen['frozen_cost_share']:.0%} of the numbers that a step "
        "of the main task updated until then are frozen, and no longer cost a gradient."
    )
    picture = Picture(lambda: plot_importance(chosen), "importance of every part for every task", PICTURE)
    return [Section("Parts selected for the main task", [line], [_map(chosen)], [picture])]


def _map(chosen: PartsChosen) -> Table:
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
    return Table(columns, rows)

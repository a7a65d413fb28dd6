"""Which parts the single-task phase trains: measured, chosen and frozen once, where the last auxiliary task retires."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from mt2st_fast.compiling import compile_seconds
from mt2st_fast.training.engines import StepParts
from mt2st_fast.training.history import PartRecord, SelectionRecord
from mt2st_fast.training.importance import Importances, Part, importances
from mt2st_fast.training.observations import Selecting
from mt2st_fast.training.optim import RowSparseOptimizer
from mt2st_fast.training.optimizer_upkeep import remove
from mt2st_fast.training.sources import Batch


class PartSelection:
    """A run's: `due` asks for it, `make` measures and freezes, `undo` lets everything train again.

    What is frozen needs no gradient, and leaves the optimizer with its state; frozen rows stay there, left alone.
    """

    def __init__(self, schedule: object, parts: StepParts, held_out: Iterable[Batch] | None) -> None:
        self._schedule, self._parts, self._held_out = schedule, parts, held_out
        self._made = False
        self._frozen: list[nn.Parameter] = []

    def due(self, before: Sequence[str], active: Sequence[str]) -> bool:
        """Whether a phase of these tasks, after one of those before, is the first that is left to the main task."""
        alone = len(active) == 1 < len(before)
        return alone and not self._made and isinstance(self._schedule, Selecting)

    def make(self, step: int, named: Mapping[str, nn.Parameter]) -> SelectionRecord:
        """Measure while all tasks are still there, and freeze what the schedule does not select.

        named: all parameters by the names that the record has for them. Raises ValueError without held-out batches of
        the main task.
        """
        assert isinstance(self._schedule, Selecting)
        if self._held_out is None:
            raise ValueError(no_held_out(self._schedule))
        # What a first call compiles is no part of it, as of no step.
        started, compiled = time.perf_counter(), compile_seconds()
        found = importances(self._parts, self._held_out, self._schedule.measure)
        chosen = set(self._schedule.select(found))
        seconds = time.perf_counter() - started - (compile_seconds() - compiled)
        self._freeze([part for part in found.parts if part.name in chosen])
        self._made = True
        return SelectionRecord(step, self._schedule.measure, _records(found, chosen, named), seconds)

    def restore(self, selections: Sequence[SelectionRecord], named: Mapping[str, nn.Parameter]) -> None:
        """Know again what was frozen before a checkpoint, which has been frozen since."""
        self._made = bool(selections)
        names = [n for s in selections for p in s.parts if p.becomes == "frozen" for n in p.parameters]
        self._frozen = [named[name] for name in dict.fromkeys(names) if not named[name].requires_grad]

    def undo(self) -> None:
        """Train again what was frozen: a run to come begins with everything, as it does with all tasks."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def _freeze(self, frozen: Sequence[Part]) -> None:
        rows: dict[nn.Parameter, torch.Tensor] = {}
        for part in frozen:
            if part.rows is not None:
                (table,) = part.parameters
                rows[table] = rows[table] | part.rows if table in rows else part.rows
        # A table whose rows are all frozen is frozen itself: then not even the features' gradient is made.
        whole = [p for part in frozen if part.rows is None for p in part.parameters]
        whole += [table for table, of_table in rows.items() if of_table.all()]
        for parameter in whole:
            parameter.requires_grad_(False)
        remove(self._parts.optimizer, whole)
        for table, of_table in rows.items():
            if table.requires_grad:
                assert isinstance(self._parts.optimizer, RowSparseOptimizer)
                self._parts.optimizer.freeze_rows(table, of_table)
        self._frozen = whole


def no_held_out(schedule: object) -> str:
    """What to say to who trains with a schedule that decides by held-out batches, and gives none."""
    return f"{type(schedule).__name__} decides by held-out batches: give fit(val=...)"


def _records(
    found: Importances, frozen: set[str], named: Mapping[str, nn.Parameter]
) -> tuple[PartRecord, ...]:
    name_of = {id(parameter): name for name, parameter in named.items()}

    def becomes(part: Part) -> str:
        if part.task not in (None, found.main):
            return "retired"
        return "frozen" if part.name in frozen else "trained"

    return tuple(
        PartRecord(
            part.name,
            tuple(name_of[id(p)] for p in part.parameters),
            None if part.rows is None else int(part.rows.sum()),
            part.cost,
            {task: values[place] for task, values in found.by_task.items()},
            becomes(part),
        )
        for place, part in enumerate(found.parts)
    )

"""Which parts the single-task phase trains: measured, chosen and frozen once, when the last auxiliary task retires."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt2st_fast.compiling import stopwatch
from mt2st_fast.training.engines import StepParts
from mt2st_fast.training.history import PartRecord, SelectionRecord
from mt2st_fast.training.inputs.batch import Batch
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import remove
from mt2st_fast.training.phases.importance import importances
from mt2st_fast.training.schedules.abilities import Selecting
from mt2st_fast.training.schedules.shown import Importances, ModelPart


class PartSelection:
    """The part selection of a run: `due` says when, `make` measures and freezes, `undo` lets everything train again.

    Frozen parameters need no gradient, and leave the optimizer with their state; frozen rows stay in it, unmoved.
    """

    def __init__(self, schedule: object, parts: StepParts, held_out: Iterable[Batch] | None) -> None:
        self._schedule, self._parts, self._held_out = schedule, parts, held_out
        self._made = False
        self._frozen: list[nn.Parameter] = []

    def due(self, before: Sequence[str], active: Sequence[str]) -> bool:
        """Return whether a phase of the tasks `active`, after one of `before`, is the first of the main task alone."""
        alone = len(active) == 1 < len(before)
        return alone and not self._made and isinstance(self._schedule, Selecting)

    def make(self, step: int, named: Mapping[str, nn.Parameter]) -> SelectionRecord:
        """Measure while all tasks are still there, and freeze the parts that the schedule names.

        named: all parameters by their names in the record. With several processes, process 0 measures on
        its held-out batches, and all freeze what it has chosen. Raises ValueError without held-out batches of the main
        task.
        """
        assert isinstance(self._schedule, Selecting)
        if self._held_out is None:
            raise ValueError(no_held_out(self._schedule))
        processes = self._parts.processes
        choice = self._choose(step, named) if processes.rank == 0 else None
        if choice is None or processes.are_several:
            choice = _choice_told(processes.from_first(choice and _as_json(choice)), named)
        self._freeze(choice.frozen, named)
        self._made = True
        return choice.record

    def _choose(self, step: int, named: Mapping[str, nn.Parameter]) -> _Choice:
        assert isinstance(self._schedule, Selecting)
        assert self._held_out is not None
        seconds = stopwatch()
        found = importances(self._parts, self._held_out, self._schedule.measure)
        chosen = set(self._schedule.select(found))
        record = SelectionRecord(step, self._schedule.measure, _records(found, chosen, named), seconds())
        return _Choice(record, _frozen([part for part in found.parts if part.name in chosen], named))

    def restore(self, selections: Sequence[SelectionRecord], named: Mapping[str, nn.Parameter]) -> None:
        """Recover which parameters were frozen before a checkpoint and have stayed frozen."""
        self._made = bool(selections)
        names = [n for s in selections for p in s.parts if p.becomes == "frozen" for n in p.parameters]
        self._frozen = [named[name] for name in dict.fromkeys(names) if not named[name].requires_grad]

    def undo(self) -> None:
        """Unfreeze everything: the next run begins with all parameters, as it does with all tasks."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._frozen = []

    def _freeze(self, frozen: Mapping[str, Tensor | None], named: Mapping[str, nn.Parameter]) -> None:
        whole = [named[name] for name, rows in frozen.items() if rows is None]
        for parameter in whole:
            parameter.requires_grad_(False)
        remove(self._parts.optimizer, whole)
        for name, rows in frozen.items():
            if rows is not None:
                assert isinstance(self._parts.optimizer, RowSparseOptimizer)
                self._parts.optimizer.freeze_rows(named[name], rows)
        self._frozen = whole


def no_held_out(schedule: object) -> str:
    """Return the message for a schedule that needs held-out batches, if none were given."""
    return f"{type(schedule).__name__} decides based on held-out batches; pass fit(val=...)"


class _Choice(NamedTuple):
    """The decision: its record, and by name what is frozen, rows (V,) bool or everything (None)."""

    record: SelectionRecord
    frozen: dict[str, Tensor | None]


def _frozen(parts: Sequence[ModelPart], named: Mapping[str, nn.Parameter]) -> dict[str, Tensor | None]:
    """Return, by name, what to freeze for these parts."""
    name_of = {id(parameter): name for name, parameter in named.items()}
    frozen: dict[str, Tensor | None] = {}
    for part in parts:
        for name in (name_of[id(p)] for p in part.parameters):
            before = frozen.get(name)
            frozen[name] = part.rows if before is None or part.rows is None else before | part.rows
    # A table whose rows are all frozen is frozen as a whole: then not even the gradient of the features is made.
    return {name: None if rows is None or rows.all() else rows for name, rows in frozen.items()}


def _as_json(choice: _Choice) -> dict[str, Any]:
    rows = {
        name: None if of_table is None else of_table.nonzero().flatten().tolist()
        for name, of_table in choice.frozen.items()
    }
    return {"record": asdict(choice.record), "frozen": rows}


def _choice_told(told: Mapping[str, Any], named: Mapping[str, nn.Parameter]) -> _Choice:
    """Restore the choice from the result of `_as_json`."""
    frozen: dict[str, Tensor | None] = {}
    for name, numbers in told["frozen"].items():
        rows = None
        if numbers is not None:
            rows = torch.zeros(len(named[name]), dtype=torch.bool, device=named[name].device)
            rows[torch.tensor(numbers, dtype=torch.int64, device=rows.device)] = True
        frozen[name] = rows
    return _Choice(SelectionRecord.from_json(told["record"]), frozen)


def _records(
    found: Importances, frozen: set[str], named: Mapping[str, nn.Parameter]
) -> tuple[PartRecord, ...]:
    name_of = {id(parameter): name for name, parameter in named.items()}

    def becomes(part: ModelPart) -> str:
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

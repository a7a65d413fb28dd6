"""Which heads a finished run leaves to its model: those of tasks that it trained."""

from __future__ import annotations

from collections.abc import Collection

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.history import History


def untrained(heads: MultiTaskHeads, history: History) -> tuple[str, ...]:
    """Return the tasks whose heads no step has trained, so that they still have their initial weights.

    No step had the task, or only with a weight of 0, or none of its rows had a label. The main task is never among
    them.
    """
    return tuple(n for n in heads.tasks if n != heads.main and n not in history.tasks_trained)


def without_labels(history: History) -> tuple[str, ...]:
    """Return the tasks that steps weighed, but whose losses were all 0, as they are where no row has a label."""
    weighed = {name: None for record in history.steps for name, weight in record.weights.items() if weight}
    return tuple(name for name in weighed if name not in history.tasks_trained)


def heads_without(heads: MultiTaskHeads, left_out: Collection[str]) -> MultiTaskHeads:
    """Return the heads without some tasks, and without tasks that have no head; parameters are shared."""
    tasks = {name: task for name, task in heads.tasks.items() if name not in left_out}
    if len(tasks) == len(heads.names):
        return heads
    layers = {name: heads.linear(name) for name in tasks}
    kept = MultiTaskHeads.from_modules(layers, tasks, heads.main, backend=heads.backend, plan=heads.plan)
    kept.set_active(name for name in heads.active if name in kept.tasks)
    return kept

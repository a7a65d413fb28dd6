"""Decisions that must be the same in every process: process 0 decides."""

from __future__ import annotations

from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.schedules import Schedule

OWN_SCHEDULES = "mt2st_fast.training.schedules."


def must_agree(processes: Processes, schedule: Schedule) -> bool:
    """Return whether the weights of a schedule may differ from process to process: not those of this package.

    They are functions of the moment and of their observations, which are the same in all.
    """
    return processes.are_several and not type(schedule).__module__.startswith(OWN_SCHEDULES)


def agreed_weights(processes: Processes, schedule: Schedule, weights: dict[str, float]) -> dict[str, float]:
    """Return the weights of the schedule of process 0."""
    if not must_agree(processes, schedule):
        return weights
    agreed: dict[str, float] = processes.from_first({name: float(w) for name, w in weights.items()})
    return agreed

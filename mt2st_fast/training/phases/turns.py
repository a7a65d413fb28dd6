"""Parts of a model that train in turns, as a schedule says: the shared parameters, or each task's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import get_args

from mt2st_fast.errors import InputError
from mt2st_fast.training.engines import StepParts
from mt2st_fast.training.schedules import Moment, Part
from mt2st_fast.training.schedules.abilities import takes_turns


def part_at(schedule: object, moment: Moment) -> Part:
    """Return the part that trains in a step. Raises ValueError if the schedule returns an unknown part."""
    if not takes_turns(schedule):
        return "all"
    part = schedule.part(moment)
    if part not in get_args(Part):
        raise ValueError(
            f"{type(schedule).__name__}.part must return {', '.join(get_args(Part))}, not {part!r}"
        )
    return part


def steps_by_part(schedule: object, moments: Iterable[Moment]) -> dict[str, int]:
    """Return how many of these steps trained each part; empty for a schedule that trains all in every step."""
    if not takes_turns(schedule):
        return {}
    return dict(Counter(part_at(schedule, moment) for moment in moments))


def turns_of(schedule: object) -> str:
    """Return the schedule's description of its turns; "" if everything trains."""
    return str(getattr(schedule, "turns", "")) if takes_turns(schedule) else ""


def take_turn(parts: StepParts, part: Part, step: int) -> None:
    """Have the steps from this one on train a part. Raises InputError if nothing in it trains."""
    if part == parts.state.part:
        return
    parts.state.part = part
    if not any(p.requires_grad for p in parts.parameters_of(part)):
        what = {"shared": "encoder", "tasks": "active tasks", "all": "model"}[part]
        raise InputError(
            f"the schedule trains the {part} parameters from step {step} on, and none of the {what} is trainable; "
            "unfreeze some, or use a schedule without turns"
        )

"""Parts of a model that train in turns: what the tasks share, or what each of them has for itself.

A schedule of any class may have

    part(moment)    which part trains in a step: "shared" (the encoder), "tasks" (heads, losses with parameters of their
                    own, learnt weights) or "all"; a function of the moment alone
    turns           a text: how they take turns

Of the part that does not train no gradient is computed, and the optimizer leaves it as it is: no moment, no weight
decay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import get_args

from mt2st_fast.errors import InputError
from mt2st_fast.training.engines import StepParts
from mt2st_fast.training.schedules import Moment, Part


def takes_turns(schedule: object) -> bool:
    """Whether a schedule says which part trains."""
    return hasattr(schedule, "part")


def part_at(schedule: object, moment: Moment) -> Part:
    """What trains in a step. Raises ValueError for what is no part."""
    if not takes_turns(schedule):
        return "all"
    part: Part = schedule.part(moment)  # type: ignore[attr-defined]
    if part not in get_args(Part):
        raise ValueError(
            f"{type(schedule).__name__}.part must return {', '.join(get_args(Part))}, not {part!r}"
        )
    return part


def steps_by_part(schedule: object, moments: Iterable[Moment]) -> dict[str, int]:
    """How many of these steps trained which part; nothing of a schedule that trains all in every step."""
    if not takes_turns(schedule):
        return {}
    return dict(Counter(part_at(schedule, moment) for moment in moments))


def turns_of(schedule: object) -> str:
    """How parts take turns, as the schedule says it; "" where all trains."""
    return str(getattr(schedule, "turns", "")) if takes_turns(schedule) else ""


def take_turn(parts: StepParts, part: Part, step: int) -> None:
    """Have the steps from this one on train a part. Raises InputError where nothing of it trains."""
    if part == parts.part:
        return
    parts.part = part
    if not any(p.requires_grad for p in parts.parameters_of(part)):
        what = {"shared": "encoder", "tasks": "active tasks", "all": "model"}[part]
        raise InputError(
            f"the schedule trains the {part} parameters from step {step} on, and none of the {what} trains: unfreeze "
            "some, or take a schedule without turns"
        )

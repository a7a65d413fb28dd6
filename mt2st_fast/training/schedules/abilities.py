"""What a schedule can do beside weighing tasks by the moment, and who allows it.

All of it is optional. A schedule of any class may have

    observe(observation)                    called when losses are read, every `log_every` steps
    wants_gradients = True                  observations then hold `gradients`
    observe_held_out(held_out)              called after every evaluation; needs `fit(val=...)`
    wants_held_out_gradients = True         these then hold `gradients`
    measure, select(importances)            `select` is called when the last auxiliary task retires, and returns the
                                            names of the parts to freeze; needs `fit(val=...)`; see
                                            training/phases/importance.py
    part(moment)                            which part trains in a step: "shared" (the encoder), "tasks" (heads, losses
                                            with their own parameters, learned weights) or "all"; a function of the
                                            moment alone. The other part has no gradient, and the optimizer leaves it
                                            as it is: no moment, no weight decay
    turns                                   a text that describes these turns
    moments_per_task = True                 the optimizer keeps moments of shared parameters per task
                                            (schedules/adatask.py)
    reasons                                 why tasks have retired, by task, for the history
    evidence                                a list of the decisions so far, for the report
    in_small()                              a schedule with its kinds of steps within a few, for a warm-up
    state_dict(), load_state_dict(state)    JSON-able; saved in checkpoints, so that a resumed run continues bit for
                                            bit; a schedule that observes needs them if there is a checkpoint

and a schedule that is an nn.Module learns its weights (training/learnt_weights.py).

One object may serve several runs, and each begins anew: state is dropped when `task_weights` is asked about step 0, or
in `prepare` of a schedule that learns.

Not every place can do all of this. Each names what it allows and refuses the rest, so that an ability that is added
here is refused wherever nobody has thought about it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol, TypeGuard, runtime_checkable

from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.training.schedules.base import Moment, Part, Schedule
from mt2st_fast.training.schedules.shown import HeldOut, Importances, Measure, Observation


@runtime_checkable
class Observing(Protocol):
    """A schedule that observes losses."""

    def observe(self, observation: Observation) -> None:
        """Take note."""
        ...


@runtime_checkable
class ObservingHeldOut(Protocol):
    """A schedule that observes evaluations."""

    def observe_held_out(self, seen: HeldOut) -> None:
        """Take note."""
        ...


@runtime_checkable
class Selecting(Protocol):
    """A schedule that chooses what the main task trains on."""

    measure: Measure

    def select(self, found: Importances) -> Sequence[str]:
        """Return the names of the parts to freeze."""
        ...


@runtime_checkable
class WeighsByLosses(Protocol):
    """A schedule that weighs a step by the step's own losses."""

    def weigh(self, active: Sequence[str], losses: Tensor) -> Tensor:
        """(K,) the weights."""
        ...

    def learn(self, active: Sequence[str], before: Tensor, after: Tensor) -> None:
        """Learn from how the step changed the losses (K,)."""
        ...


@runtime_checkable
class TakesTurns(Protocol):
    """A schedule that trains the encoder in some steps, and the tasks' own parameters in others."""

    def part(self, moment: Moment) -> Part:
        """Return the part that trains in a step."""
        ...


@runtime_checkable
class Shortening(Protocol):
    """A schedule whose phases do not fit into a few steps, and that has another one to stand for it there."""

    def in_small(self) -> Schedule:
        """Return a schedule that goes through the same kinds of steps within a few of them."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A schedule that has state from step to step."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state, JSON-able."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> object:
        """Restore the state from `state_dict`."""
        ...


class Ability(Enum):
    """One thing that a schedule does beside weighing tasks by the moment; the value completes "the schedule ..."."""

    LEARNS_WEIGHTS = "learns its weights"
    WEIGHS_BY_LOSSES = "weighs a step by its losses before and after it"
    TAKES_TURNS = "trains the encoder and the tasks in turns"
    MOMENTS_PER_TASK = "keeps optimizer moments per task"
    SELECTS_PARTS = "selects which parts of the model train"
    SEES_GRADIENTS = "compares the tasks' gradients on the features that they share"
    SEES_HELD_OUT_GRADIENTS = "compares the tasks' gradients on held-out batches"
    OBSERVES_HELD_OUT = "decides by evaluations on held-out batches"
    OBSERVES_LOSSES = "decides by the losses"


NONE: frozenset[Ability] = frozenset()
# Calls of a method that only passes on what was measured; they need nothing of a step.
OBSERVING = frozenset(
    {
        Ability.OBSERVES_LOSSES,
        Ability.SEES_GRADIENTS,
        Ability.OBSERVES_HELD_OUT,
        Ability.SEES_HELD_OUT_GRADIENTS,
    }
)


def takes_turns(schedule: object) -> TypeGuard[TakesTurns]:
    """Return whether a schedule trains parts in turns; cheaper than isinstance, which a step cannot afford."""
    return callable(getattr(schedule, "part", None))


def abilities_of(schedule: object) -> frozenset[Ability]:
    """Return what a schedule does beside weighing tasks by the moment."""
    found = {
        Ability.LEARNS_WEIGHTS: isinstance(schedule, nn.Module),
        Ability.WEIGHS_BY_LOSSES: isinstance(schedule, WeighsByLosses),
        Ability.TAKES_TURNS: takes_turns(schedule),
        Ability.MOMENTS_PER_TASK: bool(getattr(schedule, "moments_per_task", False)),
        Ability.SELECTS_PARTS: isinstance(schedule, Selecting),
        Ability.SEES_GRADIENTS: bool(getattr(schedule, "wants_gradients", False)),
        Ability.SEES_HELD_OUT_GRADIENTS: bool(getattr(schedule, "wants_held_out_gradients", False)),
        Ability.OBSERVES_HELD_OUT: isinstance(schedule, ObservingHeldOut),
        Ability.OBSERVES_LOSSES: isinstance(schedule, Observing),
    }
    return frozenset(ability for ability, has in found.items() if has)


def check_is_schedule(schedule: object) -> None:
    """Raises TypeError for anything that cannot say when tasks train and how much they weigh."""
    if isinstance(schedule, type):
        raise TypeError(f"schedule is the class {schedule.__name__}; pass an instance, {schedule.__name__}()")
    if not callable(getattr(schedule, "task_weights", None)):
        raise TypeError(f"schedule must be a schedule, such as Switch(at=0.6), not {schedule!r}")


def check_allowed(schedule: object, allowed: Collection[Ability], *, why_not: str) -> None:
    """Raises InputError for a schedule with an ability that is not allowed, and TypeError for what is no schedule.

    why_not: the reason, and the fix.
    """
    check_is_schedule(schedule)
    has = abilities_of(schedule)
    refused = next((ability for ability in Ability if ability in has and ability not in allowed), None)
    if refused is not None:
        raise InputError(f"the schedule {type(schedule).__name__} {refused.value}, {why_not}")


def check_resumable(schedule: object) -> None:
    """Raises ValueError for a schedule that observes, but cannot save its observations in a checkpoint."""
    if isinstance(schedule, Observing | ObservingHeldOut) and not isinstance(schedule, Stateful):
        raise ValueError(
            f"the schedule {type(schedule).__name__} makes observations that a resumed run would lose; give it "
            "state_dict() and load_state_dict(state), or train without a checkpoint"
        )


def reasons_of(schedule: object) -> dict[str, str]:
    """Return why tasks have retired, by task; empty if the schedule does not say."""
    return dict(getattr(schedule, "reasons", {}))


def evidence_of(schedule: object) -> list[str]:
    """Return the schedule's decisions so far; empty if it does not say."""
    return list(getattr(schedule, "evidence", ()))

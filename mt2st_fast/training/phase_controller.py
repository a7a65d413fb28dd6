"""Phases for any training loop: what a callback of Lightning, of transformers or of one's own calls before a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.numbers import check_count
from mt2st_fast.training.observations import Observing, ObservingHeldOut, Stateful
from mt2st_fast.training.optimizer_upkeep import release
from mt2st_fast.training.phases import of_retired, set_active
from mt2st_fast.training.run_options import description
from mt2st_fast.training.schedules import Moment, Schedule
from mt2st_fast.training.turns import takes_turns

Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None


class Phase(NamedTuple):
    """A stretch of training with one set of active tasks, as it begins."""

    first_step: int
    active: tuple[str, ...]
    retired: tuple[str, ...]  # where it began
    reasons: dict[str, str]  # why they retired, where the schedule says so


class PhaseController:
    """Lets tasks go as a schedule says, in a training loop that is not this package's.

        controller = PhaseController(heads, Switch(at=0.6), optimizer)
        for step, (inputs, targets) in enumerate(batches):
            controller.step(step, total_steps, steps_per_epoch)
            heads(encoder(inputs), targets).total.backward()      # by the weights of this step
            optimizer.step()

    Where a task retires its head is no longer computed, its parameters need no gradient, and the optimizer forgets
    their state. They keep their places in its groups, so that schedulers and stored states go on fitting. `weights` are
    those of the step at hand, by active task; the heads take them where a call gives none. optimizer: one, several, or
    None (then retired parameters cost the memory of their moments); it may be set later. encoder: of one that is or
    holds a `TaskAdaptedEncoder`, whose layers of tasks' own retire with the tasks.

    To resume: make heads and optimizer as at the beginning, load modules, optimizer and this state in any order, and go
    on with the next step. The optimizer may also be made after the modules were loaded, of what is trainable. A DDP
    wrapper around the heads has to be made after loading, and anew where `step` returns a phase with retired tasks; or
    it has find_unused_parameters=True.

    Raises ValueError for a schedule that has to be shown what training sees, learns its weights, has parts of the model
    train in turns or the optimizer keep moments a task: those are for `Trainer`.
    """

    def __init__(
        self,
        heads: MultiTaskHeads,
        schedule: Schedule,
        optimizer: Optimizers = None,
        encoder: nn.Module | None = None,
    ) -> None:
        for asked, does in (
            (isinstance(schedule, nn.Module), "learns its weights, and a loop of one's own shows it nothing"),
            (
                isinstance(schedule, Observing | ObservingHeldOut),
                "decides by what training sees, and a loop of one's own shows it nothing",
            ),
            (
                takes_turns(schedule),
                "has parts of the model train in turns, which this sets nothing still for",
            ),
            (
                getattr(schedule, "accumulator_a_task", False),
                "takes an optimizer that keeps moments a task, and this keeps the one that there is",
            ),
        ):
            if asked:
                raise ValueError(
                    f"the schedule {type(schedule).__name__} {does}: train by Trainer, or give a schedule that only "
                    "says by the step when tasks train and what they weigh"
                )
        self.heads, self.schedule = heads, schedule
        self.optimizer, self.encoder = optimizer, encoder
        self.weights: dict[str, float] = {}
        self._phase: Phase | None = None

    @property
    def phase(self) -> Phase | None:
        """The phase at hand; None before the first step."""
        return self._phase

    def step(self, step: int, total_steps: int, steps_per_epoch: int) -> Phase | None:
        """To be called before every optimizer step, counted from 0: the phase that begins with it, or None.

        Step 0 begins a run, with all tasks. Raises InputError for what is no number of steps, and what the schedule
        raises.
        """
        check_count(0, step=step)
        check_count(total_steps=total_steps, steps_per_epoch=steps_per_epoch)
        main, *auxiliary = self.heads.names
        weights = self.schedule.task_weights(Moment(step, steps_per_epoch, total_steps), main, auxiliary)
        before = self.heads.names if step == 0 else self.heads.active
        active = tuple(name for name in before if name in weights)
        self.weights = {name: weights[name] for name in active}
        self.heads.set_weights(self.weights)
        if self._phase is not None and active == self._phase.active == self.heads.active:
            return None
        retired = tuple(name for name in before if name not in active)
        told: Mapping[str, str] = getattr(self.schedule, "reasons", {})
        self._enter(Phase(step, active, retired, {name: told[name] for name in retired if name in told}))
        return self._phase

    def _enter(self, phase: Phase) -> None:
        set_active(phase.active, self.encoder, self.heads)
        self._phase = phase
        gone = of_retired(self.encoder, self.heads)
        for optimizer in self._optimizers():
            release(optimizer, gone)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        if self.optimizer is None:
            return []
        # What wraps an optimizer, as accelerate's does, is one, too.
        return [self.optimizer] if isinstance(self.optimizer, torch.optim.Optimizer) else list(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from, JSON-able."""
        schedule = dict(self.schedule.state_dict()) if isinstance(self.schedule, Stateful) else None
        return {
            "schedule": description(self.schedule),
            "schedule_state": schedule,
            "tasks": list(self.heads.names),
            "phase": None if self._phase is None else self._phase._asdict(),
            "weights": dict(self.weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state_dict` was asked: its tasks active, the others out of heads and optimizer.

        Raises InputError, with nothing changed, for the state of another schedule or of other tasks.
        """
        for what, own in (("schedule", description(self.schedule)), ("tasks", list(self.heads.names))):
            if state[what] != own:
                raise InputError(
                    f"the state was made with {what} {state[what]}, this controller has {own}; give those of then, or "
                    "begin a run of its own"
                )
        if isinstance(self.schedule, Stateful):
            self.schedule.load_state_dict(state["schedule_state"])
        stored = state["phase"]
        if stored is None:
            return
        self.weights = dict(state["weights"])
        self.heads.set_weights(self.weights)
        self._enter(
            Phase(
                stored["first_step"],
                tuple(stored["active"]),
                tuple(stored["retired"]),
                dict(stored["reasons"]),
            )
        )

"""Phases for any training loop: called before each step by a callback of Lightning or transformers, or by your loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.numbers import check_count, check_positive
from mt2st_fast.training.given_parts import check_heads
from mt2st_fast.training.optimizers.upkeep import release
from mt2st_fast.training.phases.entering import of_retired, set_active
from mt2st_fast.training.run_options import description
from mt2st_fast.training.schedules import Moment, Schedule, checked_weights
from mt2st_fast.training.schedules.abilities import NONE, Stateful, check_allowed, reasons_of

Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None


class Phase(NamedTuple):
    """A stretch of training with one set of active tasks, at its start."""

    first_step: int
    active: tuple[str, ...]
    retired: tuple[str, ...]  # at its start
    reasons: dict[str, str]  # why they retired, if the schedule says so


class PhaseController:
    """Retires tasks as a schedule says, in a training loop outside this package.

        controller = PhaseController(heads, Switch(at=0.6), optimizer)
        for step, (inputs, targets) in enumerate(batches):
            controller.step(step, total_steps, steps_per_epoch)
            heads(encoder(inputs), targets).total.backward()      # with the weights of this step
            optimizer.step()

    When a task retires, its head is no longer computed, its parameters need no gradient, and the optimizer drops their
    state. They keep their places in its groups, so that schedulers and stored states still fit. `weights` are those of
    the current step, by active task; the heads use them if a call gives none. optimizer: one, several, or None (retired
    parameters then still occupy the memory of their moments); it may be set later. prune=False keeps that state in any
    case. encoder: give it if a head shares a parameter with it (tied embeddings), which then trains on when the head
    retires, and if it is or contains a `TaskAdaptedEncoder`, whose task-specific layers retire with the tasks.

    To resume: make heads and optimizer as at the beginning, load modules, optimizer and this state in any order, and
    continue with the next step. The optimizer may also be made after loading the modules, from the trainable
    parameters. A DDP wrapper around the heads must be made after loading, and again whenever `step` returns a phase
    with retired tasks; or use find_unused_parameters=True.

    Raises InputError for a schedule that does more than weigh tasks by the step, such as one that observes training:
    those are for `Trainer`.
    """

    def __init__(
        self,
        heads: MultiTaskHeads,
        schedule: Schedule,
        optimizer: Optimizers = None,
        encoder: nn.Module | None = None,
        *,
        prune: bool = True,
    ) -> None:
        check_heads(heads)
        check_allowed(
            schedule,
            NONE,
            why_not="which a training loop outside Trainer does not support; use Trainer, or a schedule that depends "
            "on the step alone, such as Switch or Diminish",
        )
        self.heads, self.schedule = heads, schedule
        self.optimizer, self.encoder, self.prune = optimizer, encoder, prune
        self.weights: dict[str, float] = {}
        self._phase: Phase | None = None

    @property
    def phase(self) -> Phase | None:
        """The current phase; None before the first step."""
        return self._phase

    def step(self, step: int, total_steps: int, steps_per_epoch: float) -> Phase | None:
        """Call this before every optimizer step, counted from 0: returns the phase that begins with it, or None.

        Step 0 begins a run, with all tasks. steps_per_epoch: where epochs differ in length, the mean of those so far.
        Raises InputError for an invalid number of steps, for tasks that become active again while no optimizer has
        their parameters, and whatever the schedule raises.
        """
        check_count(0, step=step)
        check_count(total_steps=total_steps)
        check_positive(steps_per_epoch=steps_per_epoch)
        step = int(step)  # the state of a phase holds it, and NumPy's number would be no JSON
        main, *auxiliary = self.heads.names
        moment = Moment(step, steps_per_epoch, total_steps)  # type: ignore[arg-type]
        weights = checked_weights(
            self.schedule, self.schedule.task_weights(moment, main, auxiliary), main, auxiliary
        )
        before = self.heads.names if step == 0 else self.heads.active
        active = tuple(name for name in before if name in weights)
        self.weights = {name: weights[name] for name in active}
        self.heads.set_weights(self.weights)
        if self._phase is not None and active == self._phase.active == self.heads.active:
            return None
        retired = tuple(name for name in before if name not in active)
        told = reasons_of(self.schedule)
        self._enter(Phase(step, active, retired, {name: told[name] for name in retired if name in told}))
        return self._phase

    def _enter(self, phase: Phase) -> None:
        returning = [name for name in phase.active if name not in self.heads.active]
        frozen = of_retired(self.encoder, self.heads)
        set_active(phase.active, self.encoder, self.heads)
        self._check_held(returning, [p for p in frozen if p.requires_grad])
        self._phase = phase
        gone = of_retired(self.encoder, self.heads)
        for optimizer in self._optimizers() if self.prune else []:
            release(optimizer, gone)

    def _check_held(self, returning: list[str], parameters: list[nn.Parameter]) -> None:
        """Refuse tasks that an earlier run retired, where the optimizer was made without their parameters."""
        optimizers = self._optimizers()
        held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
        if optimizers and any(id(p) not in held for p in parameters):
            raise InputError(
                f"{', '.join(returning)} had retired in an earlier run, and the optimizer does not have the parameters "
                "again; call heads.set_active(heads.names) before it is made"
            )

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        if self.optimizer is None:
            return []
        # A wrapper around an optimizer, such as accelerate's, is an optimizer too.
        return [self.optimizer] if isinstance(self.optimizer, torch.optim.Optimizer) else list(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, JSON-able."""
        schedule = dict(self.schedule.state_dict()) if isinstance(self.schedule, Stateful) else None
        return {
            "schedule": description(self.schedule),
            "schedule_state": schedule,
            "tasks": list(self.heads.names),
            "phase": None if self._phase is None else self._phase._asdict(),
            "weights": dict(self.weights),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from `state_dict`: its tasks are active, the others are out of heads and optimizer.

        Raises InputError, with nothing changed, for the state of another schedule or of other tasks.
        """
        for what, own in (("schedule", description(self.schedule)), ("tasks", list(self.heads.names))):
            if state[what] != own:
                raise InputError(
                    f"the state was made with {what} {state[what]}, this controller has {own}; use the original "
                    "ones, or start a new run"
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

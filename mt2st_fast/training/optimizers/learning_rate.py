"""The learning rate of a run's steps: as the optimizer has it, falling linearly, or set by a torch scheduler."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mt2st_fast.errors import InputError

Decay = Literal["linear", "none"]
SchedulerFactory = Callable[..., LRScheduler]  # takes (optimizer) or (optimizer, total_steps)


def check_rates(lr_decay: Any, lr_scheduler: Any) -> None:
    """Raises ValueError for an invalid way to set the rate, and for two ways at once."""
    if lr_decay not in ("linear", "none"):
        raise ValueError(f"lr_decay {lr_decay} is unknown; available: linear, none")
    if lr_scheduler is not None and not callable(lr_scheduler):
        raise InputError(
            "lr_scheduler must be a function that makes one of the run's optimizer, such as lambda optimizer: "
            f"StepLR(optimizer, 10), not a {type(lr_scheduler).__name__}"
        )
    if lr_scheduler is not None and lr_decay != "none":
        raise InputError(f"lr_decay={lr_decay!r} and lr_scheduler both set the rate; leave one of them out")


class LearningRate:
    """Sets the learning rate before every step, in the optimizer's groups, where every engine reads it."""

    def __init__(self, decay: Decay, factory: SchedulerFactory | None, total_steps: int) -> None:
        self._falls, self._factory, self._total_steps = decay == "linear", factory, total_steps
        self._scheduler: LRScheduler | None = None
        self._made: dict[str, Any] = {}  # the scheduler's state when it was new
        self._at = 0  # the step that the rate was last set for

    @property
    def scheduler(self) -> str | None:
        """The class name of the scheduler."""
        return None if self._scheduler is None else type(self._scheduler).__name__

    @property
    def cycles_momentum(self) -> bool:
        """Whether momentum or betas change together with the rate."""
        return _cycles_momentum(self._scheduler)

    def begin(self, optimizer: Optimizer) -> None:
        """Start at the first step. Raises InputError for an invalid scheduler, and for one that needs a metric."""
        self._optimizer = optimizer
        self._expected = float(self._first_group()["initial_lr"])
        if self._factory is None:
            return
        for group in optimizer.param_groups:  # a scheduler records its own initial rate
            set_rate(group, group.pop("initial_lr"))
        takes_steps = _required(self._factory) == 2
        made = self._factory(optimizer, self._total_steps) if takes_steps else self._factory(optimizer)
        if not isinstance(made, LRScheduler) or made.optimizer is not optimizer:
            raise InputError(
                f"lr_scheduler must make a torch.optim.lr_scheduler.LRScheduler of the optimizer that it is given, not "
                f"a {type(made).__name__}"
            )
        if isinstance(made, ReduceLROnPlateau):
            raise InputError(
                "lr_scheduler: ReduceLROnPlateau steps by a metric, and here a scheduler steps with every step; use "
                "a scheduler based on the step, or set the groups' lr in a Callback's on_evaluation"
            )
        self._scheduler, self._made = made, _numbers(made.state_dict())

    def resume(self, optimizer: Optimizer, stored: Mapping[str, Any] | None) -> None:
        """As `begin`, with an optimizer that has its stored groups. Raises InputError for another scheduler."""
        # A new scheduler sets its first rate.
        kept = ("params", "lr")
        groups = [{k: v for k, v in group.items() if k not in kept} for group in optimizer.param_groups]
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.begin(optimizer)
        for group, before, rate in zip(optimizer.param_groups, groups, rates, strict=True):
            group.update(before)
            set_rate(group, rate)
        name = None if stored is None else stored["name"]
        if self.scheduler != name:
            raise InputError(
                f"the checkpoint was made with lr_scheduler {name}, this run has {self.scheduler}; use the same, or "
                "start a new run"
            )
        if stored is not None and self._scheduler is not None:
            self._scheduler.load_state_dict(_merged(self._scheduler.state_dict(), stored["progress"]))

    def state(self) -> dict[str, Any] | None:
        """Return what `resume` needs, JSON-able. Raises InputError for a scheduler whose state is not JSON-able."""
        if self._scheduler is None:
            return None
        # Constructor arguments are not stored: the factory provides them again, as the end of the run may change.
        progress = _progress(self._made, _numbers(self._scheduler.state_dict()))
        try:
            json.dumps(progress)
        except TypeError as error:
            raise InputError(
                f"lr_scheduler: the state of {self.scheduler} cannot be saved in a checkpoint: {error}"
            ) from None
        return {"name": self.scheduler, "progress": progress}

    def set_for(self, step: int) -> None:
        """Set the groups to the rate of the step that is about to be taken."""
        if self._scheduler is not None:
            if self._at < step:  # not when a failed step is taken again
                self._advance()
            self._at = step
        elif self._falls:
            for group in self._optimizer.param_groups:
                set_rate(group, group["initial_lr"] * (1.0 - step / self._total_steps))
            self._expected = self.at(step)

    def as_set(self) -> float:
        """Return the current rate of the first group that holds parameters."""
        return rate_as_set(self._first_group(), self._expected)

    def at(self, step: int) -> float:
        """Return the same for a given step; with a scheduler, the current rate."""
        if not self._falls:
            return self.as_set()
        return float(self._first_group()["initial_lr"] * (1.0 - step / self._total_steps))

    def left(self, step: int) -> float | None:
        """Return a step's rate over that of the first step, if it falls linearly to zero, else None."""
        return 1.0 - step / self._total_steps if self._falls else None

    def given(self) -> float:
        """Return the initial rate."""
        return float(self._first_group()["initial_lr"])

    def _advance(self) -> None:
        assert self._scheduler is not None
        with warnings.catch_warnings():
            # A step in one kernel call does not call `optimizer.step`, which torch's scheduler then misses; those of a
            # SequentialLR do so when their turn comes.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._scheduler.step()

    def _first_group(self) -> dict[str, Any]:
        groups = self._optimizer.param_groups
        return next((group for group in groups if group["params"]), groups[0])


def _cycles_momentum(scheduler: Any) -> bool:
    inner = getattr(scheduler, "_schedulers", ())
    return bool(getattr(scheduler, "cycle_momentum", False)) or any(map(_cycles_momentum, inner))


def _required(factory: SchedulerFactory) -> int:
    """Return how many arguments a function requires; a class gets only the optimizer."""
    if isinstance(factory, type):
        return 1
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # for a function without a signature
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _numbers(state: Any) -> Any:
    """Copy with lists for tuples, and Python's numbers for tensors (a rate on the device) and NumPy's."""
    if isinstance(state, Tensor):
        return state.tolist()
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, Mapping):
        return {key: _numbers(value) for key, value in state.items()}
    return [_numbers(value) for value in state] if isinstance(state, list | tuple) else state


def _progress(made: Any, now: Any) -> Any:
    """Return what has changed since the scheduler was made, with nested schedulers in their places."""
    if isinstance(made, dict) and isinstance(now, dict):
        return {
            k: _progress(made.get(k), value) for k, value in now.items() if k not in made or value != made[k]
        }
    if _are_states(now) and _are_states(made):
        return [_progress(*pair) for pair in zip(made, now, strict=True)]
    return now


def _merged(fresh: Any, progress: Any) -> Any:
    if isinstance(fresh, dict) and isinstance(progress, dict):
        return fresh | {key: _merged(fresh.get(key), value) for key, value in progress.items()}
    if _are_states(fresh) and _are_states(progress):
        return [_merged(*pair) for pair in zip(fresh, progress, strict=True)]
    return progress


def _are_states(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def put_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Hold the learning rates on the device, so that a step can be captured as a CUDA graph.

    AdamW then counts its steps there.
    """
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = True


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's learning rate, in place if it is a tensor: a captured step reads that tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def rate_as_set(group: dict[str, Any], expected: float) -> float:
    """Return a group's learning rate as a number: `expected`, unless someone else has set another."""
    rate = float(group["lr"])
    # float32 holds 0.002 as 0.0020000001.
    return (
        expected if isinstance(group["lr"], Tensor) and math.isclose(rate, expected, rel_tol=1e-6) else rate
    )

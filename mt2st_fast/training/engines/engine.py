"""The interface of all engines, and the parts of a run that they work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.sharded import let_go_of_gathered
from mt2st_fast.model.shared_parameters import of_encoder
from mt2st_fast.model.task_adapted import TaskAdaptedEncoder, adapted_in
from mt2st_fast.training.learnt_weights import learnt_weights, penalty
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.run_options import RunOptions
from mt2st_fast.training.schedules.base import Part

_AS_IT_IS: AbstractContextManager[Any] = nullcontext()  # one for all: a step enters three of them


@dataclass
class StepState:
    """What changes between the steps of a run: `Run` sets it before a step; the engines only read all but the last."""

    weights_k: Tensor  # (K,) float32 on the device: the weights of the active tasks
    part: Part = "all"  # what trains in the next step
    compared: bool = False  # whether several processes have compared the rows that each begins with

    def set_weights(self, values: Sequence[float]) -> None:
        """Set the weights of the active tasks; as many as before keep their memory, which a CUDA graph reads."""
        fresh_k = torch.tensor(values, dtype=torch.float32, device="cpu")
        if len(values) == len(self.weights_k):
            self.weights_k.copy_(fresh_k, non_blocking=True)
        else:
            self.weights_k = fresh_k.to(self.weights_k.device)


@dataclass(frozen=True, eq=False)
class StepParts:
    """What the steps of a run move and read; only `state` changes from step to step."""

    encoder: nn.Module
    heads: MultiTaskHeads
    learnt: nn.Module | None  # the schedule, if it learns its weights
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    options: RunOptions
    fixed_batches: bool  # whether the same tensors are the same batch throughout a phase
    state: StepState
    # Tables that the backward pass steps, without a gradient.
    fused_tables: tuple[nn.Parameter, ...] = ()
    by_task: bool = False  # whether the optimizer has moments of shared parameters per task
    momentum_changes: bool = False  # whether momentum or betas change with every step
    processes: Processes = field(default_factory=Processes)  # that take the step together
    own_data: bool = False  # whether every process was given data of its own, as far as is known

    @property
    def device(self) -> torch.device:
        """Where the steps are taken."""
        return self.options.device

    @cached_property
    def adapted(self) -> list[TaskAdaptedEncoder]:
        """The parts of the encoder that have separate features for each task."""
        return adapted_in(self.encoder)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Everything that has parameters."""
        learnt = () if self.learnt is None else (self.learnt,)
        return self.encoder, self.heads, *learnt

    def weights(self, present: Collection[str] | None = None) -> Tensor:
        """(K,) the weights of the active tasks; with gradient if they are learned.

        present: those that a learned weight is for in this step (see `learnt_weights`); the others have 0 in its place.
        """
        if self.learnt is None:
            return self.state.weights_k
        active = self.heads.active
        names = active if present is None else tuple(name for name in active if name in present)
        if not names:
            return torch.zeros(len(active), dtype=torch.float32, device=self.device)
        found = learnt_weights(self.learnt, names)
        if len(names) == len(active):
            return found
        none, own = found.new_zeros(()), dict(zip(names, found.unbind(), strict=True))
        return torch.stack([own.get(name, none) for name in active])

    def penalty(self, present: Collection[str]) -> Tensor | None:
        """() the penalty for tasks with targets, by learned weights and by the encoder; or None."""
        names = [name for name in self.heads.active if name in present]
        if not names:
            return None
        found: list[Tensor | None] = [] if self.learnt is None else [penalty(self.learnt, names)]
        found += [each.penalty(names) for each in self.adapted]
        terms = [term for term in found if term is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that train, each once: an encoder may hold the heads as well."""
        let_go_of_gathered(self.encoder)
        parameters = [p for module in self.modules for p in module.parameters()]
        return [p for p in dict.fromkeys(parameters) if p.requires_grad]

    def parameters_of(self, part: Part) -> list[nn.Parameter]:
        """Return all parameters of a part, including frozen ones; what encoder and heads have in common is shared."""
        if part == "all":
            return [p for module in self.modules for p in module.parameters()]
        of_shared = of_encoder(self.encoder, self.heads)
        if part == "shared":
            return of_shared
        ids = {id(p) for p in of_shared}
        return [p for module in self.modules[1:] for p in module.parameters() if id(p) not in ids]

    def freezing_idle_heads(self) -> AbstractContextManager[Any]:
        """Return the context in which parameters of heads that do not train in this step get no gradient.

        Those of the encoder have none where only the tasks' own train (see `encoding`), but for those that a head has,
        too.
        """
        return _AS_IT_IS if self.state.part == "all" else self._freezing_idle_heads()

    @contextmanager
    def _freezing_idle_heads(self) -> Iterator[None]:
        moved = {id(p) for p in self.parameters_of(self.state.part)}
        still = [
            p
            for module in self.modules[1:]
            for p in module.parameters()
            if p.requires_grad and id(p) not in moved
        ]
        for parameter in still:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in still:
                parameter.requires_grad_(True)

    def encoding(self) -> AbstractContextManager[Any]:
        """Return the context in which the encoder computes, and a task on words reads its table.

        Without gradient if only the tasks' own parameters train.
        """
        return torch.no_grad() if self.state.part == "tasks" else _AS_IT_IS

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which losses are computed."""
        dtype = self.options.autocast_dtype
        return _AS_IT_IS if dtype is None else torch.autocast(self.device.type, dtype)


class Engine(ABC):
    """One way to take a step: forward, backward and the optimizer's step on a list of micro-steps.

    A micro-step is a list of batches, one from each loader, without the labels of retired tasks. An engine that
    overrides nothing but the call takes every step.
    """

    name: str
    # By name, what its steps of this phase could have done, and why they did not, for the phase's record.
    does_without: Mapping[str, str] = MappingProxyType({})

    def enter_phase(self) -> None:  # noqa: B027 (may be left as it is)
        """Called before the first step of a phase: active tasks, parameters and optimizer have changed."""

    def obstacle(self) -> str | None:
        """Return why it cannot take the steps of this phase, or None."""
        return None

    def declines(self, micro_steps: Any) -> str | None:
        """Return why it cannot take this one step of a phase that it takes, or None."""
        return None

    @abstractmethod
    def __call__(self, micro_steps: Any) -> Tensor:
        """Take the step; returns the losses (K,) of the active tasks, on the device."""

    def features(self, inputs: Any) -> Tensor | None:
        """Return the features of held-out inputs, if it computes them faster than the encoder itself; else None."""
        return None

    def count_correct(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """(3,) for each of these tasks: held-out targets that are correct, all, and out of range; None if unable."""
        return None

"""What every way of taking a training step offers, and what they all work on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.sharded import let_go_of_gathered
from mt2st_fast.model.task_adapted import TaskAdaptedEncoder, adapted_in
from mt2st_fast.training.learnt_weights import learnt_weights, penalty
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.schedules.base import Part

Precision = Literal["float32", "bfloat16", "float16"]
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class StepParts:
    """What the steps of a run move and read.

    Of all this `weights_k`, a value of each active task, changes its tensor, and `part` with the turns of a schedule.
    """

    encoder: nn.Module
    heads: MultiTaskHeads
    learnt: nn.Module | None  # the schedule, where it learns its weights
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    weights_k: Tensor  # (K,) float32 on the device
    device: torch.device
    precision: Precision
    clip_norm: float | None
    accumulate: int  # batches a step
    lr_changes: bool  # whether the learning rate is another in every step
    graph: bool
    fuse_backward: bool | None  # None: wherever that is safe
    fixed_batches: bool  # whether the same tensors are the same batch throughout a phase
    fused_tables: list[nn.Parameter] = field(
        default_factory=list
    )  # that the backward pass steps, without a gradient
    part: Part = "all"  # what trains in the step at hand
    by_task: bool = False  # whether the optimizer has moments a task of what they share
    momentum_changes: bool = False  # whether momentum or betas are others in every step
    processes: Processes = field(default_factory=Processes)  # that take the step together

    @cached_property
    def adapted(self) -> list[TaskAdaptedEncoder]:
        """What of the encoder has features of every task's own."""
        return adapted_in(self.encoder)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """Everything that has parameters."""
        learnt = () if self.learnt is None else (self.learnt,)
        return self.encoder, self.heads, *learnt

    def weights(self) -> Tensor:
        """(K,) what the active tasks weigh; with gradient where that is learnt."""
        return self.weights_k if self.learnt is None else learnt_weights(self.learnt, self.heads.active)

    def penalty(self, present: Collection[str]) -> Tensor | None:
        """() what is added to the total loss of tasks with targets, by learnt weights and by the encoder; or None."""
        names = [name for name in self.heads.active if name in present]
        found = [] if self.learnt is None else [penalty(self.learnt, names)]
        found += [each.penalty(names) for each in self.adapted]
        terms = [term for term in found if term is not None]
        return sum(terms[1:], terms[0]) if terms else None

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that take part, each once: an encoder may hold the heads as well."""
        let_go_of_gathered(self.encoder)
        parameters = [p for module in self.modules for p in module.parameters()]
        return [p for p in dict.fromkeys(parameters) if p.requires_grad]

    def parameters_of(self, part: Part) -> Iterable[nn.Parameter]:
        """All parameters of a part, frozen ones, too."""
        own = [p for module in self.modules[1:] for p in module.parameters()]
        if part == "tasks":
            return own
        held = {id(p) for p in own} if part == "shared" else set()  # an encoder may hold the heads as well
        return [p for module in self.modules for p in module.parameters() if id(p) not in held]

    @contextmanager
    def own_parameters_still(self) -> Iterator[None]:
        """While it lasts no gradient is computed of the tasks' own parameters, if only shared ones train."""
        still = [p for p in self.parameters_of("tasks") if p.requires_grad] if self.part == "shared" else []
        for parameter in still:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in still:
                parameter.requires_grad_(True)

    def encoding(self) -> AbstractContextManager[Any]:
        """The region in which the encoder computes, and a task on words reads its table: without gradient if only the
        tasks' own parameters train.
        """
        return torch.no_grad() if self.part == "tasks" else nullcontext()

    def autocast(self) -> AbstractContextManager[Any]:
        """The region in which losses are computed."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST[self.precision])


class Engine(Protocol):
    """One way to take a step: forward, backward and the optimizer's step on a list of micro-steps.

    A micro-step is a list of batches, one from each loader, without the labels of retired tasks.
    """

    name: str

    def enter_phase(self) -> None:
        """The active tasks, and with them parameters and optimizer, are others now; called before its first step."""
        ...

    def obstacle(self) -> str | None:
        """Why it cannot take the steps of this phase, or None."""
        ...

    def declines(self, micro_steps: Any) -> str | None:
        """Why it cannot take this one step of a phase that it takes, or None."""
        ...

    def __call__(self, micro_steps: Any) -> Tensor:
        """Take the step; the losses (K,) of the active tasks, on the device."""
        ...

    def features(self, inputs: Any) -> Tensor | None:
        """What the encoder makes of held-out inputs, faster than by its own forward pass; None where it cannot."""
        ...

    def count_correct(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """(2,) of each of these tasks: held-out targets that it hits, and all there are; None where it cannot say."""
        ...

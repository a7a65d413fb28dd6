"""A step with a backward pass a task: each task moves the shared parameters by moments of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt2st_fast.model.task_features import TaskFeatures
from mt2st_fast.training.engines.eager import EagerSteps, Encoded
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.optim import FROZEN_ROWS
from mt2st_fast.training.sources import Batch, materialised

OF_TASK = (
    ":"  # stands between the name of what an optimizer remembers and the number of the task that it is of
)


class _TaskStep(NamedTuple):
    """What a task alone asks of the parameters."""

    task: int  # its place among all tasks
    gradients: list[tuple[nn.Parameter, Tensor]]


class TaskwiseSteps(EagerSteps):
    """As the eager step, with a gradient and a step of the optimizer a task.

    What the optimizer remembers of a shared parameter stands once a task in its state, so that checkpoints hold it as
    they hold all else; what it remembers of a task that has retired is let go.
    """

    name = "a pass a task"

    def __init__(self, parts: StepParts) -> None:
        super().__init__(parts)
        self._places = {name: place for place, name in enumerate(parts.heads.names)}

    def enter_phase(self) -> None:
        """Forget the moments of tasks that have retired."""
        active = {self._places[name] for name in self._parts.heads.active}
        for state in self._states().values():
            for key in [key for key in state if OF_TASK in key]:
                if int(key.partition(OF_TASK)[2]) not in active:
                    del state[key]

    def __call__(self, micro_steps: list[list[Batch]]) -> Tensor:
        """The losses (K,) of one step."""
        encoded = [self._encoded(materialised(batch)) for batch in micro_steps[0]]
        losses, steps = [], []
        for each in encoded:
            present = [name for name in self._parts.heads.active if name in each.targets]
            for name in present:
                # All gradients are of the parameters before the step.
                losses.append(self._backward_of(name, each, last=name == present[-1]))
                steps.append(_TaskStep(self._places[name], self._taken()))
        for step in steps:
            self._move(step)
        return torch.stack(losses).sum(0)

    def _backward_of(self, name: str, encoded: Encoded, *, last: bool) -> Tensor:
        """The losses (K,) of one task, 0 of the others; its gradients are left in the parameters."""
        features = encoded.features
        assert not isinstance(features, TaskFeatures)  # refused before a run begins
        alone = encoded._replace(targets={name: encoded.targets[name]})
        if features is None or not features.requires_grad:
            out = self._losses(alone, self._parts.weights())
            out.total.backward()  # type: ignore[no-untyped-call]
            return out.losses
        leaf = features.detach().requires_grad_()
        out = self._losses(alone._replace(features=leaf), self._parts.weights())
        out.total.backward()  # type: ignore[no-untyped-call]
        features.backward(leaf.grad, retain_graph=not last)  # type: ignore[no-untyped-call]
        return out.losses

    def _taken(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The gradients of all parameters that have one, which they no longer hold."""
        found = [(p, p.grad) for p in self._parts.trainable() if p.grad is not None]
        for parameter, _ in found:
            parameter.grad = None
        return found

    def _move(self, step: _TaskStep) -> None:
        for parameter, gradient in step.gradients:
            parameter.grad = gradient
        with self._moments_of(step.task):
            self._parts.optimizer.step()
        self._parts.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _moments_of(self, task: int) -> Iterator[None]:
        """While it lasts, what the optimizer remembers of shared parameters is what it does of a task's gradients."""
        suffix = f"{OF_TASK}{task}"
        kept = self._states()
        optimizer = self._parts.optimizer
        for parameter, state in kept.items():
            optimizer.state[parameter] = {
                key.removesuffix(suffix): value
                for key, value in state.items()
                if key.endswith(suffix) or key == FROZEN_ROWS
            }
        try:
            yield
        finally:
            for parameter, state in kept.items():
                own = optimizer.state[parameter]
                state.update({f"{key}{suffix}": value for key, value in own.items() if key != FROZEN_ROWS})
                # Adam looks for it in every parameter's state when it is loaded.
                if "step" in own and "step" not in state:
                    state["step"] = torch.zeros_like(own["step"])
                optimizer.state[parameter] = state

    def _states(self) -> dict[nn.Parameter, dict[str, Any]]:
        """What the optimizer remembers of each shared parameter."""
        optimizer = self._parts.optimizer
        return {p: optimizer.state[p] for p in self._parts.parameters_of("shared") if p.requires_grad}

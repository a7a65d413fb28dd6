"""A step with one backward pass per task: each task moves the shared parameters by its own moments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt2st_fast.model.task_features import TaskFeatures
from mt2st_fast.training.engines.eager import EagerSteps, Encoded
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.inputs.batch import Batch, materialised
from mt2st_fast.training.optimizers.row_sparse import FROZEN_ROWS

# Between the name of what an optimizer remembers and the number of its task.
OF_TASK = ":"


class _TaskStep(NamedTuple):
    """The gradients of one task alone."""

    task: int  # its position among all tasks
    gradients: list[tuple[nn.Parameter, Tensor]]


class TaskwiseSteps(EagerSteps):
    """Like the eager step, with a gradient and an optimizer step per task.

    The optimizer's state of a shared parameter is stored once per task, so that checkpoints hold it like any other
    state. The state of a retired task is dropped.
    """

    name = "a pass a task"

    def __init__(self, parts: StepParts) -> None:
        super().__init__(parts)
        self._places = {name: place for place, name in enumerate(parts.heads.names)}

    def enter_phase(self) -> None:
        """Drop the moments of tasks that have retired."""
        active = {self._places[name] for name in self._parts.heads.active}
        for state in self._states().values():
            for key in [key for key in state if OF_TASK in key]:
                if int(key.partition(OF_TASK)[2]) not in active:
                    del state[key]

    def __call__(self, micro_steps: list[list[Batch]]) -> Tensor:
        """Take one step; returns the losses (K,)."""
        encoded = [self._encoded(materialised(batch)) for batch in micro_steps[0]]
        losses, steps = [], []
        for each in encoded:
            present = [name for name in self._parts.heads.active if name in each.targets]
            for name in present:
                # All gradients are taken at the parameters before the step.
                losses.append(self._backward_of(name, each, last=name == present[-1]))
                steps.append(_TaskStep(self._places[name], self._taken()))
        for step in steps:
            self._move(step)
        return torch.stack(losses).sum(0)

    def _backward_of(self, name: str, encoded: Encoded, *, last: bool) -> Tensor:
        """Return the losses (K,) of one task, 0 for the others, and leave its gradients in the parameters."""
        features = encoded.features
        assert not isinstance(features, TaskFeatures)  # checked before a run begins
        alone = encoded._replace(targets={name: encoded.targets[name]})
        if features is None or not features.requires_grad:
            out = self._losses(alone, self._parts.weights())
            if out.total.requires_grad:  # not if the task is frozen
                out.total.backward()  # type: ignore[no-untyped-call]
            return out.losses
        leaf = features.detach().requires_grad_()
        out = self._losses(alone._replace(features=leaf), self._parts.weights())
        out.total.backward()  # type: ignore[no-untyped-call]
        features.backward(leaf.grad, retain_graph=not last)  # type: ignore[no-untyped-call]
        return out.losses

    def _taken(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Take the gradients of all parameters that have one out of them."""
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
        """Within the block, give the optimizer the state of shared parameters that belongs to one task."""
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
                # Adam looks for it in the state of every parameter when it is loaded.
                if "step" in own and "step" not in state:
                    state["step"] = torch.zeros_like(own["step"])
                optimizer.state[parameter] = state

    def _states(self) -> dict[nn.Parameter, dict[str, Any]]:
        """Return the optimizer's state of each shared parameter."""
        optimizer = self._parts.optimizer
        return {p: optimizer.state[p] for p in self._parts.parameters_of("shared") if p.requires_grad}

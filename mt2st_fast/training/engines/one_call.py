"""Steps as one kernel call each, on a CPU: of a bag encoder or a window encoder, with its heads and its optimizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.training.engines.bag_training import BagTraining
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.engines.held_parameters import LOSSES_ALONE, MOVES
from mt2st_fast.training.engines.window_training import WindowTraining
from mt2st_fast.training.learnt_weights import WeighsByLosses, weights_by_losses
from mt2st_fast.training.sources import materialised, tasks_of


class OneCallSteps:
    """One kernel call a step, where `BagTraining` or `WindowTraining` can take the phase."""

    name = "one kernel call"

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._obstacle: str | None = None
        self._training: BagTraining | WindowTraining | None = None

    def enter_phase(self) -> None:
        """Look at model and optimizer again."""
        parts = self._parts
        self._training, self._obstacle = None, self._found_obstacle()
        if self._obstacle is not None:
            return
        model = parts.encoder, parts.heads, parts.optimizer
        if isinstance(parts.encoder, WindowEncoder):
            self._training = WindowTraining(*model)
        else:
            self._training = BagTraining(*model, fixed_batches=parts.fixed_batches)

    def _found_obstacle(self) -> str | None:
        parts = self._parts
        # First: looking at an optimizer makes its state, in a CPU's form.
        if parts.device.type != "cpu":
            return f"its kernels compute on a CPU, the run is on {parts.device.type}"
        if parts.processes.are_several:
            return "several processes exchange gradients, which it never makes"
        if parts.fuse_backward is False:
            return "not asked for (fuse_backward=False)"
        if parts.clip_norm is not None:
            return "clip_norm needs the gradients, which it never makes"
        if parts.precision != "float32":
            return f"its kernel knows no autocast (precision {parts.precision})"
        if parts.by_task:
            return "an accumulator a task takes a backward pass a task"
        if not isinstance(parts.encoder, WindowEncoder | BagEncoder):
            return f"it is for a WindowEncoder or a BagEncoder, not for {type(parts.encoder).__name__}"
        training = WindowTraining if isinstance(parts.encoder, WindowEncoder) else BagTraining
        return training.obstacle(parts.encoder, parts.heads, parts.optimizer)

    def obstacle(self) -> str | None:
        """Why it cannot take the steps of this phase, or None."""
        return self._obstacle

    def declines(self, micro_steps: Any) -> str | None:
        """Why it cannot take this step, or None: it takes one batch of tasks with heads, and trains all parameters."""
        assert self._training is not None
        if len(micro_steps) != 1 or len(micro_steps[0]) != 1:
            return "a step is made of several batches"
        if any(self._parts.heads.is_word_task(name) for name in tasks_of(micro_steps[0][0])):
            return "a task on words has no head"
        return self._training.declines()

    def features(self, inputs: Any) -> Tensor | None:
        """By the kernel that trains, of a window encoder; without autograd."""
        return self._training.features(inputs) if isinstance(self._training, WindowTraining) else None

    def hits(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """By the kernel that trains, of a window encoder."""
        return self._training.hits(inputs, targets) if isinstance(self._training, WindowTraining) else None

    def __call__(self, micro_steps: Any) -> Tensor:
        """The losses (K,) of one step."""
        assert self._training is not None
        inputs, targets = materialised(micro_steps[0][0])
        learnt, moves = self._parts.learnt, MOVES[self._parts.part]
        if learnt is None:
            return self._training(inputs, targets, self._parts.weights_k, moves)
        if isinstance(learnt, WeighsByLosses):
            return self._weighed_by_losses(learnt, inputs, targets)
        weights_k = self._parts.weights()
        losses = self._training(inputs, targets, weights_k, moves)
        self._learn_weights(weights_k, losses, targets)
        return losses

    def _learn_weights(self, weights_k: Tensor, losses: Tensor, targets: Collection[str]) -> None:
        """A step of learnt weights, of which the total loss is linear: autograd begins at the losses."""
        parts = self._parts
        total = torch.dot(weights_k, losses)
        if (penalty := parts.penalty(targets)) is not None:
            total = total + penalty
        if parts.part == "shared" or not total.requires_grad:
            return
        total.backward()
        parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)

    def _weighed_by_losses(self, learnt: WeighsByLosses, inputs: Any, targets: dict[str, Tensor]) -> Tensor:
        """A step with weights from its own losses, which are computed before it, and once more after it."""
        assert self._training is not None
        active = self._parts.heads.active
        ones_k = torch.ones(len(active))
        before = self._training(inputs, targets, ones_k, LOSSES_ALONE)
        weights_k = weights_by_losses(learnt, active, before)
        losses = self._training(inputs, targets, weights_k, MOVES[self._parts.part], again=True)
        learnt.learn(active, losses, self._training(inputs, targets, ones_k, LOSSES_ALONE))
        return losses

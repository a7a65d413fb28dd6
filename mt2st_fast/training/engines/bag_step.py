"""Steps of a bag encoder and its heads as one kernel call each, on a CPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mt2st_fast.training.engines.bag_training import BagTraining
from mt2st_fast.training.engines.engine import StepParts


class BagSteps:
    """One kernel call a step, where `BagTraining` can take the phase."""

    name = "one kernel call"

    def __init__(self, parts: StepParts) -> None:
        self._parts = parts
        self._obstacle: str | None = None
        self._training: BagTraining | None = None

    def enter_phase(self) -> None:
        """Look at model and optimizer again."""
        parts = self._parts
        self._training, self._obstacle = None, self._found_obstacle()
        if self._obstacle is None:
            self._training = BagTraining(
                parts.encoder, parts.heads, parts.optimizer, fixed_batches=parts.fixed_batches
            )

    def _found_obstacle(self) -> str | None:
        parts = self._parts
        if not parts.fuse_backward:
            return "not asked for (fuse_backward=False)"
        if parts.precision != "float32":
            return f"its kernel knows no autocast (precision {parts.precision})"
        if parts.learnt is not None:
            return "the schedule learns its weights, which takes autograd"
        return BagTraining.obstacle(parts.encoder, parts.heads, parts.optimizer)

    def obstacle(self) -> str | None:
        """Why it cannot take the steps of this phase, or None."""
        return self._obstacle

    def declines(self, micro_steps: Any) -> str | None:
        """Why it cannot take this step, or None."""
        assert self._training is not None
        return self._training.declines(micro_steps)

    def __call__(self, micro_steps: Any) -> Tensor:
        """The losses (K,) of one step."""
        assert self._training is not None
        inputs, targets = micro_steps[0][0]
        return self._training(inputs, targets, self._parts.weights_k)

"""What the kernel calls for all kinds of models have in common: obstacles to them, and what they hold in a phase."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.engines.kernel_calls.held_parameters import HeldParameters


def options_obstacle(parts: StepParts) -> str | None:
    """Return which option of a run rules out every kind of kernel call, or None.

    Ask this before `KernelCalls.obstacle`: checking an optimizer creates its state, in the form for a CPU.
    """
    if parts.device.type != "cpu":
        return f"its kernels compute on a CPU, the run is on {parts.device.type}"
    if parts.options.backward == "autograd":
        return 'not asked for (backward="autograd")'
    if parts.options.precision != "float32":
        return f"its kernel does not support autocast (precision {parts.options.precision})"
    if parts.by_task:
        return "an accumulator per task needs a backward pass per task"
    return None


class KernelCalls(ABC):
    """Kernel calls on an encoder, its heads and their optimizer, for one phase and its active tasks.

    clip_norm: as a Trainer's, for calls that move parameters.

    Raises ValueError with the reason if the kernel cannot do all that a step would do (see `obstacle`).
    """

    joins_batches: ClassVar[bool] = False  # whether one call takes all batches of a step
    _held: HeldParameters  # set by `_hold`

    def __init__(
        self,
        encoder: nn.Module,
        heads: MultiTaskHeads,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None = None,
    ) -> None:
        reason = self.obstacle(encoder, heads, optimizer)
        if reason is not None:
            raise ValueError(f"{type(self).__name__} cannot take one kernel call a batch: {reason}")
        self.encoder, self._heads, self._optimizer, self._clip_norm = encoder, heads, optimizer, clip_norm
        self._hold()

    @classmethod
    @abstractmethod
    def obstacle(
        cls, encoder: nn.Module, heads: MultiTaskHeads, optimizer: torch.optim.Optimizer
    ) -> str | None:
        """Return why such a model and optimizer cannot be given to the kernel, or None."""

    @abstractmethod
    def _hold(self) -> None:
        """Record where the parameters lie, and which of them move, in `_held`."""

    def declines(self) -> str | None:
        """Return why the next call cannot be made, or None: callbacks may do anything between two steps."""
        if self._held.have_changed():
            if reason := self.obstacle(self.encoder, self._heads, self._optimizer):
                return reason
            self._hold()
        return self._options_obstacle() or self._held.obstacle()

    def _options_obstacle(self) -> str | None:
        """Return what rules a call out among the options that may change without the model being another one."""
        return None

    def inputs_obstacle(self, inputs: Sequence[Any]) -> str | None:
        """Return why one call cannot take the batches with these inputs, or None."""
        return None

    def _can_be_asked(self) -> bool:
        """Return whether a kernel may compute held-out inputs now, with the models that it was told of."""
        # As before a step. A hook may look at the features, for instance.
        return not self._held.have_changed() and (self._options_obstacle() or self._held.obstacle()) is None

    def features(self, inputs: Any) -> Tensor | None:
        """Return the features of held-out inputs, if a kernel computes them; else None."""
        return None

    def count_correct(self, inputs: Any, targets: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Count held-out targets as `Engine.count_correct` does, if a kernel does so; else return None."""
        return None

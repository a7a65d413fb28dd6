"""The error of a run whose losses or parameters are no longer finite, and where it looks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mt2st_fast.errors import InputError
from mt2st_fast.model.sharded import own_part


class NonFiniteLossError(InputError):
    """A task's loss became NaN or infinite."""


@dataclass(frozen=True)
class Rates:
    """The position of a run and its learning rates, for messages."""

    rate_at: Callable[[int], float]
    given: float  # what the user asked for
    steps_done: int
    steps_per_epoch: int

    def at(self, step: int) -> str:
        """Describe step, epoch and learning rate, and what to do."""
        return (
            f"at step {step}: in epoch {step / self.steps_per_epoch:.2f} at a rate of {self.rate_at(step):g}; "
            f"lower lr ({self.given:g}), clip gradients, or look for bad values in inputs and targets"
        )


def check_finite(
    losses_mk: Tensor,
    names: Sequence[str],
    first_step: int,
    rates: Rates,
) -> None:
    """Raises NonFiniteLossError if a loss of M steps (M, K), the first of them first_step, is not finite."""
    if torch.isfinite(losses_mk).all():
        return
    m, k = (~torch.isfinite(losses_mk)).nonzero()[0].tolist()
    step = first_step + m
    raise NonFiniteLossError(f"the loss of {names[k]} is {losses_mk[m, k].item()} {rates.at(step)}")


def check_finite_parameters(named: Sequence[tuple[str, Tensor]], tasks: Sequence[str], rates: Rates) -> None:
    """Raises NonFiniteLossError if a parameter of any shape is not finite, naming the tasks that moved it."""
    floats = [(name, own_part(p.detach())) for name, p in named if p.is_floating_point()]
    # All at once, to wait for a device only once. A sum is finite only if every number is, and is computed at the
    # speed of memory. It may overflow, though, so each number is checked before an error is raised.
    if not floats or torch.stack([torch.isfinite(p.sum()) for _, p in floats]).all():
        return
    name = next((name for name, p in floats if not torch.isfinite(p).all()), None)
    if name is None:
        return
    after = f"{rates.at(rates.steps_done - 1)}" if rates.steps_done else "before the first step"
    raise NonFiniteLossError(
        f"{name} is no longer finite, trained on {', '.join(tasks) or 'nothing'} {after}"
    )

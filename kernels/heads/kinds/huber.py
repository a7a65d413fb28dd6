"""C values: Huber loss, (z-y)^2 / 2 where |z-y| < d, else d (|z-y| - d/2); its gradient is z-y clamped to [-d, d]."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..elements import absolute, where
from ..kind import Options, elementwise_kind, take_plain_numbers
from .squared import R2


@dataclass(frozen=True)
class HuberOptions(Options):
    """delta: where the loss changes from quadratic to linear, as in torch.nn.functional.huber_loss."""

    delta: float = 1.0

    def __post_init__(self) -> None:
        take_plain_numbers(self)
        if not self.delta > 0.0:
            raise ValueError(f"delta must be positive, not {self.delta}")

    @property
    def numbers(self) -> tuple[float, ...]:
        """(delta,)."""
        return (self.delta,)


def _loss(z: Tensor, y: Tensor, weights: Tensor, options: HuberOptions) -> Tensor:
    del weights  # this kind has none
    return F.huber_loss(z, y, reduction="none", delta=options.delta)


def _element(z, y, weight, options):
    delta = options[0]
    error = z - y
    size = absolute(error)
    loss = where(size < delta, 0.5 * error * error, delta * (size - 0.5 * delta))
    # A NaN is neither below nor above, and stays.
    from_below = where(error < 0.0 - delta, 0.0 - delta, error)
    return loss, where(from_below > delta, delta, from_below)


HUBER = elementwise_kind("HUBER", loss=_loss, element=_element, metrics=(R2,), options=HuberOptions)

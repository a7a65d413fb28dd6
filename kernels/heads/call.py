"""The interface between the op and the plans of the backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from .layout import HeadLayout
from .parts import Rows

Needs = tuple[bool, bool, bool]  # which gradients are needed: of features, weight and bias
Residual = tuple[Tensor, ...]  # MOST_RESIDUAL tensors at most
MOST_RESIDUAL = 3
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Given(NamedTuple):
    """The arguments of `multitask_loss`, as they are given."""

    features: Tensor
    weight: Rows
    bias: Rows | None
    targets: Sequence[Tensor]
    task_weights: Tensor
    layout: HeadLayout
    backend: str
    plan: str


class HeadsCall(NamedTuple):
    """One call of the op, with checked arguments; shapes are those of `multitask_loss`."""

    features: Tensor  # (N, D)
    weight: Tensor  # (S, D)
    bias: Tensor | None  # (S,)
    targets: Sequence[Tensor]  # K, each (N,) integers or (N, C) floats
    task_weights: Tensor  # (K,) float32
    layout: HeadLayout
    needs: Needs
    skip_zero_weights: bool = True  # a head of weight 0 has loss 0, correct 0 and gradient 0


class Forward(NamedTuple):
    """Losses of K heads, and the plan-specific tensors that the backward pass starts from."""

    losses: Tensor  # (K,) float32, mean over the valid rows or elements
    correct: Tensor  # (K,) int64, rows classified right
    residual: Residual  # of the shapes of `residual_like`; empty if no gradient is needed
    total: Tensor | None = None  # () float32, the weighted sum of the losses; None: the op computes it


class Whole(NamedTuple):
    """Losses of K heads that all need all rows, and the gradients of the weighted sum, None where not needed."""

    losses: Tensor  # (K,) float32
    correct: Tensor  # (K,) int64
    total: Tensor  # () float32
    gradients: Gradients


class AtOnce(Protocol):
    """A plan's way for a call of known tensors; see `at_once` of on_numba/tile.py."""

    def __call__(
        self,
        tensors: Sequence[Tensor],
        n_weights: int,
        layout: HeadLayout,
        needs: Needs,
        skip_zero_weights: bool,
    ) -> Whole | None:
        """Return None, with nothing done, for a call that only `forward` can compute."""


class Apart(NamedTuple):
    """Losses of K heads, and the gradients of each one's weighted loss; without values where nobody needs them."""

    losses: Tensor  # (K,) float32, not weighted
    features: list[Tensor]  # K, each (N, D) with memory of its own; or empty
    weight: Tensor  # (S, D), the rows of every head from its own loss; or empty
    bias: Tensor  # (S,), likewise


class Plan(Protocol):
    """How a backend computes heads: a module with these functions."""

    # Whether `backward` returns the residual itself, so that it can be used only once.
    RESIDUAL_IS_GRADIENT: bool

    def forward(self, call: HeadsCall) -> Forward:
        """Compute the losses of all heads, and the residual for the needed gradients."""

    def backward(self, call: HeadsCall, residual: Residual, grad_total: Tensor, *, own: bool) -> Gradients:
        """Return the gradients, times grad_total (), each None if not needed; the call's targets may be empty.

        Tensors after the residual's own are ignored.

        With `own` nobody else holds the residual, so it may be returned or overwritten.
        """

    def residual_like(self, call: HeadsCall) -> Residual:
        """Return empty tensors of the shapes and dtypes of the residual; the call's targets may be empty."""

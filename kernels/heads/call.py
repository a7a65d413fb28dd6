"""What the op hands to a backend's plan, and what every plan offers to the op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from .layout import HeadLayout

Needs = tuple[bool, bool, bool]  # which gradients are wanted: of features, weight and bias
Residual = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class HeadsCall(NamedTuple):
    """One call of the op, checked; shapes are those of `multitask_loss`."""

    features: Tensor  # (N, D)
    weight: Tensor  # (S, D)
    bias: Tensor | None  # (S,)
    targets: Sequence[Tensor]  # K, each (N,) integers or (N, C) floats
    task_weights: Tensor  # (K,) float32
    layout: HeadLayout
    needs: Needs
    skip_zero_weights: bool = True  # a head of weight 0 has loss 0, correct 0 and gradient 0


class Forward(NamedTuple):
    """Losses of K heads, and three tensors of the plan's own that its backward pass starts from."""

    losses: Tensor  # (K,) float32, mean over the valid rows or elements
    correct: Tensor  # (K,) int64, rows classified right
    residual: Residual  # of `residual_like`'s shapes; empty where no gradient is needed
    total: Tensor | None = None  # () float32, the losses by their task weights; None: the op adds them up


class Plan(Protocol):
    """How a backend computes heads: a module of these functions."""

    # Whether `backward` hands the residual out, so that it serves only once.
    RESIDUAL_IS_GRADIENT: bool

    def forward(self, call: HeadsCall) -> Forward:
        """Losses of all heads, and the residual for the gradients that are needed."""

    def backward(self, call: HeadsCall, residual: Residual, grad_total: Tensor, *, own: bool) -> Gradients:
        """The gradients, each None where it is not needed, times grad_total (); targets may be none.

        With `own` the residual is nobody else's and may be handed out or overwritten.
        """

    def residual_like(self, call: HeadsCall) -> Residual:
        """Empty tensors of the shapes and dtypes of the residual; targets may be none."""

    def warm_up(self) -> None:
        """Compile, or load compiled code, before a clock starts."""

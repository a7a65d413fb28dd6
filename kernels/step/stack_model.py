"""The model of a step on features: a stack of linear layers and heads on the last of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..heads.layout import HeadLayout
from .dense_model import Dense, DenseMoving, Linear, check_heads, dense_moving, parts_of
from .model import EVERYTHING, NOTHING, Moves

ACTIVATIONS = ("none", "relu", "tanh", "gelu", "gelu_tanh")


class Layer(NamedTuple):
    """A linear layer (H, F), and the activation of its outputs: one of ACTIVATIONS."""

    weight: Dense
    bias: Dense | None
    activation: str

    @property
    def linear(self) -> Linear:
        """Its parameters."""
        return self.weight, self.bias


class Moving(NamedTuple):
    """What a step updates: everything on the selected sides that is not frozen.

    reach: how many layers gradients are computed for, counted from the heads.
    """

    dense: DenseMoving
    reach: int


class StackModel:
    """Linear layers, each on the outputs of the one before, and K linear heads, as `stack_step` trains them.

    Parameters and states must not move in memory. No gradients are computed for what lies before the first layer that
    is not frozen.

    Raises ValueError without layers, and for layers and heads whose shapes do not fit together.
    """

    def __init__(self, layers: Sequence[Layer], heads: Sequence[Linear], layout: HeadLayout) -> None:
        if not layers:
            raise ValueError("a stack needs at least one linear layer")
        for before, after in itertools.pairwise(layers):
            H, F = before.weight.parameter.shape[0], after.weight.parameter.shape[1]
            if H != F:
                raise ValueError(f"a layer has {H} outputs, and the next one {F} inputs")
        self.n_inputs, self.n_features = (
            layers[0].weight.parameter.shape[1],
            layers[-1].weight.parameter.shape[0],
        )
        check_heads(heads, layout, self.n_features)
        self.layers, self.heads, self.layout = tuple(layers), tuple(heads), layout
        parts = parts_of([layer.linear for layer in layers], heads)
        self._moving = {
            moves: self._of(dense_moving(parts, moves))
            for moves in (EVERYTHING, Moves(heads=False), Moves(shared=False), NOTHING)
        }
        self.memory: Any = None  # belongs to the backend

    def _of(self, dense: DenseMoving) -> Moving:
        return Moving(dense, len(self.layers) - min(dense.layers, default=len(self.layers)))

    def moving(self, moves: Moves) -> Moving:
        """Return what such a step updates."""
        return self._moving[moves]

    def parameters(self) -> list[Tensor]:
        """Return the parameters of all layers and heads."""
        linears = [*(layer.linear for layer in self.layers), *self.heads]
        return [part.parameter for linear in linears for part in linear if part is not None]

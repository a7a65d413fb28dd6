"""The model of a step on features or on rows of a table: a stack of linear layers, and heads on the last of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..heads.layout import HeadLayout
from .dense_model import (
    TABLE,
    Dense,
    DenseMoving,
    Linear,
    Part,
    check_heads,
    dense_moving,
    parts_of,
    pieces_of,
)
from .front import Front
from .model import EVERYTHING, FROZEN, NOTHING, Moves

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

    reach: how many layers gradients are computed for, counted from the heads; one more if the table before them moves.
    table_pieces: of that table, if it is one of `dense`'s parameters.
    """

    dense: DenseMoving
    reach: int
    table_pieces: np.ndarray


class StackModel:
    """Linear layers, each on the outputs of the one before, and K linear heads, as `stack_step` trains them.

    front: a table before the layers, whose rows are their inputs.
    Parameters and states must not move in memory. No gradients are computed for what lies before the first layer that
    is not frozen.

    Raises ValueError without layers and table, and if table, layers and heads have shapes that do not fit together.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        heads: Sequence[Linear],
        layout: HeadLayout,
        front: Front | None = None,
    ) -> None:
        if not layers and front is None:
            raise ValueError("a stack needs at least one linear layer, or a table")
        for before, after in itertools.pairwise(layers):
            H, F = before.weight.parameter.shape[0], after.weight.parameter.shape[1]
            if H != F:
                raise ValueError(f"a layer has {H} outputs, and the next one {F} inputs")
        self.n_inputs = (layers[0].weight if layers else heads[0][0]).parameter.shape[1]
        self.n_features = layers[-1].weight.parameter.shape[0] if layers else self.n_inputs
        check_heads(heads, layout, self.n_features)
        if front is not None:
            front.check(self.n_inputs)
        self.layers, self.heads, self.layout, self.front = tuple(layers), tuple(heads), layout, front
        parts = parts_of([layer.linear for layer in layers], heads)
        self._moving = {
            moves: self._of(dense_moving(parts, moves), moves)
            for moves in (EVERYTHING, Moves(heads=False), Moves(shared=False), NOTHING)
        }
        self.memory: Any = None  # belongs to the backend

    def _of(self, dense: DenseMoving, moves: Moves) -> Moving:
        L = len(self.layers)
        if self.front is None or not moves.shared or self.front.table.rule == FROZEN:
            return Moving(dense, L - min(dense.layers, default=L), pieces_of([]))
        # No part like the others, whose gradients are products.
        table = dense_moving([Part(TABLE, 0, self.front.table)], moves)
        both = dense._replace(
            counts=np.concatenate([dense.counts, table.counts]),
            parameters=[*dense.parameters, *table.parameters],
        )
        return Moving(both, L + 1, table.pieces)

    def moving(self, moves: Moves) -> Moving:
        """Return what such a step updates."""
        return self._moving[moves]

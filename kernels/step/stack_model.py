"""The model of a step on features or on rows of a table: a stack of linear layers, and heads on the last of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..heads.layout import HeadLayout
from .dense_model import (
    TABLE,
    Dense,
    DenseMoving,
    Linear,
    Pair,
    Part,
    check_heads,
    dense_moving,
    parts_of,
    pieces_of,
)
from .embedding import EmbeddingTable
from .model import EVERYTHING, FROZEN, NOTHING, Moves


class Norm(NamedTuple):
    """A LayerNorm over so many numbers of a row, and its parameters (width,), if it has them.

    centred: whether their mean is subtracted; without that it is an RMSNorm.
    """

    width: int
    eps: float
    weight: Dense | None
    bias: Dense | None
    centred: bool = True


class Running(NamedTuple):
    """A BatchNorm's running statistics (width,), and how many batches they are of, () int64.

    momentum: of a new batch; None: all batches count the same.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor | None
    momentum: float | None


class BatchNorm(NamedTuple):
    """A BatchNorm of so many channels, and its parameters (width,), if it has them.

    of_batch: whether it normalises by the statistics of the batch, and updates the running ones, if it has them; else
    by the running ones.
    """

    width: int
    eps: float
    weight: Dense | None
    bias: Dense | None
    of_batch: bool
    running: Running | None


class Layer(NamedTuple):
    """A linear layer (H, F), a norm of its outputs, and then an activation: one of ACTIVATIONS, with its numbers.

    Without a weight, the norm is of the layer's inputs.
    """

    weight: Dense | None
    bias: Dense | None
    activation: str
    norm: Norm | BatchNorm | None = None
    numbers: tuple[float, ...] = ()

    @property
    def linear(self) -> Pair:
        """The parameters of its product."""
        return self.weight, self.bias

    @property
    def of_norm(self) -> Pair:
        """The parameters of its norm."""
        return (None, None) if self.norm is None else (self.norm.weight, self.norm.bias)

    @property
    def shape(self) -> tuple[int, int]:
        """How many outputs it has, and how many inputs."""
        if self.weight is not None:
            H, F = self.weight.parameter.shape
            return H, F
        assert self.norm is not None
        return self.norm.width, self.norm.width

    @property
    def needs_batch(self) -> bool:
        """Whether its outputs for a row depend on the other rows."""
        return isinstance(self.norm, BatchNorm) and self.norm.of_batch

    def check(self) -> None:
        """Raise ValueError if it has neither weight nor norm, or for a norm that does not fit."""
        if self.norm is None:
            if self.weight is None:
                raise ValueError("a layer needs a weight, a norm, or both")
            return
        width = self.norm.width
        if width != self.shape[0]:
            raise ValueError(f"a norm is over {width} numbers, and its layer has {self.shape[0]} outputs")
        tensors = [dense.parameter for dense in self.of_norm if dense is not None]
        if isinstance(self.norm, BatchNorm):
            if self.norm.running is not None:
                tensors += self.norm.running[:2]
            elif not self.norm.of_batch:
                raise ValueError("a BatchNorm without running statistics needs those of the batch")
        for tensor in tensors:
            if tensor.shape != (width,):
                raise ValueError(
                    f"a norm over {width} numbers has a parameter of shape {tuple(tensor.shape)}"
                )


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

    embedding: a table before the layers, whose rows are their inputs.
    Parameters and states must not move in memory. No gradients are computed for what lies before the first layer that
    is not frozen.

    Raises ValueError without layers and table, and if table, layers and heads have shapes that do not fit together.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        heads: Sequence[Linear],
        layout: HeadLayout,
        embedding: EmbeddingTable | None = None,
    ) -> None:
        if not layers and embedding is None:
            raise ValueError("a stack needs at least one linear layer, or a table")
        for layer in layers:
            layer.check()
        for before, after in itertools.pairwise(layers):
            H, F = before.shape[0], after.shape[1]
            if H != F:
                raise ValueError(f"a layer has {H} outputs, and the next one {F} inputs")
        self.n_inputs = layers[0].shape[1] if layers else heads[0][0].parameter.shape[1]
        self.n_features = layers[-1].shape[0] if layers else self.n_inputs
        check_heads(heads, layout, self.n_features)
        if embedding is not None:
            embedding.check(self.n_inputs)
        self.layers, self.heads, self.layout, self.embedding = tuple(layers), tuple(heads), layout, embedding
        parts = parts_of([layer.linear for layer in layers], heads, [layer.of_norm for layer in layers])
        self._moving = {
            moves: self._of(dense_moving(parts, moves), moves)
            for moves in (EVERYTHING, Moves(heads=False), Moves(shared=False), NOTHING)
        }
        self.cuts = tuple(n for n, layer in enumerate(self.layers) if layer.needs_batch)
        self.memory: Any = None  # belongs to the backend

    def _of(self, dense: DenseMoving, moves: Moves) -> Moving:
        L = len(self.layers)
        if self.embedding is None or not moves.shared or self.embedding.table.rule == FROZEN:
            return Moving(dense, L - min(dense.layers, default=L), pieces_of([]))
        # No part like the others, whose gradients are products.
        table = dense_moving([Part(TABLE, 0, self.embedding.table)], moves)
        both = dense._replace(
            counts=np.concatenate([dense.counts, table.counts]),
            parameters=[*dense.parameters, *table.parameters],
        )
        return Moving(both, L + 1, table.pieces)

    def moving(self, moves: Moves) -> Moving:
        """Return what such a step updates."""
        return self._moving[moves]

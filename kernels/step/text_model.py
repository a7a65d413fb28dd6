"""Models and inputs of a step on the words of a text: a table, a hidden layer and heads; words and bags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ..bags.rules import RowState
from ..heads.layout import HeadLayout
from .dense_model import Dense, DenseMoving, Linear, check_heads, dense_moving, parts_of
from .model import EVERYTHING, FROZEN, NOTHING, Moves, Trained, rows_left_alone

# How far back from the losses a step computes gradients: only to the logits if nothing but heads is updated; with
# TO_NOTHING there are no losses, only features.
TO_NOTHING, TO_HEADS, TO_HIDDEN, TO_TABLE = range(4)


class Gradient(NamedTuple):
    """A dense parameter and its gradient, of the same shape; the gradient is None if the parameter is frozen."""

    parameter: Tensor
    gradient: Tensor | None


class Moving(NamedTuple):
    """What a step updates: everything on the selected sides that is not frozen.

    reach: how far back from the losses gradients are computed.
    """

    dense: DenseMoving
    reach: int
    parameters: list[Tensor]


class Words(NamedTuple):
    """The word types of N rows of a batch, integers, -1 = none: windows (N, W), or bags one after another (total,).

    starts (N + 1,): bag i is types[starts[i] : starts[i + 1]]; None for windows.
    """

    types: Tensor
    starts: Tensor | None = None

    @property
    def n_rows(self) -> int:
        """N."""
        # Not by len(), which torch answers in Python.
        return self.types.shape[0] if self.starts is None else self.starts.shape[0] - 1


class ExtraGradients(NamedTuple):
    """Words besides the rows of the batch: types whose vectors have gradients (E, D) float32 from elsewhere."""

    types: Tensor  # (E,) integers, -1 = none
    d_vectors: Tensor


class Pooled(NamedTuple):
    """How the vectors of a row's words are combined: a window of `width` side by side, or the mean or sum of a bag."""

    how: Literal["window", "mean", "sum"]
    width: int = 1  # W; 1 for a bag


class TextStepModel:
    """A table (V, D), rows of word types, a hidden layer (H, W D) and K linear heads, as `text_step` trains them.

    rows_of_type: (T + 1, M) int32, the rows whose mean is a type's vector, -1 = none; the last entry stands for "no
    type" and has no rows. None: type t is row t.
    hidden, heads: (weight, bias or None). Only windows may have a hidden layer; without one, heads see W D numbers.
    frozen_rows: (V,) bool, the rows of the table that are not changed. No gradients are computed for frozen parameters.
    table_steps: (), float32, the number of steps the table has taken; a step counts itself. None: not counted.
    gathers_rows: store the gradients of the table's rows instead of updating the rows (`gradient_model`).

    Parameters and states must not move in memory.

    Raises ValueError for heads whose shapes do not fit the layout, and if frozen_rows has another length.
    """

    def __init__(
        self,
        table: Trained,
        rows_of_type: Tensor | None,
        pooled: Pooled,
        hidden: Linear | None,
        heads: Sequence[Linear],
        layout: HeadLayout,
        frozen_rows: Tensor | None = None,
        *,
        table_steps: Tensor | None = None,
        gathers_rows: bool = False,
    ) -> None:
        V, D = table.parameter.shape
        self.n_window = pooled.width * D  # W D
        self.n_features = H = self.n_window if hidden is None else len(hidden[0].parameter)
        check_heads(heads, layout, H)
        self.table, self.pooled, self.hidden = table, pooled, hidden
        self.heads, self.layout = tuple(heads), layout
        self.rows_of_type = _rows_of_type(rows_of_type, V)
        self.frozen_rows = rows_left_alone(frozen_rows, V)
        self.table_steps = table_steps
        parts = parts_of([] if hidden is None else [hidden], heads)
        self._moving = {
            moves: _moving(table, dense_moving(parts, moves), moves, gathers_rows)
            for moves in (EVERYTHING, Moves(heads=False), Moves(shared=False), NOTHING)
        }
        self.gathers_rows = gathers_rows
        self.memory: Any = None  # belongs to the backend
        self.room: np.ndarray | None = None  # (n,) float32, where the next gradients of rows go, if they fit

    def moving(self, moves: Moves) -> Moving:
        """Return what such a step updates."""
        return self._moving[moves]


def _moving(table: Trained, dense: DenseMoving, moves: Moves, gathers_rows: bool) -> Moving:
    of_table = [table.parameter] if moves.shared and table.rule != FROZEN else []
    reach = TO_TABLE if of_table else TO_HIDDEN if dense.layers else TO_HEADS
    return Moving(dense, reach, [*([] if gathers_rows else of_table), *dense.parameters])


def _rows_of_type(rows_of_type: Tensor | None, V: int) -> np.ndarray:
    if rows_of_type is not None:
        return np.ascontiguousarray(rows_of_type.numpy(), np.int32)
    own = np.arange(V + 1, dtype=np.int32)
    own[V] = -1
    return own[:, None]


def gradient_model(
    table: Trained,
    rows_of_type: Tensor | None,
    pooled: Pooled,
    hidden: tuple[Gradient, Gradient | None] | None,
    heads: Sequence[tuple[Gradient, Gradient | None]],
    layout: HeadLayout,
    frozen_rows: Tensor | None = None,
) -> TextStepModel:
    """Make a model for `text_gradients`; arguments as for `TextStepModel`, with a gradient for each parameter."""
    return TextStepModel(
        table, rows_of_type, pooled, None if hidden is None else _both_adding_up(*hidden),
        [_both_adding_up(*head) for head in heads], layout, frozen_rows, gathers_rows=True,
    )  # fmt: skip


def _both_adding_up(weight: Gradient, bias: Gradient | None) -> Linear:
    return _adding_up(weight), None if bias is None else _adding_up(bias)


def _adding_up(part: Gradient) -> Dense:
    is_frozen = part.gradient is None
    return Dense(part.parameter, RowState(), FROZEN if is_frozen else 0, False, part.gradient)

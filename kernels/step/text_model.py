"""Models and inputs of a step on the words of a text: a table, a hidden layer and heads; words and bags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from torch import Tensor

from ..bags.rules import RowState
from ..heads.layout import HeadLayout
from .model import EVERYTHING, FROZEN, NOTHING, Moves, Trained, rows_left_alone

PIECE_FLOATS = 8192  # of a dense parameter that are summed and updated at a time
ROW_BLOCK = 8  # the rows of a piece are whole blocks of a matrix kernel

HIDDEN_WEIGHT, HIDDEN_BIAS, HEAD_WEIGHT, HEAD_BIAS = range(4)
HIDDEN, HEAD = (HIDDEN_WEIGHT, HIDDEN_BIAS), (HEAD_WEIGHT, HEAD_BIAS)
NO_HEAD = -1

# How far back from the losses a step computes gradients: only to the logits if nothing but heads is updated; with
# TO_NOTHING there are no losses, only features.
TO_NOTHING, TO_HEADS, TO_HIDDEN, TO_TABLE = range(4)

# A piece of a dense parameter: rows whose gradient is computed, summed and applied at once. Addresses are of float32.
PIECE = np.dtype(
    [
        ("of", np.int64),  # HIDDEN_WEIGHT, ...
        ("head", np.int64),  # its index in the layout
        ("begin", np.int64),  # the first row
        ("rows", np.int64),
        ("columns", np.int64),
        ("parameter", np.int64),  # the address of its first row
        ("per_row", np.int64),  # addresses of the parts of the state; 0 = the rule keeps none
        ("first", np.int64),
        ("second", np.int64),
        ("rule", np.int64),
        ("whole", np.int64),  # 1: the rule treats all rows as one, with one count of steps
    ]
)


class Dense(NamedTuple):
    """A dense parameter, its rule's state and the index of its rule in a step; FROZEN: the parameter is not changed.

    whole: the rule treats the parameter as one row; else its rows are along the first axis.
    moved: what the rule updates, if that is not the parameter itself.
    """

    parameter: Tensor
    state: RowState
    rule: int
    whole: bool
    moved: Tensor | None = None


class Gradient(NamedTuple):
    """A dense parameter and its gradient, of the same shape; the gradient is None if the parameter is frozen."""

    parameter: Tensor
    gradient: Tensor | None


class Moving(NamedTuple):
    """What a step updates: everything on the selected sides that is not frozen.

    pieces: of dense parameters. counts: addresses of the step counters of parameters that are treated as one row.
    reach: how far back from the losses gradients are computed.
    """

    pieces: np.ndarray
    counts: np.ndarray
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
        return len(self.types) if self.starts is None else len(self.starts) - 1


class Beside(NamedTuple):
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
        hidden: tuple[Dense, Dense | None] | None,
        heads: Sequence[tuple[Dense, Dense | None]],
        layout: HeadLayout,
        frozen_rows: Tensor | None = None,
        *,
        table_steps: Tensor | None = None,
        gathers_rows: bool = False,
    ) -> None:
        V, D = table.parameter.shape
        self.n_window = pooled.width * D  # W D
        self.n_features = H = self.n_window if hidden is None else len(hidden[0].parameter)
        for name, spec, (weight, _) in zip(layout.names, layout.heads, heads, strict=True):
            if weight.parameter.shape != (spec.size, H):
                raise ValueError(
                    f"the weight of {name} is {tuple(weight.parameter.shape)}, not ({spec.size}, {H})"
                )
        self.table, self.pooled, self.hidden = table, pooled, hidden
        self.heads, self.layout = tuple(heads), layout
        self.rows_of_type = _rows_of_type(rows_of_type, V)
        self.frozen_rows = rows_left_alone(frozen_rows, V)
        self.table_steps = table_steps
        pairs = [(HEAD, k, head) for k, head in enumerate(heads)]
        if hidden is not None:
            pairs.insert(0, (HIDDEN, NO_HEAD, hidden))
        dense = [
            (kind, k, part)
            for kinds, k, pair in pairs
            for kind, part in zip(kinds, pair, strict=True)
            if part is not None and part.rule != FROZEN
        ]
        self._moving = {
            moves: _moving(table, dense, moves, gathers_rows)
            for moves in (EVERYTHING, Moves(heads=False), Moves(shared=False), NOTHING)
        }
        self.gathers_rows = gathers_rows
        self.memory: Any = None  # belongs to the backend

    def moving(self, moves: Moves) -> Moving:
        """Return what such a step updates."""
        return self._moving[moves]


def _moving(
    table: Trained, dense: Sequence[tuple[int, int, Dense]], moves: Moves, gathers_rows: bool
) -> Moving:
    """Return what is updated of a table and of dense parameters (kind, head, parameter), none of which is frozen."""
    own = [each for each in dense if (moves.heads if each[0] in HEAD else moves.shared)]
    counts = [part.state.per_row for _, _, part in own if part.whole]
    of_table = [table.parameter] if moves.shared and table.rule != FROZEN else []
    return Moving(
        np.array([piece for each in own for piece in _pieces(*each)], PIECE),
        np.array([count.data_ptr() for count in counts if count is not None], np.int64),
        _reach(bool(of_table), [kind for kind, _, _ in own]),
        [*([] if gathers_rows else of_table), *(_moved(part) for _, _, part in own)],
    )


def _moved(part: Dense) -> Tensor:
    return part.parameter if part.moved is None else part.moved


def _reach(table_moves: bool, kinds: Sequence[int]) -> int:
    """How far back gradients are needed: to the first of table, hidden layer and heads that is updated."""
    if table_moves:
        return TO_TABLE
    return TO_HIDDEN if any(kind in HIDDEN for kind in kinds) else TO_HEADS


def _rows_of_type(rows_of_type: Tensor | None, V: int) -> np.ndarray:
    if rows_of_type is not None:
        return cast(np.ndarray, rows_of_type.numpy())
    own = np.arange(V + 1, dtype=np.int32)
    own[V] = -1
    return own[:, None]


def _pieces(kind: int, head: int, part: Dense) -> list[tuple[int, ...]]:
    """Return the pieces of a parameter (R, C), or (C,) for a bias."""
    parameter, state = _moved(part), part.state
    R, C = (1, len(parameter)) if parameter.dim() == 1 else parameter.shape
    if parameter.dim() == 1 and not part.whole:
        R, C = C, R
    step = R if parameter.dim() == 1 else max(ROW_BLOCK, PIECE_FLOATS // C // ROW_BLOCK * ROW_BLOCK)

    def address(tensor: Tensor | None, floats: int) -> int:
        return 0 if tensor is None else tensor.data_ptr() + tensor.element_size() * floats

    return [
        (
            kind, head, r, min(step, R - r), C, address(parameter, r * C),
            address(state.per_row, 0 if part.whole else r), address(state.first, r * C), address(state.second, r * C),
            part.rule, int(part.whole),
        )
        for r in range(0, R, step)
    ]  # fmt: skip


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


def _both_adding_up(weight: Gradient, bias: Gradient | None) -> tuple[Dense, Dense | None]:
    return _adding_up(weight), None if bias is None else _adding_up(bias)


def _adding_up(part: Gradient) -> Dense:
    is_frozen = part.gradient is None
    return Dense(part.parameter, RowState(), FROZEN if is_frozen else 0, False, part.gradient)

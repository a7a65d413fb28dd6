"""A whole training step of heads over a hidden layer over windows of words, in one kernel call.

rows of a table -> mean of a word type -> window -> dropout -> hidden layer and ReLU -> heads and losses -> all
gradients -> optimizers: what the encoder, `multitask_loss`, autograd and the optimizer's step do one after another. For
rules that move a dense parameter's rows or elements each by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..bags.rules import SGD, RowRule, RowState
from ..heads.layout import HeadLayout
from .model import EVERYTHING, FROZEN, NOTHING, Moves, Trained, rows_left_alone
from .room import BagStep, check_targets, parameters_obstacle, step_kernels

MOST_HEAD_FLOATS = 1 << 20  # of a head's weight; a wider one is computed in chunks, by the op of heads alone
PIECE_FLOATS = 8192  # of a dense parameter that are summed and moved at a time
ROW_BLOCK = 8  # the rows of a piece are whole blocks of a matrix kernel

HIDDEN_WEIGHT, HIDDEN_BIAS, HEAD_WEIGHT, HEAD_BIAS = range(4)
HIDDEN, HEAD = (HIDDEN_WEIGHT, HIDDEN_BIAS), (HEAD_WEIGHT, HEAD_BIAS)
NO_HEAD = -1

# How far back from the losses a step has gradients to make: to the logits alone where no more than heads moves, and
# with TO_NOTHING there are no losses, but only features.
TO_NOTHING, TO_HEADS, TO_HIDDEN, TO_TABLE = range(4)

# A piece of a dense parameter: rows whose gradient is computed, summed and applied at once. Addresses are of float32.
PIECE = np.dtype(
    [
        ("of", np.int64),  # HIDDEN_WEIGHT, ...
        ("head", np.int64),  # its place in the layout
        ("begin", np.int64),  # the first row
        ("rows", np.int64),
        ("columns", np.int64),
        ("parameter", np.int64),  # the address of its first row
        ("per_row", np.int64),  # of the state's parts; 0 = the rule keeps none
        ("first", np.int64),
        ("second", np.int64),
        ("rule", np.int64),
        ("whole", np.int64),  # 1: all rows are one to the rule, and count their steps together
    ]
)


class Dense(NamedTuple):
    """A dense parameter, what its rule remembers of it and which of a step's rules it is.

    `whole`: the rule takes it as one row; else its rows are what the first axis counts. FROZEN for a rule leaves it.
    `moved`: what the rule moves, where that is not the parameter.
    """

    parameter: Tensor
    state: RowState
    rule: int
    whole: bool
    moved: Tensor | None = None


class Gradient(NamedTuple):
    """A dense parameter and its gradient, of the same shape; None where it is frozen."""

    parameter: Tensor
    gradient: Tensor | None


class BatchGradients(NamedTuple):
    """Losses and hits (K,), and of R rows of the table their numbers (R,) int64, which rise, and gradients (R, D)."""

    losses: Tensor
    correct: Tensor
    rows: Tensor
    d_rows: Tensor


class Moving(NamedTuple):
    """What a step moves: what is not frozen of the sides that move.

    pieces are of dense parameters; counts the addresses where the steps of those that are one row are counted; reach is
    how far back from the losses there are gradients to make.
    """

    pieces: np.ndarray
    counts: np.ndarray
    reach: int
    parameters: list[Tensor]


class WindowModel:
    """A table (V, D), rows of word types, a hidden layer (H, W D) and K linear heads, as `window_step` trains them.

    rows_of_type: (T + 1, M) int32, the rows whose mean is a type, -1 = none; the last, of no type, has none. None: type
    t is row t. frozen_rows (V,) bool says which rows of the table stay as they are. hidden and heads are (weight, bias
    or None). Parameters and states have to stay where they are. What is frozen costs a step no gradient. gathers_rows:
    the gradients of the table's rows are written down, and no row moves (`gradient_model`).

    Raises ValueError for heads whose shapes do not fit the layout, and for another number of frozen rows.
    """

    def __init__(
        self,
        table: Trained,
        rows_of_type: Tensor | None,
        hidden: tuple[Dense, Dense | None],
        heads: Sequence[tuple[Dense, Dense | None]],
        layout: HeadLayout,
        frozen_rows: Tensor | None = None,
        *,
        gathers_rows: bool = False,
    ) -> None:
        H = hidden[0].parameter.shape[0]
        for name, spec, (weight, _) in zip(layout.names, layout.heads, heads, strict=True):
            if weight.parameter.shape != (spec.size, H):
                raise ValueError(
                    f"the weight of {name} is {tuple(weight.parameter.shape)}, not ({spec.size}, {H})"
                )
        self.table, self.hidden, self.heads, self.layout = table, hidden, tuple(heads), layout
        V = len(table.parameter)
        self.rows_of_type = _rows_of_type(rows_of_type, V)
        self.frozen_rows = rows_left_alone(frozen_rows, V)
        pairs = [(HIDDEN, NO_HEAD, hidden), *((HEAD, k, head) for k, head in enumerate(heads))]
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
        self.memory: Any = None  # of the backend that steps it

    def moving(self, moves: Moves) -> Moving:
        """What such a step moves."""
        return self._moving[moves]

    @property
    def width(self) -> int:
        """W, words of a window."""
        return int(self.hidden[0].parameter.shape[1] // self.table.parameter.shape[1])


def _moving(
    table: Trained, dense: Sequence[tuple[int, int, Dense]], moves: Moves, gathers_rows: bool
) -> Moving:
    """What moves of a table and of dense parameters (kind, head, parameter), none of which is frozen."""
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
    """How far back gradients are wanted: to the table, the hidden layer or the heads, as the first that moves is."""
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
    """The pieces of a parameter (R, C), or (C,) where it is a bias."""
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


class Dropout(NamedTuple):
    """Which of a batch's numbers are dropped: a function of the key, and of a number's place in the batch."""

    probability: float
    key: int  # 0 <= key < 2^63


def window_step_obstacle(
    table: Tensor, others: Sequence[Tensor], layout_sizes: Sequence[int], backend: str = "auto"
) -> str | None:
    """Why `window_step` cannot train a table, a hidden layer and heads (weights and biases: others), or None.

    Raises as `choose_embedding_backend` does.
    """
    obstacle = parameters_obstacle(table, others, backend)
    if obstacle is not None:
        return obstacle
    H = others[0].shape[0]
    if max(layout_sizes) * H > MOST_HEAD_FLOATS:
        return (
            f"a head has {max(layout_sizes):,} outputs; its kernel is for {MOST_HEAD_FLOATS // H:,} at most"
        )
    return None


def window_step(
    model: WindowModel,
    rules: Sequence[RowRule],
    decays: Sequence[float],
    types: Tensor,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropout: Dropout,
    moves: Moves = EVERYTHING,
) -> BagStep:
    """Train table, hidden layer and heads, or one side of them, on N windows, in place; `window_step_obstacle` is the
    caller's to ask.

    types (N, W) int32 hold word types, -1 = none; rules are those that the model's parameters name, at the rates of
    this step, and decays (len(rules),) what each multiplies dense parameters with before it moves them. targets and
    task_weights (K,) are as in `multitask_loss`. A head without a valid target or with weight 0 has gradient 0.

    Raises ValueError, with nothing moved, for types and targets that do not fit the model, and for a class target that
    is neither in [0, C) nor ignore_index.
    """
    if model.gathers_rows:
        raise ValueError("a gradient_model is not stepped: call window_gradients")
    return _step(model, rules, decays, types, targets, task_weights, dropout, moves)


def _step(
    model: WindowModel,
    rules: Sequence[RowRule],
    decays: Sequence[float],
    types: Tensor,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropout: Dropout,
    moves: Moves,
) -> BagStep:
    _check_types(model, types)
    check_targets(model.layout, targets, task_weights, len(types), "windows")
    kernels = _kernels(model)
    found = BagStep(*kernels.step(model, rules, decays, types, targets, task_weights, dropout, moves))
    increment_version(model.moving(moves).parameters)
    return found


def gradient_model(
    table: Trained,
    rows_of_type: Tensor | None,
    hidden: tuple[Gradient, Gradient | None],
    heads: Sequence[tuple[Gradient, Gradient | None]],
    layout: HeadLayout,
    frozen_rows: Tensor | None = None,
) -> WindowModel:
    """A model for `window_gradients`; the arguments are those of `WindowModel`, with a gradient for each parameter."""
    pairs = [
        (_adding_up(weight), None if bias is None else _adding_up(bias)) for weight, bias in (hidden, *heads)
    ]
    return WindowModel(table, rows_of_type, pairs[0], pairs[1:], layout, frozen_rows, gathers_rows=True)


def _adding_up(part: Gradient) -> Dense:
    is_frozen = part.gradient is None
    return Dense(part.parameter, RowState(), FROZEN if is_frozen else 0, False, part.gradient)


def window_gradients(
    model: WindowModel,
    types: Tensor,
    targets: Sequence[Tensor],
    task_weights: Tensor,
    dropout: Dropout,
    moves: Moves = EVERYTHING,
) -> BatchGradients:
    """The gradients by which `window_step` would move a `gradient_model`, of the sides that `moves` names.

    Those of dense parameters are added to what stands in the model's gradients. Arguments and errors are those of
    `window_step`; ValueError for a model of another kind, too.
    """
    if not model.gathers_rows:
        raise ValueError("window_gradients is for a gradient_model; window_step moves this one")
    # What such a step moves are gradients: gradient - rate * (more of it).
    found = _step(model, [RowRule(SGD, -1.0)], [1.0], types, targets, task_weights, dropout, moves)
    rows, d_rows = _kernels(model).gathered(model, moves)
    return BatchGradients(found.losses, found.correct, rows, d_rows)


def window_features(model: WindowModel, types: Tensor) -> Tensor:
    """(N, H) what the heads see of windows types (N, W), without dropout, with the parameters as they are now.

    Raises ValueError for types that do not fit the model.
    """
    _check_types(model, types)
    return _kernels(model).features(model, types)


def window_correct(model: WindowModel, types: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """(K,) how many of N targets each head hits on windows types (N, W), as `multitask_loss` counts them; no dropout.

    Raises what `window_step` raises.
    """
    _check_types(model, types)
    check_targets(
        model.layout, targets, torch.ones(len(model.layout), dtype=torch.float32), len(types), "windows"
    )
    return _kernels(model).correct(model, types, targets)


def _check_types(model: WindowModel, types: Tensor) -> None:
    if types.dim() != 2 or types.shape[1] != model.width or types.is_floating_point():
        shape = f"{tuple(types.shape)} of {str(types.dtype).removeprefix('torch.')}"
        raise ValueError(f"inputs must be (N, {model.width}) integer word types, not {shape}")


class WindowKernels(Protocol):
    """What a backend's module `on_<name>/window_step.py` has to offer."""

    def step(
        self,
        model: WindowModel,
        rules: Sequence[RowRule],
        decays: Sequence[float],
        types: Tensor,
        targets: Sequence[Tensor],
        task_weights: Tensor,
        dropout: Dropout,
        moves: Moves,
    ) -> tuple[Tensor, Tensor]:
        """(losses (K,), correct (K,)) as `window_step` returns them, and the parameters moved."""

    def gathered(self, model: WindowModel, moves: Moves) -> tuple[Tensor, Tensor]:
        """(rows, d_rows) of the last step of a gradient_model, as in `BatchGradients`."""

    def features(self, model: WindowModel, types: Tensor) -> Tensor:
        """(N, H) as `window_features` returns them."""

    def correct(self, model: WindowModel, types: Tensor, targets: Sequence[Tensor]) -> Tensor:
        """(K,) as `window_correct` returns them."""


def _kernels(model: WindowModel) -> WindowKernels:
    table = model.table.parameter
    return cast(WindowKernels, step_kernels("window_step", table.device.type, table.dtype))

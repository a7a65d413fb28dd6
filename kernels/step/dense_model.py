"""Dense parameters of a step: linear layers, and heads on the last of them, cut into pieces that a step updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..bags.rules import RowState
from ..heads.layout import HeadLayout
from .model import FROZEN, Moves

PIECE_FLOATS = 8192  # of a dense parameter that are summed and updated at a time
TABLE_FLOATS = 32768  # of a table
ROW_BLOCK = 8  # the rows of a piece are whole blocks of a matrix kernel

LAYER_WEIGHT, HEAD_WEIGHT, TABLE, LAYER_BIAS, HEAD_BIAS, NORM_WEIGHT, NORM_BIAS = range(7)
FIRST_VECTOR = LAYER_BIAS  # from here on they are vectors, whose gradients are sums over tiles of rows
LAYER, NORM, HEAD = (LAYER_WEIGHT, LAYER_BIAS), (NORM_WEIGHT, NORM_BIAS), (HEAD_WEIGHT, HEAD_BIAS)

# A piece of a dense parameter: rows whose gradient is computed, summed and applied at once. Addresses are of float32.
PIECE = np.dtype(
    [
        ("of", np.int64),  # LAYER_WEIGHT, ...
        ("index", np.int64),  # of the layer, or of the head in the layout
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


class Decay(NamedTuple):
    """How a rule decays dense parameters, and the sum of their gradients, if it keeps one as the first of its state.

    Before an update they are multiplied by `factor`, and `added` times them goes into their gradient. Then the sum is
    multiplied by `momentum` and the gradient added; the sum replaces the gradient, or with `nesterov` 1, momentum times
    the sum is added to it. momentum 0: no sum is kept.
    """

    factor: float = 1.0
    added: float = 0.0
    momentum: float = 0.0
    nesterov: float = 0.0


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


Linear = tuple[Dense, Dense | None]  # the weight (C, D) and the bias (C,) of a layer or a head
Pair = tuple[Dense | None, Dense | None]  # the same of what may have neither


class Part(NamedTuple):
    """A dense parameter that is not frozen, and what it is: LAYER_WEIGHT, ..., of which layer or head."""

    of: int
    number: int
    dense: Dense


class DenseMoving(NamedTuple):
    """What a step updates of dense parameters.

    counts: addresses of the step counters of parameters that are treated as one row. layers: those with such a part.
    """

    pieces: np.ndarray
    counts: np.ndarray
    layers: frozenset[int]
    parameters: list[Tensor]


def check_heads(heads: Sequence[Linear], layout: HeadLayout, H: int) -> None:
    """Raise ValueError for heads whose shapes do not fit the layout and H inputs."""
    for name, spec, (weight, _) in zip(layout.names, layout.heads, heads, strict=True):
        if weight.parameter.shape != (spec.size, H):
            raise ValueError(
                f"the weight of {name} is {tuple(weight.parameter.shape)}, not ({spec.size}, {H})"
            )


def parts_of(layers: Sequence[Pair], heads: Sequence[Linear], norms: Sequence[Pair] = ()) -> list[Part]:
    """Return the parameters of layers, of the norms in them, and of heads that are not frozen."""
    return [
        Part(of, number, dense)
        for kinds, pairs in ((LAYER, layers), (NORM, norms), (HEAD, heads))
        for number, pair in enumerate(pairs)
        for of, dense in zip(kinds, pair, strict=True)
        if dense is not None and dense.rule != FROZEN
    ]


def dense_moving(parts: Sequence[Part], moves: Moves) -> DenseMoving:
    """Return what a step updates of these parameters."""
    own = [part for part in parts if (moves.heads if part.of in HEAD else moves.shared)]
    counts = [dense.state.per_row for _, _, dense in own if dense.whole]
    return DenseMoving(
        pieces_of(own),
        np.array([count.data_ptr() for count in counts if count is not None], np.int64),
        frozenset(part.number for part in own if part.of in (*LAYER, *NORM)),
        [_moved(part.dense) for part in own],
    )


def _moved(dense: Dense) -> Tensor:
    return dense.parameter if dense.moved is None else dense.moved


def pieces_of(parts: Sequence[Part]) -> np.ndarray:
    """Return (pieces,) PIECE of these parameters."""
    return np.array([piece for part in parts for piece in _pieces(part)], PIECE)


def _pieces(part: Part) -> list[tuple[int, ...]]:
    """Return the pieces of a parameter (R, C), or (C,) for a vector."""
    of, number, dense = part
    parameter, state = _moved(dense), dense.state
    R, C = (1, len(parameter)) if parameter.dim() == 1 else parameter.shape
    if parameter.dim() == 1 and not dense.whole:
        R, C = C, R
    most = TABLE_FLOATS if of == TABLE else PIECE_FLOATS
    step = R if parameter.dim() == 1 else max(ROW_BLOCK, most // C // ROW_BLOCK * ROW_BLOCK)

    def address(tensor: Tensor | None, floats: int) -> int:
        return 0 if tensor is None else tensor.data_ptr() + tensor.element_size() * floats

    return [
        (
            of, number, r, min(step, R - r), C, address(parameter, r * C),
            address(state.per_row, 0 if dense.whole else r), address(state.first, r * C),
            address(state.second, r * C), dense.rule, int(dense.whole),
        )
        for r in range(0, R, step)
    ]  # fmt: skip

"""A step by gradients that lie in several pieces, such as those of several processes: summed and stepped at once.

A piece has the gradients of all dense parameters one after another, and those of some rows of a table. Every sum is
taken in the order of the pieces, and used where it is made: no summed gradient is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from torch import Tensor
from torch.autograd.graph import increment_version

from ..bags.rules import RowRule
from .common import step_kernels
from .dense_model import LAYER_WEIGHT, Decay, Dense, Part, pieces_of
from .model import FROZEN, Trained

LINE_FLOATS = 16  # a dense gradient begins at a multiple of so many float32


class Piece(NamedTuple):
    """Gradients of one origin: dense (P,) float32, rows (n,) int32 ascending, and their gradients d_rows (n, D)."""

    dense: np.ndarray
    rows: np.ndarray
    d_rows: np.ndarray


class Share(NamedTuple):
    """Which of `total` shares of the rows a step moves; the others are moved elsewhere."""

    number: int = 0
    total: int = 1


EVERY_ROW = Share()


class SummedModel:
    """A table (V, D) and dense parameters, as `summed_step` moves them.

    table_steps: (), float32, the number of steps the table has taken; a step counts itself. None: not counted.
    starts: where the gradient of each dense parameter begins in a piece's `dense`, which has `n_floats`.

    Parameters and states must not move in memory.
    """

    def __init__(self, table: Trained, dense: Sequence[Dense], table_steps: Tensor | None) -> None:
        self.table, self.dense, self.table_steps = table, tuple(dense), table_steps
        self.starts, self.n_floats = places_of([part.parameter for part in dense])
        self._moving: dict[bytes, Summed] = {}
        self.memory: Any = None  # belongs to the backend

    def moving(self, present: bytes) -> Summed:
        """Return what a step moves; present: for the table and each dense parameter, whether it has a gradient."""
        if present not in self._moving:
            self._moving[present] = self._found_moving(present)
        return self._moving[present]

    def _found_moving(self, present: bytes) -> Summed:
        own = [n for n, has_gradient in enumerate(present[1:]) if has_gradient]
        pieces = pieces_of([Part(LAYER_WEIGHT, n, self.dense[n]) for n in own])
        counts = [self.dense[n].state.per_row for n in own if self.dense[n].whole]
        of_table = [self.table.parameter] if present[0] and self.table.rule != FROZEN else []
        return Summed(
            pieces,
            np.array([self.starts[p["index"]] + p["begin"] * p["columns"] for p in pieces], np.int64),
            np.array([count.data_ptr() for count in counts if count is not None], np.int64),
            bool(of_table),
            [*of_table, *(self.dense[n].parameter for n in own)],
        )


class Summed(NamedTuple):
    """What a step moves: pieces of dense parameters, where their gradients begin, and counters of their steps."""

    pieces: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    moves_table: bool
    parameters: list[Tensor]


def places_of(parameters: Sequence[Tensor]) -> tuple[list[int], int]:
    """Return where the gradient of each parameter begins among those of all, in float32, and how many there are."""
    starts, n = [], 0
    for parameter in parameters:
        starts.append(n)
        n += -(-parameter.numel() // LINE_FLOATS) * LINE_FLOATS
    return starts, n


def summed_step(
    model: SummedModel,
    rules: Sequence[RowRule],
    decays: Sequence[Decay],
    pieces: Sequence[Piece],
    present: bytes,
    share: Share = EVERY_ROW,
    room: np.ndarray | None = None,
) -> np.ndarray:
    """Move the table's rows and dense parameters by the sums of their gradients over all pieces, in place.

    rules: those that the model's parameters refer to, with the rates of this step. decays (len(rules),): how each
    decays dense parameters. present: a byte for the table and one for each dense parameter, 0 if it has no gradient in
    any piece, and is not moved. share: of the rows; `take_rows` then brings those of the other shares. Returns the new
    values of the rows of this share (n, D), which the next step overwrites; none if it moves every row. They lie at the
    beginning of `room`, float32, if they fit there.

    Raises ValueError for pieces whose arrays do not fit the model.
    """
    D = model.table.parameter.shape[1]
    for piece in pieces:
        if piece.dense.shape != (model.n_floats,) or piece.d_rows.shape != (len(piece.rows), D):
            raise ValueError(
                f"a piece has gradients {piece.dense.shape} and {piece.d_rows.shape} of {len(piece.rows)} rows, but "
                f"they must be ({model.n_floats},) and ({len(piece.rows)}, {D})"
            )
        if [each.dtype for each in piece] != [np.float32, np.int32, np.float32]:
            raise ValueError("gradients of a piece must be float32, and its rows int32")
    moving = model.moving(present)
    moved = _kernels(model).step(model, moving, rules, decays, pieces, share, room)
    increment_version(moving.parameters)
    return moved


def shares_of_rows(model: SummedModel) -> list[int]:
    """Return how many rows each share had in the model's last step."""
    return _kernels(model).sizes(model)


def take_rows(model: SummedModel, moved: Sequence[np.ndarray], share: Share) -> None:
    """Copy what `summed_step` has returned for each share, in their order, into the table; not the own one.

    Raises ValueError for arrays of other sizes than the shares of the last step.
    """
    if [each.shape for each in moved] != [(n, model.table.parameter.shape[1]) for n in shares_of_rows(model)]:
        raise ValueError("rows that were moved elsewhere do not fit the shares of the last step")
    _kernels(model).take(model, moved, share)
    increment_version([model.table.parameter])


def _kernels(model: SummedModel) -> SummedKernels:
    table = model.table.parameter
    return cast(SummedKernels, step_kernels("summed_step", table.device.type, table.dtype))


class SummedKernels(Protocol):
    """The interface of a backend's module `on_<name>/summed_step.py`."""

    def step(
        self,
        model: SummedModel,
        moving: Summed,
        rules: Sequence[RowRule],
        decays: Sequence[Decay],
        pieces: Sequence[Piece],
        share: Share,
        room: np.ndarray | None,
    ) -> np.ndarray:
        """Move and return what `summed_step` does."""

    def sizes(self, model: SummedModel) -> list[int]:
        """Return what `shares_of_rows` does."""

    def take(self, model: SummedModel, messages: Sequence[np.ndarray], share: Share) -> None:
        """Do what `take_rows` does."""

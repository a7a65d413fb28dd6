"""What a single-kernel training step updates: a table and the heads on it, and where they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from ..bags.rules import RowState
from ..heads.layout import HeadLayout

FROZEN = -1  # in place of a rule: the parameter is not changed, and nothing is computed for its gradient


class Moves(NamedTuple):
    """Which sides of a model a step updates; no gradient is computed for the others. Neither side: only the losses."""

    shared: bool = True  # the table, and what lies between it and the heads
    heads: bool = True


EVERYTHING, NOTHING = Moves(), Moves(shared=False, heads=False)


class Trained(NamedTuple):
    """A parameter whose first axis counts rows, its rule's state, and the index of its rule in a step."""

    parameter: Tensor
    state: RowState
    rule: int


class TrainedHead(NamedTuple):
    """A linear head's weight (C, D) and its bias (C,), if it has one."""

    weight: Trained
    bias: Trained | None


class BagModel:
    """A table (V, D) and K linear heads on it, as `bag_step` trains them: where they and their states lie.

    Parameters and states must not move in memory while the model is in use. Parameters with the rule FROZEN are not
    changed, nor are the rows of the table marked in frozen_rows (V,) bool. A step computes no gradient for them, except
    for a frozen head when another one is trained.

    Raises ValueError for heads whose shapes do not fit the layout, and if frozen_rows has another length.
    """

    def __init__(
        self,
        table: Trained,
        heads: Sequence[TrainedHead],
        layout: HeadLayout,
        frozen_rows: Tensor | None = None,
    ) -> None:
        V, D = table.parameter.shape
        self.frozen_rows = rows_left_alone(frozen_rows, V)
        if len(heads) != len(layout):
            raise ValueError(f"layout has {len(layout)} heads, not {len(heads)}")
        for name, spec, head in zip(layout.names, layout.heads, heads, strict=True):
            if head.weight.parameter.shape != (spec.size, D):
                shape = tuple(head.weight.parameter.shape)
                raise ValueError(f"the weight of {name} is {shape}, not ({spec.size}, {D})")
        self.table, self.heads, self.layout = table, tuple(heads), layout
        parts = [part for head in heads for part in head]
        held = [part for part in parts if part is not None and part.rule != FROZEN]
        self._of_heads = [part.parameter for part in held]
        self._of_table = [] if table.rule == FROZEN else [table.parameter]
        # (K, 2, 2): addresses of the parameter and of its state, for weight and bias; 0 = there is none.
        self.addresses = np.array([_addresses(part) for part in parts], np.int64).reshape(len(heads), 2, 2)
        # (1 + 2 K,): rules of the table, then of every head's weight and bias. Frozen parameters get an arbitrary one.
        ruled = [table.rule, *(FROZEN if part is None else part.rule for part in parts)]
        self._trained = np.array([rule != FROZEN for rule in ruled])
        self.rules = np.array([0 if rule == FROZEN else rule for rule in ruled])
        self._moved: dict[Moves, np.ndarray] = {}
        self.memory: Any = None  # belongs to the backend

    def moved(self, moves: Moves) -> np.ndarray:
        """Return (1 + 2 K,) uint8: 1 where such a step changes the table, a head's weight or a head's bias."""
        found = self._moved.get(moves)
        if found is None:
            sides = np.full(len(self._trained), moves.heads)
            sides[0] = moves.shared
            found = self._moved[moves] = (self._trained & sides).astype(np.uint8)
        return found

    def parameters(self, moves: Moves) -> list[Tensor]:
        """Return the parameters that such a step changes."""
        return self._of_table * moves.shared + self._of_heads * moves.heads


def rows_left_alone(frozen_rows: Tensor | None, V: int) -> np.ndarray:
    """Return (V,) uint8, 1 where a row of a table is frozen; (0,) if none is.

    Raises ValueError if the length is not V.
    """
    if frozen_rows is None:
        return np.zeros(0, np.uint8)
    if frozen_rows.shape != (V,):
        raise ValueError(f"frozen_rows have shape {tuple(frozen_rows.shape)}, but the table has {V:,} rows")
    return cast(np.ndarray, frozen_rows.numpy().astype(np.uint8))


def _addresses(part: Trained | None) -> tuple[int, int]:
    """Addresses of a parameter and of its state, 0 if there is none."""
    if part is None:
        return 0, 0
    return part.parameter.data_ptr(), 0 if part.state.per_row is None else part.state.per_row.data_ptr()

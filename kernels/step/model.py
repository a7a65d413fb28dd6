"""What a training step in one kernel call moves: a table and the heads on it, and where they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..bags.rules import RowState
from ..heads.layout import HeadLayout


class Moves(NamedTuple):
    """Which sides of a model a step moves; of the others it computes no gradient. Neither: its losses alone."""

    shared: bool = True  # the table, and what lies between it and the heads
    heads: bool = True


EVERYTHING, NOTHING = Moves(), Moves(shared=False, heads=False)


class Trained(NamedTuple):
    """A parameter whose first axis counts rows, what its rule remembers of them, and which of a step's rules it is."""

    parameter: Tensor
    state: RowState
    rule: int


class TrainedHead(NamedTuple):
    """A linear head's weight (C, D) and its bias (C,), if it has one."""

    weight: Trained
    bias: Trained | None


class BagModel:
    """A table (V, D) and K linear heads on it, as `bag_step` trains them: where they and their states lie.

    Parameters and states have to stay where they are for as long as it is used.

    Raises ValueError for heads whose shapes do not fit the layout.
    """

    def __init__(self, table: Trained, heads: Sequence[TrainedHead], layout: HeadLayout) -> None:
        D = table.parameter.shape[1]
        if len(heads) != len(layout):
            raise ValueError(f"layout has {len(layout)} heads, not {len(heads)}")
        for name, spec, head in zip(layout.names, layout.heads, heads, strict=True):
            if head.weight.parameter.shape != (spec.size, D):
                shape = tuple(head.weight.parameter.shape)
                raise ValueError(f"the weight of {name} is {shape}, not ({spec.size}, {D})")
        self.table, self.heads, self.layout = table, tuple(heads), layout
        parts = [part for head in heads for part in head]
        self._of_heads = [part.parameter for part in parts if part is not None]
        # (K, 2, 2): of weight and bias the address, and that of the state; 0 = there is none.
        self.addresses = np.array([_addresses(part) for part in parts], np.int64).reshape(len(heads), 2, 2)
        # (1 + 2 K,): of the table, then of every head's weight and bias.
        self.rules = np.array([table.rule, *(table.rule if part is None else part.rule for part in parts)])

    def moved(self, moves: Moves) -> list[Tensor]:
        """The parameters that such a step changes."""
        return [self.table.parameter] * moves.shared + self._of_heads * moves.heads


def _addresses(part: Trained | None) -> tuple[int, int]:
    """Of a parameter and of its state, 0 where there is none."""
    if part is None:
        return 0, 0
    return part.parameter.data_ptr(), 0 if part.state.per_row is None else part.state.per_row.data_ptr()

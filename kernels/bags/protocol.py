"""What a backend of bags has to offer: its module `on_<name>/bags.py`, and `reference.py`, are of this form."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .batch import Bags
from .rules import RowRule, RowState


class BagKernels(Protocol):
    """Functions over tables (V, D) and bags; everything lies on one device."""

    POOLS_TYPES: (
        bool  # whether ids may stand for word types, and every id be a bag: `Bags.types`, no `Bags.starts`
    )

    def first_outside(self, ids: Tensor, V: int) -> int:
        """The position of the first id that is neither NONE nor in [0, V); -1 if there is none."""

    def unique_ids(self, ids: Tensor, V: int) -> tuple[Tensor, Tensor]:
        """(unique (U,) ascending, inverse (total,)): unique[inverse] are the ids; NONE stays NONE."""

    def pool(self, table: Tensor, bags: Bags) -> Tensor:
        """(B, D) the sum of every bag's rows, times its scale."""

    def pool_means(self, table: Tensor, bags: Bags) -> tuple[Tensor, Tensor]:
        """(B, D) the mean of every bag's rows, and its scales (B,); those of the bags are not read.

        Of types, those count that there are, rows or none; where each has one row, those that have it.
        """

    def row_gradient(self, gradient: Tensor, bags: Bags, V: int) -> tuple[Tensor, Tensor]:
        """(rows (U,) int64 ascending, their gradients (U, D)) from the gradient of the bags (B, D)."""

    def dense_gradient(self, gradient: Tensor, bags: Bags, V: int) -> Tensor:
        """(V, D) the gradient of the whole table from that of the bags (B, D)."""

    def is_ascending(self, rows: Tensor) -> bool:
        """Whether the rows (U,) ascend, and so each is there once."""

    def sum_repeated(self, rows: Tensor, gradient: Tensor, V: int) -> tuple[Tensor, Tensor]:
        """(rows ascending, gradients) with the gradients of equal rows added up; rows (M,), gradient (M, D)."""

    def update_rows(
        self, rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState
    ) -> None:
        """One step of the rows (U,), each there once, by their gradients (U, D)."""

    def update_all_rows(self, rule: RowRule, table: Tensor, gradient: Tensor, state: RowState) -> None:
        """One step of every row of a table by its gradient (V, D)."""

    def update_from_bags(
        self, rule: RowRule, table: Tensor, bags: Bags, gradient: Tensor, state: RowState
    ) -> None:
        """One step of every row in the bags by the gradient of the bags (B, D): row_gradient and update_rows in one."""

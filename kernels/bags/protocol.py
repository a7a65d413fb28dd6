"""The interface of a backend of bags: implemented by its module `on_<name>/bags.py`, and by `reference.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .batch import Bags
from .rules import RowRule, RowState


class BagKernels(Protocol):
    """Functions over tables (V, D) and bags; everything is on one device."""

    POOLS_TYPES: bool  # whether ids may be word types (`Bags.types`), and every id a bag (no `Bags.starts`)

    def first_outside(self, ids: Tensor, V: int) -> int:
        """Return the position of the first id that is neither NONE nor in [0, V); -1 if there is none."""

    def unique_ids(self, ids: Tensor, V: int) -> tuple[Tensor, Tensor]:
        """Return (unique (U,) ascending, inverse (total,)): unique[inverse] are the ids; NONE stays NONE."""

    def pool(self, table: Tensor, bags: Bags) -> Tensor:
        """Return the sum of every bag's rows times its scale, (B, D)."""

    def pool_means(self, table: Tensor, bags: Bags) -> tuple[Tensor, Tensor]:
        """Return the mean of every bag's rows (B, D) and its scales (B,); does not read the scales of the bags.

        With types of several rows, every existing type counts in the mean, even one without rows; with one row per
        type, only the types that have their row.
        """

    def row_gradient(self, gradient: Tensor, bags: Bags, V: int) -> tuple[Tensor, Tensor]:
        """Return (rows (U,) int64 ascending, their gradients (U, D)) from the gradient of the bags (B, D)."""

    def dense_gradient(self, gradient: Tensor, bags: Bags, V: int) -> Tensor:
        """Return the gradient of the whole table (V, D) from that of the bags (B, D)."""

    def is_ascending(self, rows: Tensor) -> bool:
        """Whether the rows (U,) strictly ascend, so that each appears once."""

    def sum_repeated(self, rows: Tensor, gradient: Tensor, V: int) -> tuple[Tensor, Tensor]:
        """Sum the gradients of equal rows: rows (M,), gradient (M, D) -> (rows ascending, gradients)."""

    def sum_pieces(self, pieces: Sequence[tuple[Tensor, Tensor]], V: int) -> tuple[Tensor, Tensor]:
        """Sum the gradients of equal rows of several pieces, as `sum_pieces` in op.py does."""

    def update_rows(
        self, rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState
    ) -> None:
        """Update the rows (U,), all distinct, by their gradients (U, D), in one step."""

    def update_all_rows(self, rule: RowRule, table: Tensor, gradient: Tensor, state: RowState) -> None:
        """Update every row of a table by its gradient (V, D), in one step."""

    def update_from_bags(
        self,
        rule: RowRule,
        table: Tensor,
        bags: Bags,
        gradient: Tensor,
        state: RowState,
        steps: Tensor | None = None,
    ) -> None:
        """Update every row in the bags by the gradient of the bags (B, D): row_gradient and update_rows in one.

        steps: () float32, a count to which 1 is added before the rule reads it, also where no row is updated.
        """

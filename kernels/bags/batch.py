"""A batch of bags: row ids of a table, one bag after another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NONE = -1  # the id that stands for no row


class TypeRows(NamedTuple):
    """The rows of every word type; a type's vector is their mean. The ids of bags are then types."""

    rows: Tensor  # (T, M) int32 in [0, V), or NONE
    counts: Tensor  # (T,) int32: how many of them are not NONE


class Order(NamedTuple):
    """The n positions of a batch, sorted by row.

    With types, an id takes one position for each of the M rows of a type.
    """

    keys: Tensor  # (n,) int32 ascending: the row, V for none
    positions: Tensor  # (n,) integers: where each was before sorting; unset for a prepared batch
    bags: Tensor  # (n,) int32, -1 for none
    weights: Tensor | None  # (n,) float32, the factor of a bag's gradient for the row; None: 1


class Bags(NamedTuple):
    """B bags of rows of a table (V, D), in the form that the kernels take: all contiguous, on one device.

    types, order, and starts of None are only for backends with POOLS_TYPES.
    """

    ids: Tensor  # (total,) int32 in [0, V), or NONE; with types, in [0, T)
    starts: Tensor | None  # (B + 1,) int64: bag b is ids[starts[b]:starts[b + 1]]; None: every id is a bag
    scales: Tensor | None  # (B,) float32, the factor of the sum of a bag's rows; None: 1
    types: TypeRows | None = None  # an id stands for the mean of its rows
    order: Order | None = None  # set if the positions are already sorted

    @property
    def bounds(self) -> Tensor:
        """The starts, for code that needs them."""
        assert self.starts is not None, "this backend requires starts"
        return self.starts

    def without(self, left_out: Tensor) -> Bags:
        """Return the same bags, with the same scales, but none of the rows that are True in left_out (V,).

        No size depends on data: a device need not be waited for, and a CUDA graph can capture it.
        """
        V = len(left_out)

        def kept(rows: Tensor, none: int) -> Tensor:
            # What lies outside the table stands for no row on a GPU, and may become NONE.
            return torch.where(left_out[rows.clamp(0, V - 1).long()], none, rows)

        if self.order is not None:
            # Equal keys stay side by side, which is all that an update needs of their order.
            return self._replace(order=self.order._replace(keys=kept(self.order.keys, V)))
        if self.types is not None:
            return self._replace(types=self.types._replace(rows=kept(self.types.rows, NONE)))
        return self._replace(ids=kept(self.ids, NONE))


class DeviceBags(NamedTuple):
    """A batch of B bags whose positions are sorted by row: a step on it pools, sums pieces and updates rows.

    `block` holds everything that depends on the batch; `bags` are views of it. Two batches of one table with equal
    numbers of ids and bags have blocks of the same layout: `copy_from` copies one into the other, as the input of a
    CUDA graph requires.
    """

    block: Tensor  # (bytes,) uint8
    bags: Bags
    n_rows: int  # of the tables that it fits

    def copy_from(self, other: DeviceBags) -> None:
        """Take over another batch, in one copy. Raises ValueError if its layout differs."""
        mine, theirs = (
            [None if t is None else t.shape for t in (*bags[:3], *(bags.order or ()))]
            for bags in (self.bags, other.bags)
        )
        if mine != theirs or self.n_rows != other.n_rows:
            raise ValueError(
                "the batches differ in ids, bags or rows; pad them with ids after the last bag and with empty bags"
            )
        self.block.copy_(other.block)


def type_rows(rows: Tensor) -> TypeRows:
    """Make TypeRows from rows (T, M) int32, NONE where a type has fewer."""
    return TypeRows(rows.contiguous(), (rows != NONE).sum(1, dtype=torch.int32))

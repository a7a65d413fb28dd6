"""A batch of bags: ids of rows of a table, one bag after another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NONE = -1  # the id of no row


class TypeRows(NamedTuple):
    """The rows of every word type, whose mean is its vector: ids of bags are then types."""

    rows: Tensor  # (T, M) int32 in [0, V), or NONE
    counts: Tensor  # (T,) int32: how many of them are rows


class Order(NamedTuple):
    """n positions of a batch, those of one row side by side; M rows of a type are as many positions."""

    keys: Tensor  # (n,) int32 ascending: the row, V for none
    positions: Tensor  # (n,) integers: where each stood; not of a batch that was prepared
    bags: Tensor  # (n,) int32, -1 for none
    weights: Tensor | None  # (n,) float32, what a bag's gradient counts for the row; None: 1


class Bags(NamedTuple):
    """B bags of rows of a table (V, D), as the kernels take them: all contiguous, on one device.

    The last ones, and starts of None, are for backends that say POOLS_TYPES.
    """

    ids: Tensor  # (total,) int32 in [0, V), or NONE; with types in [0, T)
    starts: Tensor | None  # (B + 1,) int64: bag b is ids[starts[b]:starts[b + 1]]; None: every id is a bag
    scales: Tensor | None  # (B,) float32, what the sum of a bag's rows is multiplied by; None: by 1
    types: TypeRows | None = None  # an id stands for the mean of its rows
    order: Order | None = None  # where somebody has sorted the positions before

    @property
    def bounds(self) -> Tensor:
        """The starts, for who needs them."""
        assert self.starts is not None, "this backend takes no bags without starts"
        return self.starts


class DeviceBags(NamedTuple):
    """A batch of B bags whose positions are sorted by row: a step on it pools, sums pieces and steps rows.

    `block` holds all that depends on the batch, `bags` are views of it. Two batches of as many ids and bags, of one
    table, have blocks of one form: `copy_from` moves one into the other, as a CUDA graph's input needs it.
    """

    block: Tensor  # (bytes,) uint8
    bags: Bags
    n_rows: int  # of the tables that it fits

    def copy_from(self, other: DeviceBags) -> None:
        """Become another batch, in one copy. Raises ValueError for one of another form."""
        mine, theirs = (
            [None if t is None else t.shape for t in (*bags[:3], *(bags.order or ()))]
            for bags in (self.bags, other.bags)
        )
        if mine != theirs or self.n_rows != other.n_rows:
            raise ValueError(
                "the batches differ in ids, bags or rows; ids past the last bag and empty bags make them alike"
            )
        self.block.copy_(other.block)


def type_rows(rows: Tensor) -> TypeRows:
    """Of rows (T, M) int32, NONE where a type has fewer."""
    return TypeRows(rows.contiguous(), (rows != NONE).sum(1, dtype=torch.int32))

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


class Bags(NamedTuple):
    """B bags of rows of a table (V, D), as the kernels take them: all contiguous, on one device.

    The last two are for backends that say POOLS_TYPES.
    """

    ids: Tensor  # (total,) int32 in [0, V), or NONE; with types in [0, T)
    starts: Tensor | None  # (B + 1,) int64: bag b is ids[starts[b]:starts[b + 1]]; None: every id is a bag
    scales: Tensor | None  # (B,) float32, what the sum of a bag's rows is multiplied by; None: by 1
    types: TypeRows | None = None  # an id stands for the mean of its rows


def type_rows(rows: Tensor) -> TypeRows:
    """Of rows (T, M) int32, NONE where a type has fewer."""
    return TypeRows(rows.contiguous(), (rows != NONE).sum(1, dtype=torch.int32))

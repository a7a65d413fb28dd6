"""A batch of bags: ids of rows of a table, one bag after another."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NONE = -1  # the id of no row


class Bags(NamedTuple):
    """B bags of rows of a table (V, D), as the kernels take them: all contiguous, on one device."""

    ids: Tensor  # (total,) int32 in [0, V), or NONE
    starts: Tensor  # (B + 1,) int64: bag b is ids[starts[b]:starts[b + 1]]
    scales: Tensor | None  # (B,) float32, what the sum of a bag's rows is multiplied by; None: by 1

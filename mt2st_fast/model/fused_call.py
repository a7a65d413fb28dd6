"""What the heads hand to the kernels for one batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mt2st_fast.kernels import HeadLayout


class HeadBatch(NamedTuple):
    """The targets of a batch in the form that the kernels read, for the active tasks that have one."""

    layout: HeadLayout  # for these K' tasks, with their names
    targets: list[Tensor]  # (N,) or (N, C)
    weights: Tensor  # (K',)
    places: list[int] | None  # their positions among the active tasks; None: they are all of them


class FusedCall(NamedTuple):
    """What the kernels get: features as rows, the parameters of the heads, and the batch."""

    features: Tensor  # (N, D)
    weight: list[Tensor]  # K', each (C, D)
    bias: list[Tensor] | None  # K', each (C,)
    batch: HeadBatch

"""What Triton kernels read about the heads of a layout from memory."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import HeadLayout
from .constants import N_CONSTANTS, N_INTEGERS, constants_of


class HeadTables(NamedTuple):
    """A layout in the form that kernels read."""

    integers: Tensor  # (K, N_INTEGERS) int64, see constants.py
    column_weights: Tensor  # (S,) float32
    head_of_column: Tensor  # (S,) int64


# Never freed: a CUDA graph may read them.
@cache
def head_tables(layout: HeadLayout, device: torch.device) -> HeadTables:
    """Return the tables of `layout` on `device`. The first call copies them there: make it before a graph capture."""
    constants, n = constants_of(layout), N_CONSTANTS.value
    integers = [constants[k * n : k * n + N_INTEGERS.value] for k in range(len(layout))]
    column_weights = [weight for head in layout.heads for weight in head.column_weights]
    head_of_column = [k for k, size in enumerate(layout.sizes) for _ in range(size)]
    # Cached for later calls, so it must not be an inference tensor.
    with torch.inference_mode(False):
        return HeadTables(
            torch.tensor(integers, dtype=torch.int64, device=device),
            torch.tensor(column_weights, dtype=torch.float32, device=device),
            torch.tensor(head_of_column, dtype=torch.int64, device=device),
        )

"""The functions that element functions of heads are written in, here in torch.

Backends compile the same element functions with their own versions of these (`on_numba/elements.py`,
`on_triton/elements.py`). Arithmetic, comparisons of two blocks or of a block and a float, and tuples work as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def where(condition: Tensor, yes: Any, no: Any) -> Tensor:
    """Return `yes` where the condition holds, else `no`; blocks or floats."""
    return torch.where(condition, yes, no)


def absolute(x: Tensor) -> Tensor:
    """|x|."""
    return x.abs()


def exp(x: Tensor) -> Tensor:
    """exp(x); infinite above 88."""
    return x.exp()


def exp_of_negative(x: Tensor) -> Tensor:
    """exp(x) for x <= 0 only, which takes fewer instructions."""
    return x.exp()


def log(x: Tensor) -> Tensor:
    """log(x) for normal x > 0."""
    return x.log()


def log1p_and_reciprocal(u: Tensor) -> tuple[Tensor, Tensor]:
    """(log(1 + u), 1 / (1 + u)) for u in [0, 1]."""
    return u.log1p(), 1.0 / (1.0 + u)

"""What the embedding kernels of all backends agree on: ids, and the rules of row-sparse optimizers.

A rule moves one row w (D,) of a table by its gradient g (D,), and nothing else:

    SGD        w -= lr g
    ADAGRAD    s += mean(g^2);  w -= lr g / (sqrt(s) + eps)            one number s a row
    ADAM       n += 1;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
               w -= lr (m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps)      n counts the row's own steps
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

NONE = -1  # the id of no row

SGD, ADAGRAD, ADAM = range(3)


class RowRule(NamedTuple):
    """A rule with its numbers; those it does not know are not read."""

    kind: int
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-10


class RowState(NamedTuple):
    """What a rule remembers of a table (V, D), in float32; updated in place. SGD remembers nothing."""

    per_row: Tensor | None = None  # (V,) Adagrad's s, Adam's n
    first: Tensor | None = None  # (V, D) Adam's m
    second: Tensor | None = None  # (V, D) Adam's v


RULE_RECORD = np.dtype(
    [
        ("kind", np.int64),
        ("lr", np.float32),
        ("beta1", np.float64),  # 1 - beta2 in float32 would be off in the fifth digit
        ("beta2", np.float64),
        ("eps", np.float32),
    ]
)

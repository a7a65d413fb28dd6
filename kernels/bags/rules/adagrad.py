"""Row-wise Adagrad: s += mean(g^2); w -= lr g / (sqrt(s) + eps), with one number s per row.

Duchi et al. 2011, with the sum taken by row as in Gupta et al. 2014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .record import RowRule, RowRuleKind, RowState

if TYPE_CHECKING:
    import triton.language as tl


def _oracle(rule: RowRule, w: Tensor, g: Tensor, state: RowState) -> tuple[Tensor, RowState]:
    assert state.per_row is not None
    (eps,) = rule.numbers
    sums = state.per_row + g.square().mean(1)
    return w - rule.lr * g / (sums.sqrt() + eps).unsqueeze(1), RowState(sums)


def _numba_row(rule: Any, mean_square: Any, per_row: Any, row: Any) -> Any:
    per_row[row] += mean_square
    return rule["lr"] / (np.sqrt(per_row[row]) + np.float32(rule["numbers"][0])), np.float32(1)


def _triton_row(lr, table_steps, numbers, mean_square, remembered):  # type: ignore[no-untyped-def]
    remembered += mean_square
    return lr / (tl.sqrt(remembered) + numbers[0]), 1.0, remembered


RULE = RowRuleKind(
    "adagrad",
    _oracle,
    numbers={"eps": 1e-10},
    per_row="sum",
    uses_mean_square=True,
    numba_row=_numba_row,
    triton_row=_triton_row,
)

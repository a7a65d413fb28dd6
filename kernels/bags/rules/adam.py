"""Row-wise Adam: moments and bias correction use the number n of a row's own steps, out of the table's t steps.

    n += 1;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
    w -= lr sqrt(t / n) (m / (1 - beta1^n)) / (sqrt(v / (1 - beta2^n)) + eps)

Kingma and Ba 2015, algorithm 1, applied to every row separately, except for sqrt(t / n). Dense Adam sees a gradient
of 0 in the t - n steps without the row: its second moment is n / t of the one here, and the first moment keeps moving
the row in those steps. So for the same gradients it moves a row sqrt(t / n) times as far as the row's own steps alone
would. t / n is capped at 1 / (1 - beta2), as dense Adam remembers no longer than that; it is 1 if t is not counted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .record import RowRule, RowRuleKind, RowState

if TYPE_CHECKING:
    import triton.language as tl


def _oracle(rule: RowRule, w: Tensor, g: Tensor, state: RowState) -> tuple[Tensor, RowState]:
    assert state.per_row is not None
    assert state.first is not None
    assert state.second is not None
    beta1, beta2, eps = rule.numbers
    steps = state.per_row + 1.0
    n = steps.double().unsqueeze(1)
    first = beta1 * state.first + (1.0 - beta1) * g
    second = beta2 * state.second + (1.0 - beta2) * g.square()
    root = (second / (1.0 - beta2**n)).sqrt()
    rarity = (rule.table_steps / n).clamp(1.0, 1.0 / (1.0 - beta2))
    return w - rule.lr * rarity.sqrt() * (first / (1.0 - beta1**n)) / (root + eps), RowState(
        steps, first, second
    )


def _derived(beta1: float, beta2: float, eps: float) -> tuple[float, ...]:
    """Add 1 - beta, which would lose digits in float32, and log(beta), since a GPU computes powers by exp."""
    logs = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
    return beta1, beta2, eps, 1.0 - beta1, 1.0 - beta2, *logs


def _numba_row(rule: Any, mean_square: Any, per_row: Any, row: Any) -> Any:
    beta1, beta2 = rule["numbers"][0], rule["numbers"][1]
    per_row[row] += np.float32(1)
    rarity = np.float64(rule["table_steps"]) / np.float64(per_row[row])
    rarity = min(max(rarity, 1.0), 1.0 / (1.0 - beta2))
    # beta^n by squaring takes a fifth of the time of pow(). In float64: float32 would lose digits if n is small.
    n, power1, power2, square1, square2 = np.int64(per_row[row]), 1.0, 1.0, beta1, beta2
    while n > 0:
        power1 *= square1 if n & 1 else 1.0
        power2 *= square2 if n & 1 else 1.0
        square1, square2, n = square1 * square1, square2 * square2, n >> 1
    step = np.float64(rule["lr"]) * np.sqrt(rarity) / (1.0 - power1)
    return np.float32(step), np.float32(1.0 / np.sqrt(1.0 - power2))


def _numba_move(w: Any, g: Any, first: Any, second: Any, step: Any, scale: Any, numbers: Any) -> Any:
    # Computed as written: if products could be reordered, a kernel from the cache might give other bits than a new one.
    first = first * numbers[0] + g * numbers[3]
    second = second * numbers[1] + (g * g) * numbers[4]
    return w - first * step / (np.sqrt(second) * scale + numbers[2]), first, second


def _triton_row(lr, table_steps, numbers, mean_square, remembered):  # type: ignore[no-untyped-def]
    remembered += 1.0
    rarity = tl.minimum(tl.maximum(table_steps / remembered, 1.0), 1.0 / numbers[4])
    # beta^n is close to 1 for small n.
    n = remembered.to(tl.float64)
    step = lr * tl.sqrt(rarity) / (1.0 - tl.exp(n * numbers[5])).to(tl.float32)
    return step, 1.0 / tl.sqrt((1.0 - tl.exp(n * numbers[6])).to(tl.float32)), remembered


def _triton_move(w, g, first, second, step, scale, numbers):  # type: ignore[no-untyped-def]
    first = numbers[0] * first + numbers[3] * g
    second = numbers[1] * second + numbers[4] * g * g
    return w - step * first / (tl.sqrt(second) * scale + numbers[2]), first, second


RULE = RowRuleKind(
    "adam",
    _oracle,
    numbers={"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    per_row="steps",
    tables=("exp_avg", "exp_avg_sq"),
    uses_table_steps=True,
    numba_row=_numba_row,
    numba_move=_numba_move,
    triton_row=_triton_row,
    triton_move=_triton_move,
    derived=_derived,
)

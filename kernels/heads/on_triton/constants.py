"""A layout as compile-time constants of kernels: a head known at compile time needs neither a table nor a branch."""

from __future__ import annotations

from functools import cache

import triton.language as tl

from ..kind import MAX_NUMBERS, Kind
from ..layout import HeadLayout

# Positions in a head's constants.
OFFSET: tl.constexpr = tl.constexpr(0)
SIZE: tl.constexpr = tl.constexpr(1)
KIND: tl.constexpr = tl.constexpr(2)
IGNORE: tl.constexpr = tl.constexpr(3)
SMOOTHING: tl.constexpr = tl.constexpr(4)
WEIGHT_SUM: tl.constexpr = tl.constexpr(5)
WEIGHTED: tl.constexpr = tl.constexpr(6)  # whether any column's weight differs from 1
# Row of the class targets, or first column of the float targets, when packed side by side.
TARGET: tl.constexpr = tl.constexpr(7)
NUMBERS: tl.constexpr = tl.constexpr(8)  # the first of MAX_NUMBERS numbers of the head's options
N_CONSTANTS: tl.constexpr = tl.constexpr(8 + MAX_NUMBERS)


@cache
def constants_of(layout: HeadLayout) -> tuple[int | float, ...]:
    """Return the constants of all heads, flattened to (K * N_CONSTANTS,): a kernel cannot index nested tuples."""
    found: list[int | float] = []
    n_classes = n_floats = 0
    for first, _, head in layout:
        softmax = head.kind is Kind.SOFTMAX
        ignore_index, smoothing = (head.ignore_index, head.label_smoothing) if softmax else (0, 0.0)
        target = n_classes if head.kind.takes_classes else n_floats
        n_classes += head.kind.takes_classes
        n_floats += 0 if head.kind.takes_classes else head.size
        weights, numbers = head.column_weights, head.options.numbers
        weighted = int(any(weight != 1.0 for weight in weights))
        found += [
            first,
            head.size,
            head.kind.code,
            ignore_index,
            float(smoothing),
            float(sum(weights)),
            weighted,
        ]
        found += [target, *map(float, numbers), *[0.0] * (MAX_NUMBERS - len(numbers))]
    return tuple(found)

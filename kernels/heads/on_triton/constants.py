"""A layout in numbers: compile-time constants of kernels, for which a head needs neither a table nor a branch."""

from __future__ import annotations

from functools import cache

import triton.language as tl

from ..kind import MAX_NUMBERS, Kind
from ..layout import HeadLayout

SOFTMAX: tl.constexpr = tl.constexpr(Kind.SOFTMAX.code)

# Positions in a head's constants. The first N_INTEGERS are also columns of the table of `head_tables`, for kernels that
# are not compiled for a layout.
KIND: tl.constexpr = tl.constexpr(0)
OFFSET: tl.constexpr = tl.constexpr(1)
SIZE: tl.constexpr = tl.constexpr(2)
# Row of the class targets, or first column of the float targets, when packed side by side.
TARGET: tl.constexpr = tl.constexpr(3)
IGNORE: tl.constexpr = tl.constexpr(4)
N_INTEGERS: tl.constexpr = tl.constexpr(5)
SMOOTHING: tl.constexpr = tl.constexpr(5)
WEIGHT_SUM: tl.constexpr = tl.constexpr(6)
WEIGHTED: tl.constexpr = tl.constexpr(7)  # whether any column's weight differs from 1
NUMBERS: tl.constexpr = tl.constexpr(8)  # the first of MAX_NUMBERS numbers of the head's options
N_CONSTANTS: tl.constexpr = tl.constexpr(8 + MAX_NUMBERS)


@cache
def constants_of(layout: HeadLayout) -> tuple[int | float, ...]:
    """Return the constants of all heads, flattened to (K * N_CONSTANTS,): a kernel cannot index nested tuples."""
    found: list[int | float] = []
    n_classes = n_floats = 0
    for first, _, head in layout:
        ignore_index, smoothing = (
            (head.ignore_index, head.label_smoothing) if head.kind is Kind.SOFTMAX else (0, 0.0)
        )
        target = n_classes if head.kind.takes_classes else n_floats
        n_classes += head.kind.takes_classes
        n_floats += 0 if head.kind.takes_classes else head.size
        weights, numbers = head.column_weights, head.options.numbers
        weighted = int(any(weight != 1.0 for weight in weights))
        found += [head.kind.code, first, head.size, target, ignore_index]
        found += [float(smoothing), float(sum(weights)), weighted]
        found += [*map(float, numbers), *[0.0] * (MAX_NUMBERS - len(numbers))]
    return tuple(found)

"""Numbers that a user gives, refused by name where they mean nothing.

A bool is no number here, nor is a text: what Python would take for 1 was meant otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mt2st_fast.errors import InputError


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python or numpy."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return number and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number by its type: 2.0 is none, as nothing can be done 2.0 times."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def given(**options: Any) -> dict[str, Any]:
    """The options that are given: None stands for one that need not be."""
    return {name: value for name, value in options.items() if value is not None}


def check_positive(**options: Any) -> None:
    """Raises InputError naming an option that is not a finite number above 0."""
    for name, value in options.items():
        if not (is_number(value) and value > 0):
            raise InputError(f"{name} must be positive and finite, not {value!r}")


def check_not_negative(**options: Any) -> None:
    """Raises InputError naming an option that is not a finite number of at least 0."""
    for name, value in options.items():
        if not (is_number(value) and value >= 0):
            raise InputError(f"{name} must be finite and not negative, not {value!r}")


def check_finite_number(**options: Any) -> None:
    """Raises InputError naming an option that is no finite number."""
    for name, value in options.items():
        if not is_number(value):
            raise InputError(f"{name} must be a finite number, not {value!r}")


def check_within(low: float, high: float, **options: Any) -> None:
    """Raises InputError naming an option that is not a number within [low, high]; `high` may be infinite."""
    for name, value in options.items():
        if not (is_number(value) and low <= value <= high):
            wanted = f"within [{low:g}, {high:g}]" if high < math.inf else f"of at least {low:g}"
            raise InputError(f"{name} must be a finite number {wanted}, not {value!r}")


def check_count(least: int = 1, **options: Any) -> None:
    """Raises InputError naming an option that is not a whole number of at least `least`."""
    for name, value in options.items():
        if not (is_whole(value) and value >= least):
            raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")

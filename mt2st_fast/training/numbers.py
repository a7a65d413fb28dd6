"""Numbers that a user gives, refused by name where they mean nothing. None stands for an option that is not given."""

from __future__ import annotations

import math


def check_positive(**options: float | None) -> None:
    """Raises ValueError naming an option that is not a finite number above 0."""
    for name, value in options.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, not {value}")


def check_not_negative(**options: float | None) -> None:
    """Raises ValueError naming an option that is not a finite number of at least 0."""
    for name, value in options.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, not {value}")


def check_count(**options: int | None) -> None:
    """Raises ValueError naming an option that is not a whole number of at least 1."""
    for name, value in options.items():
        if value is not None and not (math.isfinite(value) and value >= 1 and value == int(value)):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value}")

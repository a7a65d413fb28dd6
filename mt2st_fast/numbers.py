"""Checks of numbers that users give: what makes no sense is refused, with the name of the option.

A bool or a string does not count as a number: Python would take True for 1, but that is hardly what was meant.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mt2st_fast.errors import InputError

LARGEST = float(np.finfo(np.float32).max)
LEAST = float(np.finfo(np.float32).smallest_subnormal)  # what is below half of it is 0 in float32


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python or NumPy."""
    if is_whole(value):
        return True  # of any size: math.isfinite fails above the largest float
    return isinstance(value, float | np.floating) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether a value is of an integer type: 2.0 is not, as nothing can be done 2.0 times."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def spells_number(text: str) -> bool:
    """Whether Python reads a text as a number; nan and inf count."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def plain(value: Any) -> Any:
    """Return a NumPy number as Python's, for `json.dumps(default=plain)`. Raises TypeError for anything else."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a file cannot hold {value!r} ({type(value).__name__})")


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def check_positive(**options: Any) -> None:
    """Raise InputError, naming the option, unless all options are finite numbers above 0."""
    for name, value in options.items():
        if not (is_number(value) and value > 0):
            raise InputError(f"{name} must be positive and finite, not {value!r}")


def check_positive_in_float32(**options: Any) -> None:
    """Raise InputError, naming the option, unless all options are finite and above 0 in float32."""
    check_positive(**options)
    for name, value in options.items():
        if not LEAST <= value <= LARGEST:
            what = "infinite" if value > LARGEST else "0"
            raise InputError(
                f"{name} must be from {LEAST:.2g} to {LARGEST:.2g}, as float32 holds numbers, in which {value!r} is "
                f"{what}"
            )


def check_not_negative(**options: Any) -> None:
    """Raise InputError, naming the option, unless all options are finite numbers of at least 0."""
    for name, value in options.items():
        if not (is_number(value) and value >= 0):
            raise InputError(f"{name} must be finite and not negative, not {value!r}")


def check_finite_number(**options: Any) -> None:
    """Raise InputError, naming the option, unless all options are finite numbers."""
    for name, value in options.items():
        if not is_number(value):
            raise InputError(f"{name} must be a finite number, not {value!r}")


def check_within(low: float, high: float, **options: Any) -> None:
    """Raise InputError, naming the option, unless all options are finite numbers within [low, high]; `high` may be
    infinite.
    """
    for name, value in options.items():
        if not (is_number(value) and low <= value <= high):
            wanted = (
                f"within [{_shown(low)}, {_shown(high)}]" if high < math.inf else f"of at least {_shown(low)}"
            )
            raise InputError(f"{name} must be a finite number {wanted}, not {value!r}")


def check_count(least: int = 1, **options: Any) -> None:
    """Raise InputError, naming the option, unless all options are whole numbers of at least `least`."""
    for name, value in options.items():
        if not (is_whole(value) and value >= least):
            raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_at_most(most: int, **options: Any) -> None:
    """Raise InputError, naming the option, unless all options, which are numbers, are at most `most`."""
    for name, value in options.items():
        if value > most:
            raise InputError(f"{name} must be at most {most:,}, not {value:,}")


def _shown(limit: float) -> str:
    """Format a limit: a whole number to its last digit."""
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"

"""What float32, in which models learn, makes of the numbers in a table: said where different targets become one."""

from collections.abc import Iterable

import numpy as np

from mt2st_fast.errors import InputError

_MOST_HARMLESS = 1e-5  # rounding, as a share of the range of all targets
_FIX = "subtract a number near them all, such as their mean"


def fits(number: float) -> bool:
    """Whether a finite number is one in float32, too."""
    with np.errstate(over="ignore"):  # numbers up to half a step above LARGEST round to it
        return bool(np.isfinite(np.float32(number)))


def merged_targets(where: str, task: str, cells: Iterable[float | None]) -> str:
    """Return a note if rounding to float32 makes one target of different ones, and not just of their last digits; or
    "".

    Raises InputError if it makes one of all.
    """
    targets = np.unique(np.array([cell for cell in cells if cell is not None], dtype=np.float64))
    rounded = targets.astype(np.float32)
    n_left = len(np.unique(rounded))
    if n_left == len(targets):
        return ""
    at = int(np.flatnonzero(rounded[1:] == rounded[:-1])[0])
    such_as = f"such as {targets[at]:.17g} and {targets[at + 1]:.17g}"
    if n_left == 1:
        raise InputError(
            f"{where}: {task}: the {len(targets):,} different targets, {such_as}, are one number in float32, in which "
            f"models learn; {_FIX}"
        )
    lost = np.abs(targets - rounded).max()
    if lost <= _MOST_HARMLESS * (targets[-1] - targets[0]):
        return ""
    return (
        f"{task}: {len(targets):,} different targets are just {n_left:,} in float32, in which models learn, {such_as} "
        f"being one: {_FIX}"
    )

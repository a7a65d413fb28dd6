"""Heads for which kernels are compiled ahead of time."""

from __future__ import annotations

from ..kind import HeadSpec, Kind
from .targets import MOST_ADDRESSES

KINDS = ("weighted", "smoothed", "", "values", "many")
MANY = MOST_ADDRESSES + 4  # heads whose targets a launch takes side by side
SEVERAL = 12  # heads whose targets it takes by address


def heads_of(sizes: tuple[int, ...], what: str) -> tuple[HeadSpec, ...]:
    """Make heads with these outputs: of classes, of every kind ("values"), of "smoothed" or "weighted" classes.

    "weighted" ones are smoothed, too.

    "many" are MANY heads of 60 outputs, whatever the sizes: equal ones, which programs loop over, and others. "several"
    are SEVERAL heads of every kind, also of 60 outputs.
    """
    every = (Kind.SOFTMAX, Kind.BINARY, Kind.SQUARED, Kind.HUBER)
    if what == "several":
        return tuple(HeadSpec(kind, 60 // SEVERAL) for kind in every * (SEVERAL // len(every)))
    if what == "many":
        others = (HeadSpec(Kind.BINARY, 2), HeadSpec(Kind.SOFTMAX, 4)) * 4
        return (*(HeadSpec(Kind.SOFTMAX, 3),) * (MANY - len(others)), *others)
    if what in ("weighted", "smoothed"):
        weights = {size: (0.5,) * size if what == "weighted" else None for size in sizes}
        return tuple(
            HeadSpec(Kind.SOFTMAX, size, label_smoothing=0.1, class_weights=weights[size]) for size in sizes
        )
    kinds = every if what == "values" else (Kind.SOFTMAX,) * 4
    return tuple(HeadSpec(kind, size) for kind, size in zip(kinds, sizes, strict=True))

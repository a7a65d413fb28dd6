"""Heads for which kernels are compiled ahead of time."""

from __future__ import annotations

from ..kind import HeadSpec, Kind
from .targets import MOST_ADDRESSES

KINDS = ("many", "weighted", "", "values")
MANY = MOST_ADDRESSES + 4  # heads whose targets a launch takes side by side


def heads_of(sizes: tuple[int, ...], what: str) -> tuple[HeadSpec, ...]:
    """Make heads with these outputs: of classes, of every kind ("values"), or of "weighted" and smoothed classes.

    "many" are MANY heads of three classes, whatever the sizes.
    """
    if what == "many":
        return (HeadSpec(Kind.SOFTMAX, 3),) * MANY
    if what == "weighted":
        return tuple(
            HeadSpec(Kind.SOFTMAX, size, label_smoothing=0.1, class_weights=(0.5,) * size) for size in sizes
        )
    kinds = (Kind.SOFTMAX, Kind.BINARY, Kind.SQUARED, Kind.HUBER) if what == "values" else (Kind.SOFTMAX,) * 4
    return tuple(HeadSpec(kind, size) for kind, size in zip(kinds, sizes, strict=True))

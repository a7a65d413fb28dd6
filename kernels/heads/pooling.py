"""What a task on whole sequences takes as the features of one: those of a token, or the mean of all."""

from __future__ import annotations

from typing import Literal, get_args

Pooling = Literal["none", "first", "mean"]  # none: the task is on tokens, or on features that have no tokens
POOLINGS: tuple[str, ...] = get_args(Pooling)


def check_pooling(pooling: str) -> None:
    """Raises ValueError for a pooling that there is not."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")

"""Which features a task on whole sequences uses for each sequence: those of one token, or the mean over all tokens."""

from __future__ import annotations

from typing import Literal, get_args

Pooling = Literal["none", "first", "mean"]  # none: the task is on tokens, or on features without tokens
POOLINGS: tuple[str, ...] = get_args(Pooling)


def check_pooling(pooling: str) -> None:
    """Raise ValueError for an unknown pooling."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")

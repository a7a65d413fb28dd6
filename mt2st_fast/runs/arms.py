"""The arms of a comparison: every strategy, on every engine that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BASELINES = ("stl", "mtl")  # what the other strategies are held against


@dataclass(frozen=True)
class Arm:
    """A strategy on an engine, by the name that it has in tables: the engine stands in it for all but the first."""

    name: str
    strategy: str
    engine: str


def arms_of(strategies: Sequence[str], engines: Sequence[str]) -> list[Arm]:
    """All strategies on the first engine, then all on the next."""
    return [
        Arm(strategy if engine == engines[0] else f"{strategy} ({engine})", strategy, engine)
        for engine in engines
        for strategy in strategies
    ]

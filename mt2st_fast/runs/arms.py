"""The arms of a comparison: every strategy on every requested engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BASELINES = ("stl", "mtl")  # what the other strategies are compared with


@dataclass(frozen=True)
class Arm:
    """A strategy on an engine. Its name in tables includes the engine, except for the first engine."""

    name: str
    strategy: str
    engine: str


def arms_of(strategies: Sequence[str], engines: Sequence[str]) -> list[Arm]:
    """Return all strategies on the first engine, then all on the next, and so on."""
    return [
        Arm(strategy if engine == engines[0] else f"{strategy} ({engine})", strategy, engine)
        for engine in engines
        for strategy in strategies
    ]

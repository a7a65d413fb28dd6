"""For custom training loops: what to do to the optimizer when tasks retire. A PhaseController does it by itself."""

from mt2st_fast.training.optimizer_upkeep import release

__all__ = ["release"]

"""For custom training loops: what to do to the optimizer when tasks retire. A PhaseController does it by itself."""

from mt2st_fast.training.optimizers.upkeep import release

__all__ = ["release"]

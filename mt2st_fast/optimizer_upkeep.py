"""What a training loop of one's own does to its optimizer where tasks retire; a PhaseController does it by itself."""

from mt2st_fast.training.optimizer_upkeep import release

__all__ = ["release"]

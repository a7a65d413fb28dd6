"""Entering a phase: the one place where everything that has retired is let go."""

from __future__ import annotations

import torch

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.optimizer_upkeep import remove
from mt2st_fast.training.sources import Source


def enter_phase(
    active: tuple[str, ...], heads: MultiTaskHeads, optimizer: torch.optim.Optimizer, source: Source
) -> None:
    """Train the `active` tasks only, from the next step on.

    The retired heads need no gradient and hold none; they leave the optimizer with their state, or moments
    and weight decay would go on moving them; their loaders are let go and their labels no longer read.
    """
    heads.set_active(active)
    remove(optimizer, (p for p in heads.parameters() if not p.requires_grad))
    source.enter_phase(active)

"""Entering a phase: the one place where everything that has retired is let go."""

from __future__ import annotations

import torch
from torch import nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.task_adapted import TaskAdaptedEncoder
from mt2st_fast.training.optimizer_upkeep import remove
from mt2st_fast.training.sources import Source


def enter_phase(
    active: tuple[str, ...],
    encoder: nn.Module,
    heads: MultiTaskHeads,
    optimizer: torch.optim.Optimizer,
    source: Source,
) -> None:
    """Train the `active` tasks only, from the next step on.

    The retired heads need no gradient and hold none; they leave the optimizer with their state, or moments
    and weight decay would go on moving them; their loaders are let go and their labels no longer read. So does what
    else belongs to a retired task alone.
    """
    set_active(active, encoder, heads)
    own = [
        *heads.parameters(),
        *(encoder.own_parameters() if isinstance(encoder, TaskAdaptedEncoder) else ()),
    ]
    remove(optimizer, (p for p in own if not p.requires_grad))
    source.enter_phase(active)


def set_active(active: tuple[str, ...], encoder: nn.Module, heads: MultiTaskHeads) -> None:
    """Freeze what belongs to the other tasks alone."""
    heads.set_active(active)
    if isinstance(encoder, TaskAdaptedEncoder):
        encoder.set_active(active)

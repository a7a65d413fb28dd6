"""Entering a phase: the one place where everything that has retired is let go."""

from __future__ import annotations

import torch
from torch import nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.task_adapted import adapted_in
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

    The retired heads, and what an encoder has for a retired task alone, need no gradient and hold none; they leave the
    optimizer with their state, or moments and weight decay would go on moving them. Their loaders are let go and their
    labels no longer read.
    """
    set_active(active, encoder, heads)
    remove(optimizer, of_retired(encoder, heads))
    source.enter_phase(active)


def set_active(active: tuple[str, ...], encoder: nn.Module | None, heads: MultiTaskHeads) -> None:
    """Freeze what belongs to the other tasks alone."""
    heads.set_active(active)
    for each in [] if encoder is None else adapted_in(encoder):
        each.set_active(active)


def of_retired(encoder: nn.Module | None, heads: MultiTaskHeads) -> list[nn.Parameter]:
    """The parameters of tasks' own that do not train."""
    adapted = [] if encoder is None else adapted_in(encoder)
    own = [*heads.parameters(), *(p for each in adapted for p in each.own_parameters())]
    return [p for p in own if not p.requires_grad]

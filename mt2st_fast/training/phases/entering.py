"""Entering a phase: the one place where everything that has retired is released."""

from __future__ import annotations

import torch
from torch import nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.shared_parameters import of_encoder
from mt2st_fast.model.task_adapted import adapted_in
from mt2st_fast.training.inputs.sources import Source
from mt2st_fast.training.optimizers.upkeep import remove


def enter_phase(
    active: tuple[str, ...],
    encoder: nn.Module,
    heads: MultiTaskHeads,
    optimizer: torch.optim.Optimizer,
    source: Source,
) -> None:
    """Train only the `active` tasks, from the next step on.

    The retired heads, and an encoder's parameters for retired tasks only, need no gradient and hold none. They leave
    the optimizer with their state; otherwise moments and weight decay would keep moving them. Their loaders are
    released and their labels are no longer read.
    """
    set_active(active, encoder, heads)
    remove(optimizer, of_retired(encoder, heads))
    source.enter_phase(active)


def set_active(active: tuple[str, ...], encoder: nn.Module | None, heads: MultiTaskHeads) -> None:
    """Freeze the parameters that belong only to other tasks."""
    if encoder is None:
        heads.set_active(active)
        return
    heads.set_active(active, shared=of_encoder(encoder, heads))
    for each in adapted_in(encoder):
        each.set_active(active)


def of_retired(encoder: nn.Module | None, heads: MultiTaskHeads) -> list[nn.Parameter]:
    """Return the task-specific parameters that do not train."""
    adapted = [] if encoder is None else adapted_in(encoder)
    own = [*heads.parameters(), *(p for each in adapted for p in each.own_parameters())]
    return [p for p in own if not p.requires_grad]

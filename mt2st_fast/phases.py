"""Entering a phase: the one place where everything that has retired is let go."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mt2st_fast.heads import MultiTaskHeads
from mt2st_fast.sources import Source


def enter_phase(
    active: tuple[str, ...], heads: MultiTaskHeads, optimizer: torch.optim.Optimizer, source: Source
) -> None:
    """Train the `active` tasks only, from the next step on.

    The retired heads need no gradient and hold none; they leave the optimizer with their state, or moments
    and weight decay would go on moving them; their loaders are let go and their labels no longer read.
    """
    heads.set_active(active)
    release(optimizer, (p for p in heads.parameters() if not p.requires_grad))
    source.enter_phase(active)


def release(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters, and their state, out of an optimizer; a group that is left empty goes too."""
    gone = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    for parameter in [p for p in optimizer.state if id(p) in gone]:
        del optimizer.state[parameter]

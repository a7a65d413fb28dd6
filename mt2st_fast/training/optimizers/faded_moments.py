"""Moments of an optimizer that have faded, before they slow a CPU down as subnormal numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from mt2st_fast.model.sharded import own_part
from mt2st_fast.training.optimizers.row_sparse import ROW_STATE

# A moment this small moves no float32 parameter. From here, decaying by 0.9 a step, it takes more than
# FADE_STEPS steps to become subnormal.
FADED = 1e-25
FADE_STEPS = 250
# The mean square of gradients of 1e-18. One of 1e-25 may be all that scales small gradients, if eps is small, too.
FADED_SQUARE = 1e-36


@torch.no_grad()
def drop_faded_moments(optimizer: torch.optim.Optimizer) -> None:
    """Set moments that have faded to 0, as they would soon be subnormal; call it every FADE_STEPS steps on a CPU.

    After a switch, the embedding rows that only auxiliary rows used no longer get a gradient. Their first
    moments decay into the subnormal numbers, on which a CPU computes many times slower: a step took 1.8
    times as long from 700 steps after the switch on.
    """
    for state in optimizer.state.values():
        # These change only with the rows of a batch, and so fade no faster than they are used.
        if any(name.startswith(ROW_STATE) for name in state):
            continue
        for name, moment in state.items():
            if isinstance(moment, Tensor) and moment.dim() > 0 and moment.is_floating_point():
                own = own_part(moment)
                own.masked_fill_(own.abs() < (FADED_SQUARE if name.endswith("_sq") else FADED), 0.0)

"""What training does to an optimizer's state beside stepping: let parameters go, and let faded moments go."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# A moment this small moves no float32 parameter. From here, decaying by 0.9 a step, it takes more than
# FADE_STEPS steps to become subnormal.
FADED = 1e-25
FADE_STEPS = 250


def release(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters, and their state, out of an optimizer; a group that is left empty goes too."""
    gone = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in gone]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    for parameter in [p for p in optimizer.state if id(p) in gone]:
        del optimizer.state[parameter]


@torch.no_grad()
def drop_faded_moments(optimizer: torch.optim.Optimizer) -> None:
    """Set moments under FADED to 0, as they would soon be subnormal; call every FADE_STEPS steps on a CPU.

    After a switch the embedding rows that only auxiliary rows used get no gradient any more. Their first
    moments decay into the subnormal numbers, on which a CPU computes many times slower: the step took 1.8
    times as long from 700 steps after the switch on.
    """
    for state in optimizer.state.values():
        for moment in state.values():
            if isinstance(moment, Tensor) and moment.dim() > 0 and moment.is_floating_point():
                moment.masked_fill_(moment.abs() < FADED, 0.0)

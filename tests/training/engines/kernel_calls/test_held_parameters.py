"""Kernels that were given parameters, their state and their groups hear of every change, and of nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import LazyAdam
from mt2st_fast.training.engines.kernel_calls.held_parameters import HeldParameters


def parts() -> tuple[nn.Parameter, nn.Parameter, LazyAdam]:
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = LazyAdam([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=0.1)
    step(first, second, optimizer)
    return first, second, optimizer


def step(first: nn.Parameter, second: nn.Parameter, optimizer: LazyAdam) -> None:
    (first.sum() + second.sum()).backward()
    optimizer.step()


def test_a_step_is_no_change() -> None:
    first, second, optimizer = parts()
    held = HeldParameters([first, second], optimizer)
    for _ in range(3):
        step(first, second, optimizer)
        assert not held.have_changed()


def into_the_other_group(first: nn.Parameter, optimizer: LazyAdam) -> None:
    groups = optimizer.param_groups
    groups[1]["params"].append(groups[0]["params"].pop())


CHANGES = {
    "another group": into_the_other_group,
    "out of the optimizer": lambda first, optimizer: optimizer.param_groups[0]["params"].clear(),
    "frozen": lambda first, optimizer: first.requires_grad_(False),
    "other memory": lambda first, optimizer: setattr(first, "data", first.data.clone()),
    "another state": lambda first, optimizer: optimizer.state[first].update(exp_avg=torch.zeros(3)),
    "no state": lambda first, optimizer: optimizer.state.pop(first),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str) -> None:
    first, second, optimizer = parts()
    held = HeldParameters([first, second], optimizer)
    CHANGES[change](first, optimizer)
    assert held.have_changed()

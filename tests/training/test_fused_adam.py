"""Steps of torch's fused Adam without what it collects anew every time: the same bits, whatever changes meanwhile."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mt2st_fast.training.fused_adam import FusedAdam


def _pair(make):
    torch.manual_seed(0)
    own = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
    others = copy.deepcopy(own)
    return own, make(own), others, make(others)


def _step(own, optimizer, others, usual, quick, *, without=()):
    for i, (a, b) in enumerate(zip(own, others, strict=True)):
        gradient = torch.randn_like(a)
        a.grad, b.grad = (None, None) if i in without else (gradient, gradient.clone())
    taken = quick.step()
    if not taken:
        optimizer.step()
    usual.step()
    for a, b in zip(own, others, strict=True):
        assert torch.equal(a, b)
    return taken


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2, fused=True),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2, fused=True, maximize=True),
        lambda p: torch.optim.AdamW([{"params": p[:1], "lr": 0.5}, {"params": p[1:]}], lr=0.1, fused=True),
    ],
)
def test_bits_are_torchs_through_every_change(make):
    pair = _pair(make)
    own, optimizer, others, usual = pair
    quick = FusedAdam(optimizer)
    assert not _step(*pair, quick), "the first step makes the state"
    assert _step(*pair, quick)
    for each in (optimizer, usual):
        each.param_groups[0]["lr"] = 0.03
    assert _step(*pair, quick)
    assert not _step(*pair, quick, without=[1]), "torch skips a parameter without a gradient"
    assert _step(*pair, quick)
    for each in (optimizer, usual):
        each.load_state_dict(copy.deepcopy(each.state_dict()))
    assert _step(*pair, quick)
    for parameters, each in ((own, optimizer), (others, usual)):
        parameters.append(nn.Parameter(torch.ones(2)))
        each.add_param_group({"params": parameters[-1:]})
    assert not _step(*pair, quick)
    assert _step(*pair, quick)
    for parameters, each in ((own, optimizer), (others, usual)):
        del each.state[parameters[0]]
    assert not _step(*pair, quick)
    assert _step(*pair, quick)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True, fused=True),
        lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: type("Mine", (torch.optim.AdamW,), {})(p, lr=0.1, fused=True),
    ],
)
def test_other_optimizers_step_themselves(make):
    pair = _pair(make)
    quick = FusedAdam(pair[1])
    assert not any(_step(*pair, quick) for _ in range(3))

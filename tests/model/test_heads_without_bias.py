"""Heads of which only some have a bias: those without are called, and no bias is passed by."""

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, MultiTaskHeads, SingleTask, Trainer

N, D = 9, 8
TASKS = {"a": Classification(4), "b": Classification(5), "c": Classification(3)}


def heads_without(*names):
    torch.manual_seed(0)
    heads = MultiTaskHeads(D, TASKS, main="a")
    for name in TASKS:
        nn.init.normal_(heads.linear(name).bias)
    for name in names:
        heads.linear(name).bias = None
    return heads


def problem():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(N, D, generator=generator)
    return features, {
        name: torch.randint(0, task.classes, (N,), generator=generator) for name, task in TASKS.items()
    }


@pytest.mark.parametrize("without", [("a",), ("b",), ("a", "c"), ("a", "b", "c"), ()])
def test_losses_and_gradients_are_those_of_the_layers(without, caplog):
    heads, (features, targets) = heads_without(*without), problem()
    total = heads(features, targets).total
    expected = sum(nn.functional.cross_entropy(heads.linear(name)(features), targets[name]) for name in TASKS)
    torch.testing.assert_close(total, expected)
    parameters = list(heads.parameters())
    for own, wanted in zip(
        torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(own, wanted)
    mixed = 0 < len(without) < len(TASKS)
    assert set(heads.reasons_to_call()) == (set(without) if mixed else set())


def test_a_head_without_bias_is_fused_again_once_the_others_have_retired():
    heads = heads_without("a")
    assert heads.reasons_to_call() == {"a": "has no bias, but other heads do"}
    heads.set_active(["a"])
    assert heads.reasons_to_call() == {}


def test_kernels_that_were_asked_for_by_name_are_not_left_in_silence():
    heads, (features, targets) = heads_without("a"), problem()
    heads.plan = "tile"
    with pytest.raises(RuntimeError, match="head a has no bias, but other heads do"):
        heads(features, targets)


def test_a_run_trains_every_bias():
    heads, (features, targets) = heads_without("a"), problem()
    before = heads.linear("b").bias.detach().clone()
    trainer = Trainer(nn.Linear(D, D), heads, device="cpu", log_every=1, schedule=None)
    trainer.fit([(features, targets)], epochs=1)
    assert not torch.equal(before, heads.linear("b").bias)
    Trainer(nn.Linear(D, D), heads, device="cpu", schedule=SingleTask()).fit([(features, targets)], epochs=1)

"""Steps of an own encoder on a CPU, whose heads make their gradients at once: those of autograd, and all its rules."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mt2st_fast.model.heads as heads_module
from mt2st_fast import (
    Classification,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    Regression,
    Trainer,
)

TASKS = {"main": Classification(5), "labels": MultiLabel(3), "number": Regression(1)}


def _heads(*names: str, tasks=TASKS, **options) -> MultiTaskHeads:
    torch.manual_seed(0)
    return MultiTaskHeads(8, {name: tasks[name] for name in names}, "main", **options)


def _targets(*names: str, rows=(12,)) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    of_all = {
        "main": torch.randint(5, rows),
        "labels": torch.randint(2, (*rows, 3)).float(),
        "number": torch.randn(*rows, 1),
    }
    return {name: of_all[name] for name in names}


def _gradients(heads: MultiTaskHeads, features: torch.Tensor) -> list[torch.Tensor | None]:
    return [features.grad, *(p.grad for p in heads.parameters())]


@pytest.mark.parametrize("names", [("main",), ("main", "labels"), ("main", "labels", "number")])
@pytest.mark.parametrize("present", ["all", "one is missing"])
@pytest.mark.parametrize("rows", [(12,), (3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_and_losses_are_those_of_forward(names, present, rows, bias):
    heads = _heads(*names, bias=bias)
    targets = _targets(*(names if present == "all" else names[:2]), rows=rows)
    weights = torch.tensor([0.5, 2.0, 1.5])[: len(names)]
    features = torch.randn(*rows, 8, requires_grad=True)
    out = heads(features, targets, weights)
    out.total.backward()
    expected = _gradients(heads, features)
    at_once, leaf = copy.deepcopy(heads), features.detach().clone().requires_grad_()
    at_once.zero_grad()
    losses = at_once.backward(leaf, targets, weights)
    assert losses is not None
    torch.testing.assert_close(losses, out.losses)
    for found, wanted in zip(_gradients(at_once, leaf), expected, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            torch.testing.assert_close(found, wanted)


def test_a_single_head_has_the_bits_of_torch():
    heads, features = _heads("main"), torch.randn(12, 8, requires_grad=True)
    targets = _targets("main")
    layer = copy.deepcopy(heads.linear("main"))
    loss = F.cross_entropy(layer(features), targets["main"])
    loss.backward()
    wanted, features.grad = features.grad, None
    losses = heads.backward(features, targets, torch.ones(1))
    assert losses.tolist() == [loss.item()]
    assert torch.equal(features.grad, wanted)
    assert torch.equal(heads.linear("main").weight.grad, layer.weight.grad)


def test_gradients_add_up_as_in_autograd():
    heads, features = _heads("main", "labels"), torch.randn(12, 8, requires_grad=True)
    targets, ones = _targets("main", "labels"), torch.ones(2)
    heads.backward(features, targets, ones)
    once = [g.clone() for g in _gradients(heads, features)]
    heads.backward(features, targets, ones)
    for twice, single in zip(_gradients(heads, features), once, strict=True):
        torch.testing.assert_close(twice, 2 * single)


def test_a_layer_of_two_tasks_gets_both_gradients():
    layer = nn.Linear(8, 5)
    tasks = {"main": Classification(5), "other": Classification(5)}
    heads = MultiTaskHeads.from_modules({"main": layer, "other": layer}, tasks, "main")
    features, rows = torch.randn(12, 8), torch.arange(12)
    targets = {"main": rows % 5, "other": rows % 3}
    heads(features, targets).total.backward()
    wanted, layer.weight.grad = layer.weight.grad, None
    assert heads.backward(features, targets, torch.ones(2)) is not None
    torch.testing.assert_close(layer.weight.grad, wanted)


def _hook_on_parameter(heads):
    heads.linear("main").weight.register_hook(lambda gradient: gradient)


def _hook_after_accumulation(heads):
    heads.linear("main").bias.register_post_accumulate_grad_hook(lambda parameter: None)


def _hook_on_module(heads):
    heads.register_forward_hook(lambda *_: None)


def _hook_on_layer(heads):
    heads.linear("main").register_forward_hook(lambda *_: None)


def _frozen(heads):
    heads.requires_grad_(False)


@pytest.mark.parametrize(
    "change", [_hook_on_parameter, _hook_after_accumulation, _hook_on_module, _hook_on_layer, _frozen]
)
def test_what_autograd_alone_can_do_is_left_to_it(change):
    heads, features = _heads("main", "labels"), torch.randn(12, 8)
    change(heads)
    assert heads.backward(features, _targets("main", "labels"), torch.ones(2)) is None
    assert all(p.grad is None for p in heads.parameters())


def test_autocast_learned_weights_and_no_grad_are_left_to_autograd():
    heads, features, targets = _heads("main"), torch.randn(12, 8, requires_grad=True), _targets("main")
    with torch.autocast("cpu", torch.bfloat16):
        assert heads.backward(features, targets, torch.ones(1)) is None
    with torch.no_grad():
        assert heads.backward(features, targets, torch.ones(1)) is None
    assert heads.backward(features, targets, torch.ones(1, requires_grad=True)) is None
    assert features.grad is None


def test_a_batch_without_a_label_moves_nothing_and_is_no_nan():
    heads, features = _heads("main"), torch.randn(12, 8, requires_grad=True)
    losses = heads.backward(features, {"main": torch.full((12,), -100)}, torch.ones(1))
    assert losses.tolist() == [0.0]
    assert not features.grad.any()


def test_a_weight_of_zero_computes_nothing():
    heads, features = _heads("main"), torch.full((12, 8), torch.inf, requires_grad=True)
    losses = heads.backward(features, _targets("main"), torch.zeros(1))
    assert losses.tolist() == [0.0]


def test_a_class_out_of_range_is_named():
    targets = {"main": torch.tensor([0, 5])}
    with pytest.raises(ValueError, match=r"targets of main: 5 lies outside \[0, 5\)"):
        _heads("main").backward(torch.randn(2, 8, requires_grad=True), targets, torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_other_integers_are_classes_too(dtype):
    heads, targets = _heads("main"), _targets("main")
    features = torch.randn(12, 8, requires_grad=True)
    wanted = heads.backward(features, targets, torch.ones(1))
    found = heads.backward(features, {"main": targets["main"].to(dtype)}, torch.ones(1))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("names", [("main",), ("main", "labels")])
def test_the_trainer_takes_its_steps_this_way(names, monkeypatch):
    encoder, heads = nn.Linear(4, 8), _heads(*names)
    monkeypatch.setattr(heads_module, "multitask_loss", None)
    inputs = torch.randn(12, 4)
    trainer = Trainer(encoder, heads, schedule=MultiTask(), device="cpu")
    before = encoder.weight.detach().clone()
    history = trainer.fit([(inputs, _targets(*names))], steps=30)
    losses = [record.total for record in history.steps]
    assert all(a > b for a, b in pairwise(losses))
    assert not torch.equal(encoder.weight, before)


def test_parameters_of_the_encoder_keep_autograds_record(monkeypatch):
    heads = _heads("main", "labels")
    monkeypatch.setattr(MultiTaskHeads, "backward", None)

    class Encoder(nn.Module):  # as a wrapper that exchanges the gradients of everything within
        def __init__(self):
            super().__init__()
            self.body, self.heads = nn.Linear(4, 8), heads

        def forward(self, inputs):
            return self.body(inputs)

    trainer = Trainer(Encoder(), heads, schedule=MultiTask(), device="cpu")
    trainer.fit([(torch.randn(12, 4), _targets("main", "labels"))], steps=2)

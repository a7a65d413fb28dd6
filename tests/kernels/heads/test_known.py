"""Calls like an earlier one, whose arguments are not checked again, and those of them that are one kernel call."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from mt2st_fast.kernels import HeadLayout, HeadSpec, multitask_gradients, multitask_loss
from mt2st_fast.kernels.heads import known, op
from mt2st_fast.kernels.heads.on_numba import tile
from mt2st_fast.kernels.heads.parts import lay_adjacent
from tests.kernels.heads.loss_problems import HEADS, SOFTMAX, make_problem

TWO = (HeadSpec(SOFTMAX, 4), HeadSpec(SOFTMAX, 3))
CASES = {"one": HEADS["softmax"], "two": TWO, "mixed": HEADS["mixed"]}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(known, "_known", {})


@pytest.fixture
def ways(monkeypatch):
    """Which way each call took: "at once", or "forward"."""
    taken = []
    at_once, forward = tile.at_once, tile.forward

    def spy_at_once(*args):
        made = at_once(*args)
        taken.extend(["at once"] if made is not None else [])
        return made

    def spy_forward(call):
        taken.append("forward")
        return forward(call)

    monkeypatch.setattr(tile, "at_once", spy_at_once)
    monkeypatch.setattr(tile, "forward", spy_forward)
    return taken


def parts_of(problem, *, adjacent=True):
    """One parameter per head: (weights, biases or None)."""
    sizes = problem.layout.sizes
    weights = [nn.Parameter(part.clone()) for part in problem.weight.split(sizes)]
    if adjacent:
        assert lay_adjacent(weights)
    if problem.bias is None:
        return weights, None
    biases = [nn.Parameter(part.clone()) for part in problem.bias.split(sizes)]
    if adjacent:
        assert lay_adjacent(biases)
    return weights, biases


def packed(problem):
    bias = problem.bias
    return problem.weight.clone().requires_grad_(), None if bias is None else bias.clone().requires_grad_()


def flat(weight, bias):
    weights = [weight] if isinstance(weight, torch.Tensor) else weight
    biases = [] if bias is None else [bias] if isinstance(bias, torch.Tensor) else bias
    return [*weights, *biases]


def results(problem, weight, bias, *, features=None, factor=1.0):
    """(total, losses, correct, gradients) of one call."""
    features = problem.features.clone().requires_grad_() if features is None else features
    out = multitask_loss(features, weight, bias, problem.targets, problem.task_weights, problem.layout)
    gradients = torch.autograd.grad(out.total * factor, [features, *flat(weight, bias)])
    return [out.total.detach(), out.losses, out.correct, *gradients]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("make", [packed, parts_of])
def test_at_once_gives_the_bits_of_forward(name, bias, make, ways, monkeypatch):
    problem = make_problem(CASES[name], 70, bias=bias)
    found = [results(problem, *make(problem), factor=factor) for factor in (1.0, 1.0, -4.0)]
    assert ways == ["at once"] * 3
    monkeypatch.delattr(tile, "at_once")
    monkeypatch.setattr(known, "_known", {})
    expected = [results(problem, *make(problem), factor=factor) for factor in (1.0, 1.0, -4.0)]
    assert ways == ["at once"] * 3 + ["forward"] * 3
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_two_heads_in_one_weight_are_not_taken_for_two_weights(ways):
    """A weight and a bias are as many tensors as two weights."""
    problem = make_problem(TWO, 40)
    together = results(problem, *packed(problem))
    apart = results(problem, *parts_of(problem))
    assert ways == ["at once"] * 2
    assert_same(together[:4], apart[:4])
    assert_same(together[4:], [torch.cat(apart[4:6]), torch.cat(apart[6:])])


def test_heads_that_are_not_side_by_side_are_copied(ways):
    problem = make_problem(HEADS["mixed"], 40)
    expected = results(problem, *parts_of(problem))
    for _ in range(2):  # unknown, and known
        assert_same(results(problem, *parts_of(problem, adjacent=False)), expected)
    assert ways == ["at once", "forward", "forward"]
    weights, biases = parts_of(problem)
    results(problem, weights, biases)
    weights[1].data = weights[1].data.clone()  # somebody has moved one
    assert_same(results(problem, weights, biases), expected)
    assert ways[-2:] == ["at once", "forward"]


def test_features_in_another_order_are_copied(ways):
    problem = make_problem(HEADS["mixed"], 40)
    weight, bias = packed(problem)
    expected = results(problem, weight, bias)
    other = problem.features.t().contiguous().t().requires_grad_()
    assert not other.is_contiguous()
    found = results(problem, weight, bias, features=other)
    assert ways == ["at once", "forward"]
    assert_same(found, expected)


def test_a_batch_with_few_labels_takes_several_passes(ways):
    heads = (HeadSpec(SOFTMAX, 4), HeadSpec(SOFTMAX, 600))
    problem = make_problem(heads, 400)
    few = torch.where(torch.arange(400) % 10 == 0, problem.targets[1], -100)
    problem = replace(problem, targets=[problem.targets[0], few])
    weight, bias = packed(problem)
    total, losses, *_ = results(problem, weight, bias)
    assert ways == ["forward"]
    expected = multitask_loss(
        problem.features,
        weight,
        bias,
        problem.targets,
        problem.task_weights,
        problem.layout,
        backend="reference",
    )
    torch.testing.assert_close(losses, expected.losses)
    torch.testing.assert_close(total, expected.total.detach())


@pytest.mark.parametrize("make", [packed, parts_of])
def test_a_retained_graph_gives_its_gradients_again(make):
    problem = make_problem(HEADS["mixed"], 40)
    weight, bias = make(problem)
    features = problem.features.clone().requires_grad_()
    leaves = [features, *flat(weight, bias)]
    total = multitask_loss(
        features, weight, bias, problem.targets, problem.task_weights, problem.layout
    ).total
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()  # its owner may do so
    assert_same(torch.autograd.grad(total, leaves, retain_graph=True), kept)
    many = torch.autograd.grad(
        total, leaves, torch.tensor([1.0, 2.0]), is_grads_batched=True, retain_graph=True
    )
    assert_same([pair[1] for pair in many], [2 * gradient for gradient in kept])
    problem.targets[0].zero_()
    with pytest.raises(RuntimeError, match="targets have been modified"):
        torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("which", ["features", "weight", "task weights"])
def test_what_is_modified_before_the_backward_pass_is_refused(which):
    problem = make_problem(HEADS["mixed"], 40)
    weight, bias = parts_of(problem)
    features = problem.features.clone().requires_grad_()
    total = multitask_loss(
        features, weight, bias, problem.targets, problem.task_weights, problem.layout
    ).total
    changed = {"features": features, "weight": weight[2], "task weights": problem.task_weights}[which]
    with torch.no_grad():
        changed.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_freed_graph_is_refused():
    problem = make_problem(HEADS["mixed"], 40)
    features = problem.features.clone().requires_grad_()
    total = multitask_loss(
        features, *packed(problem), problem.targets, problem.task_weights, problem.layout
    ).total
    total.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()


def test_what_needs_a_gradient_is_asked_in_every_call():
    problem = make_problem(HEADS["mixed"], 40)
    weight, bias = packed(problem)
    for frozen in (True, False, True):
        weight.requires_grad_(not frozen)
        weight.grad = None
        features = problem.features.clone().requires_grad_()
        multitask_loss(
            features, weight, bias, problem.targets, problem.task_weights, problem.layout
        ).total.backward()
        assert (weight.grad is None) == frozen
        with torch.no_grad():
            out = multitask_loss(
                features, weight, bias, problem.targets, problem.task_weights, problem.layout
            )
        assert not out.total.requires_grad


def test_other_arguments_are_checked_though_the_call_is_known(monkeypatch):
    problem = make_problem(HEADS["mixed"], 40)
    weight, bias = packed(problem)
    given = (weight, bias, problem.targets, problem.task_weights, problem.layout)
    multitask_loss(problem.features, *given)
    with pytest.raises(ValueError, match="weight must be"):
        multitask_loss(problem.features[:, 1:], *given)
    bad = [target[:3] if k == 1 else target for k, target in enumerate(problem.targets)]
    with pytest.raises(ValueError, match="targets of task 1 must be"):
        multitask_loss(problem.features, weight, bias, bad, *given[3:])
    bad = [torch.full_like(problem.targets[0], 17), *problem.targets[1:]]
    with pytest.raises(ValueError, match="17"):
        multitask_loss(problem.features, weight, bias, bad, *given[3:])
    with pytest.raises(ValueError, match="5 heads"):
        multitask_loss(problem.features, weight, bias, problem.targets[:3], *given[3:])
    monkeypatch.setenv("MT2ST_BACKEND", "nowhere")
    with pytest.raises(ValueError, match="MT2ST_BACKEND=nowhere is unknown"):
        multitask_loss(problem.features, *given)


def test_learned_weights_get_their_gradient_from_a_known_call():
    problem = make_problem(HEADS["mixed"], 40)
    weight, bias = packed(problem)
    for _ in range(2):
        learned = problem.task_weights.clone().requires_grad_()
        out = multitask_loss(problem.features, weight, bias, problem.targets, learned, problem.layout)
        out.total.backward()
        assert torch.equal(learned.grad, out.losses)


def test_as_many_calls_are_known_as_stated(monkeypatch):
    monkeypatch.setattr(known, "MOST_KNOWN", 3)
    for N in range(2, 10):
        problem = make_problem(TWO, N)
        results(problem, *packed(problem))
        assert len(known._known) <= 3


def test_subclasses_of_tensors_are_checked_in_every_call():
    class Own(torch.Tensor):
        pass

    problem = make_problem(TWO, 8)
    features = problem.features.as_subclass(Own)
    multitask_loss(
        features, problem.weight, problem.bias, problem.targets, problem.task_weights, problem.layout
    )
    assert not known._known


@pytest.mark.parametrize("adjacent", [True, False])
def test_gradients_at_once_are_those_of_the_backward_pass(adjacent):
    problem = make_problem(HEADS["mixed"], 40)
    weights, biases = parts_of(problem, adjacent=adjacent)
    for _ in range(2):
        features = problem.features.clone().requires_grad_()
        _, losses, _, *expected = results(problem, weights, biases, features=features)
        made = multitask_gradients(
            features, weights, biases, problem.targets, problem.task_weights, problem.layout
        )
        assert_same([made.losses, made.features, *made.weights, *made.biases], [losses, *expected])


def test_a_call_of_one_head_gives_its_gradient_whole():
    layout = HeadLayout((HeadSpec(SOFTMAX, 4),))
    gradient = torch.ones(4, 3)
    assert op.gradient_parts(gradient, layout) == (gradient,)

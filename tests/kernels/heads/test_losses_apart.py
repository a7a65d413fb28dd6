"""Losses of several heads from one pass: values and gradients are those of one fused loss for each head."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, lay_adjacent, losses_apart, multitask_loss
from mt2st_fast.kernels.heads.on_numba import tile

HEADS = (
    HeadSpec(Kind.SOFTMAX, 5, label_smoothing=0.1),
    HeadSpec(Kind.SOFTMAX, 2),
    HeadSpec(Kind.SOFTMAX, 40, class_weights=tuple(0.5 + c / 40 for c in range(40))),
    HeadSpec(Kind.BINARY, 3),
    HeadSpec(Kind.SQUARED, 1),
)
LAYOUT = HeadLayout(HEADS)
K = len(HEADS)
# Rows and features: ragged; whole vectors and blocks, so that gradients are written in place; many tiles.
SHAPES = {"ragged": (37, 7), "whole": (96, 64), "tiles": (700, 96), "one row": (1, 16), "none": (0, 8)}


class Problem(NamedTuple):
    """The arguments of a call."""

    features: Tensor
    weights: list[Tensor]
    biases: list[Tensor] | None
    targets: list[Tensor]
    scales: Tensor


def problem(N, D, *, missing=0.2, seed=0, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    weights = [nn.Parameter(draw(head.size, D) / 4) for head in HEADS]
    biases = [nn.Parameter(draw(head.size)) for head in HEADS] if bias else None
    targets = []
    for head in HEADS:
        gone = torch.rand(N, generator=generator) < missing
        if head.kind.takes_classes:
            target = torch.randint(0, head.size, (N,), generator=generator)
            target[gone] = head.ignore_index
        else:
            target = torch.rand(N, head.size, generator=generator).round()
            target[gone] = float("nan")
        targets.append(target)
    scales = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0])
    return Problem(draw(N, D).requires_grad_(), weights, biases, targets, scales)


def one_by_one(features, weights, biases, targets, scales):
    """The losses by a fused call for each head."""
    return [
        multitask_loss(
            features,
            weights[k : k + 1],
            None if biases is None else biases[k : k + 1],
            targets[k : k + 1],
            scales[k : k + 1],
            HeadLayout(HEADS[k : k + 1]),
        ).total
        for k in range(K)
    ]


def gradients(losses, features, weights, biases, **options):
    """For every loss, the gradients of features and of all parameters."""
    wanted = [features, *weights, *(biases or ())]
    return [torch.autograd.grad(loss, wanted, allow_unused=True, **options) for loss in losses]


def check_alike(found, expected, rtol=1e-6):
    """Hold gradients of every loss against others: to rounding, by the largest number of each tensor."""
    for of_loss, wanted in zip(found, expected, strict=True):
        for a, b in zip(of_loss, wanted, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                assert a.dtype == b.dtype
                assert a.shape == b.shape
                torch.testing.assert_close(
                    a, b, rtol=rtol, atol=rtol * float(b.abs().max()) if b.numel() else 0
                )


@pytest.fixture
def passes(monkeypatch):
    """Count the kernel calls."""
    made = []
    kernel = tile.tile_pass

    def counted(*args):
        made.append(None)
        return kernel(*args)

    monkeypatch.setattr(tile, "tile_pass", counted)
    return made


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_losses_and_gradients_are_those_of_each_head_alone(shape, bias, passes):
    of = problem(*SHAPES[shape], missing=0.0, bias=bias)
    losses = losses_apart(*of, LAYOUT)
    assert len(passes) == (1 if shape != "none" else len(passes)), "one kernel call for all heads"
    expected = one_by_one(*of)
    assert [loss.shape for loss in losses] == [()] * K
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-6, atol=0)
    check_alike(gradients(losses, *of[:3]), gradients(expected, *of[:3]))


def test_heads_with_few_or_no_labels():
    of = problem(700, 96)
    targets = of.targets
    targets[2][torch.arange(700) % 50 != 0] = HEADS[2].ignore_index  # computed over its labelled rows alone
    targets[3][:] = float("nan")
    of.scales[1] = 0.0
    losses, expected = losses_apart(*of, LAYOUT), one_by_one(*of)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-6, atol=0)
    assert losses[1].item() == losses[3].item() == 0
    check_alike(gradients(losses, *of[:3]), gradients(expected, *of[:3]))


def test_parameters_in_one_piece_of_memory_and_features_of_sequences():
    of = problem(60, 16)
    expected = gradients(one_by_one(*of), *of[:3])
    lay_adjacent(of.weights)
    lay_adjacent(of.biases)
    of = of._replace(features=of.features.detach().reshape(12, 5, 16).requires_grad_())
    found = [(g.flatten(0, 1), *others) for g, *others in gradients(losses_apart(*of, LAYOUT), *of[:3])]
    check_alike(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats(dtype):
    of = problem(64, 16, dtype=dtype)
    losses, expected = losses_apart(*of, LAYOUT), one_by_one(*of)
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected), rtol=1e-6, atol=0)
    check_alike(gradients(losses, *of[:3]), gradients(expected, *of[:3]), rtol=torch.finfo(dtype).eps)


def test_what_needs_no_gradient_gets_none():
    of = problem(40, 8)
    features, weights, biases = of[:3]
    weights[0].requires_grad_(False)
    biases[1].requires_grad_(False)
    losses, expected = losses_apart(*of, LAYOUT), one_by_one(*of)
    wanted = [features, *weights[1:], biases[0], *biases[2:]]
    found, alone = (
        [torch.autograd.grad(loss, wanted, allow_unused=True) for loss in each] for each in (losses, expected)
    )
    check_alike(found, alone)
    fixed = features.detach()
    losses = losses_apart(fixed, *of[1:], LAYOUT)
    alone = one_by_one(fixed, *of[1:])
    for loss, other, weight in zip(losses[1:], alone[1:], weights[1:], strict=True):
        check_alike([torch.autograd.grad(loss, [weight])], [torch.autograd.grad(other, [weight])])
    for parameter in (*weights, *biases):
        parameter.requires_grad_(False)
    assert not any(loss.requires_grad for loss in losses_apart(fixed, *of[1:], LAYOUT))


def test_a_loss_reaches_its_own_parameters_alone():
    """A method that finds the parameters of a task by its graph must not find those of another."""
    features, weights, biases, *others = problem(20, 8)
    losses = losses_apart(features, weights, biases, *others, LAYOUT)
    for k, loss in enumerate(losses):
        leaves = [node.variable for node, _ in loss.grad_fn.next_functions if node is not None]
        assert [id(leaf) for leaf in leaves] == [id(features), id(weights[k]), id(biases[k])]


def test_a_graph_that_is_kept_gives_the_same_gradients_again_whatever_becomes_of_the_first():
    of = problem(50, 16)
    losses, expected = losses_apart(*of, LAYOUT), gradients(one_by_one(*of), *of[:3])
    first = gradients(losses, *of[:3], retain_graph=True)
    check_alike(first, expected)
    for of_loss in first:
        for gradient in of_loss:
            if gradient is not None:
                gradient.fill_(7.0)
    (only,) = torch.autograd.grad(losses[2], of[0], torch.tensor(3.0), retain_graph=True)
    torch.testing.assert_close(only, 3 * expected[2][0])
    check_alike(gradients(losses, *of[:3]), expected)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        losses[0].backward()


def test_gradients_add_up_where_autograd_adds_them():
    of = problem(50, 16)
    wanted = [of.features, *of.weights, *of.biases]
    for loss in losses_apart(*of, LAYOUT):
        (2 * loss).backward()
    expected = torch.autograd.grad(sum(2 * loss for loss in one_by_one(*of)), wanted)
    check_alike([[p.grad for p in wanted]], [expected])


def test_many_upstream_gradients_at_once():
    of = problem(30, 8)
    upstream = torch.tensor([1.0, -2.0, 0.5])
    expected = gradients(one_by_one(*of), *of[:3])
    wanted = [of[0], of[1][2], of[2][2]]
    for batched in (True, False):
        loss = losses_apart(*of, LAYOUT)[2]
        if batched:
            found = torch.autograd.grad(loss, wanted, upstream, is_grads_batched=True)
        else:
            found = torch.vmap(lambda g, loss=loss: torch.autograd.grad(loss, wanted, g))(upstream)
        for gradient, single in zip(found, (expected[2][0], expected[2][3], expected[2][3 + K]), strict=True):
            each = torch.stack([g * single for g in upstream])
            torch.testing.assert_close(gradient, each, rtol=1e-5, atol=1e-7)


def test_a_second_derivative_and_changed_parameters_are_refused():
    of = problem(20, 8)
    losses = losses_apart(*of, LAYOUT)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(losses[0], of.features, create_graph=True)
    with torch.no_grad():
        of.weights[1].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[1].backward()
    losses[2].backward()


def test_a_loss_may_be_changed_in_place():
    of = problem(20, 8)
    losses = losses_apart(*of, LAYOUT)
    before = [loss.item() for loss in losses]
    losses[0] *= 2
    assert [loss.item() for loss in losses] == [2 * before[0], *before[1:]]
    (found,) = torch.autograd.grad(losses[0], of[0])
    torch.testing.assert_close(found, 2 * torch.autograd.grad(one_by_one(*of)[0], of[0])[0])


def test_a_class_out_of_range_is_named():
    of = problem(20, 8)
    of.targets[2][5] = 40
    with pytest.raises(ValueError, match=r"targets of task 2: 40 lies outside \[0, 40\)"):
        losses_apart(*of, LAYOUT)


def test_what_one_pass_cannot_do_is_left_to_one_for_each():
    of = problem(20, 8)
    assert losses_apart(*of, LAYOUT, backend="reference") is None
    assert losses_apart(*of, LAYOUT, plan="chunked") is None
    assert losses_apart(*of[:4], of[4].requires_grad_(), LAYOUT) is None
    of = problem(20, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert losses_apart(*of, LAYOUT) is None
    with torch.no_grad():
        assert losses_apart(*of, LAYOUT) is None
    of = problem(20, 8, dtype=torch.float64)
    assert losses_apart(*of, LAYOUT) is None

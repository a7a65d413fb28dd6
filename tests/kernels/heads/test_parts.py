"""Weights of heads that come one by one: read in place where they lie one after another, else copied."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, lay_adjacent, multitask_loss
from tests.kernels.launches import counted_launches

SIZES = (3, 1, 5)
LAYOUT = HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, size) for size in SIZES), ("a", "b", "c"))


def make_parts() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(size, 4)) for size in SIZES]
    return weights, [nn.Parameter(torch.randn(size)) for size in SIZES]


def losses(weight: object, bias: object, backend: str) -> tuple[Tensor, Tensor]:
    """The total, and the features, which get a gradient."""
    features = torch.linspace(-1, 1, 32).reshape(8, 4).requires_grad_()
    targets = [torch.arange(8) % size for size in SIZES]
    weights = torch.tensor([1.0, 0.5, 2.0])
    return multitask_loss(features, weight, bias, targets, weights, LAYOUT, backend=backend).total, features  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_parts_train_as_one_weight_does(backend, placed, has_bias):
    weights, biases = make_parts()
    weight = torch.cat([w.detach() for w in weights]).requires_grad_()
    bias = torch.cat([b.detach() for b in biases]).requires_grad_()
    if placed:
        assert lay_adjacent(weights)
        assert lay_adjacent(biases)
    total, features = losses(weights, biases if has_bias else None, backend)
    total.backward()
    expected, expected_features = losses(weight, bias if has_bias else None, backend)
    expected.backward()
    assert torch.equal(total, expected)
    assert torch.equal(features.grad, expected_features.grad)
    assert torch.equal(torch.cat([w.grad for w in weights]), weight.grad)
    if has_bias:
        assert torch.equal(torch.cat([b.grad for b in biases]), bias.grad)


def test_placed_parts_are_read_where_they_lie():
    weights, biases = make_parts()
    with counted_launches() as n:
        losses(weights, biases, "numba")[0].backward()
    assert n.names.count("aten::cat") == 2
    lay_adjacent(weights)
    lay_adjacent(biases)
    with counted_launches() as n:
        losses(weights, biases, "numba")[0].backward()
    assert "aten::cat" not in n.names


def test_a_frozen_part_gets_no_gradient():
    weights, biases = make_parts()
    lay_adjacent(weights)
    weights[1].requires_grad_(False)
    losses(weights, biases, "numba")[0].backward()
    assert [w.grad is None for w in weights] == [False, True, False]


@pytest.mark.parametrize("changed", range(3))
def test_a_part_that_changes_before_the_backward_pass_is_seen(changed):
    weights, biases = make_parts()
    lay_adjacent(weights)
    total, _ = losses(weights, biases, "numba")
    with torch.no_grad():
        weights[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_parts_that_processes_share_stay_where_they_are():
    weights, _ = make_parts()
    shared = [weight.share_memory_() for weight in weights]
    assert not lay_adjacent(shared)
    assert all(weight.is_shared() for weight in shared)


@pytest.mark.parametrize("other", [nn.Parameter(torch.randn(2, 4).double()), torch.randn(2, 4)])
def test_what_cannot_lie_together_stays_where_it_is(other):
    first = nn.Parameter(torch.randn(3, 4))
    before = first.data_ptr()
    assert not lay_adjacent([first, other])
    assert first.data_ptr() == before


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        ([torch.randn(3, 4)] * 2, None, "weight has 2 tensors, but there are 3 heads"),
        ([torch.randn(3, 4)] * 3, None, "weight of b has 3 rows, but its head has 1 outputs"),
        (torch.randn(9, 4), [torch.randn(3)], "bias must be one tensor, as weight is"),
        ([torch.randn(3, 4)], torch.randn(9), "bias must be one tensor per head, as weight is"),
    ],
)
def test_parts_that_fit_no_head_are_refused(weight, bias, message):
    with pytest.raises(ValueError, match=message):
        losses(weight, bias, "numba")


def test_a_single_row_may_have_any_stride():
    # A column that is used as a row: torch calls it contiguous, but its stride is not that of the rows after it.
    torch.manual_seed(0)
    memory = torch.randn(9 * 4)
    column, others = memory[:4].view(4, 1), memory[4:].view(8, 4)
    parts = [column.t(), others[:2], others[2:]]
    layout = HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, len(part)) for part in parts))
    assert parts[0].is_contiguous()
    assert parts[0].stride() != others.stride()
    features, targets = torch.randn(8, 4), [torch.arange(8) % len(part) for part in parts]
    read, copied = (
        multitask_loss(features, weight, None, targets, torch.ones(3), layout, backend="numba").losses
        for weight in (parts, torch.cat(parts))
    )
    assert torch.equal(read, copied)


@pytest.mark.parametrize("change", ["transposed", "shortened", "another dtype", "another tensor"])
def test_parts_are_looked_at_anew_in_every_call(change):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    lay_adjacent(weights)
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 4),) * 3)
    features, targets = torch.randn(8, 4), [torch.arange(8) % 4] * 3

    def found(weight):
        return multitask_loss(features, weight, None, targets, torch.ones(3), layout, backend="numba").losses

    assert torch.equal(found(weights), found(torch.cat(weights)))
    middle = weights[1].data
    weights[1].data = {
        "transposed": middle.t(), "shortened": middle[:3], "another dtype": middle.bfloat16(),
        "another tensor": torch.randn(4, 4),
    }[change]  # fmt: skip
    if change == "shortened":
        with pytest.raises(ValueError, match="weight of task 1 has 3 rows, but its head has 4 outputs"):
            found(weights)
    else:
        assert torch.equal(found(weights), found(torch.cat([weight.detach() for weight in weights])))

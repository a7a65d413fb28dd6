"""Gradients of Conv1d by a kernel: against float64 truth, beside torch's own, and torch's where they are many."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv1d as by_torch

from mt2st_fast.kernels import conv1d
from mt2st_fast.kernels.convolution import op
from mt2st_fast.kernels.convolution.on_numba import few_gradients

# Sequences, channels, positions; channels of outputs, width, stride, padding: whole vectors and not, one of each.
SHAPES = [
    (32, 64, 40, 100, 3, 1, 0), (3, 5, 9, 10, 3, 1, 1), (5, 16, 20, 64, 4, 2, 2), (4, 30, 33, 17, 5, 3, 1),
    (2, 3, 4, 2, 1, 1, 0), (1, 1, 8, 1, 4, 1, 3), (6, 40, 70, 24, 5, 1, 4),
]  # fmt: skip
MARGIN, SMALLEST = 2.0, 3e-7
NAMES = ("outputs", "inputs", "weight", "bias")


@pytest.fixture(autouse=True)
def small_ones(monkeypatch):
    """The kernel takes these small ones, too."""
    monkeypatch.setattr(op, "LEAST_PRODUCTS", 0)


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel has computed the gradients."""
    made = []
    own = few_gradients.few_gradients
    monkeypatch.setattr(few_gradients, "few_gradients", lambda *args: made.append(1) or own(*args))
    return made


def arguments(shape, *, biased=True, together=True):
    """(inputs, weight, bias, stride, padding); together: the channels of a position lie together, as embeddings do."""
    B, E, L, C, K, stride, padding = shape
    inputs = torch.randn(B, L, E).transpose(1, 2) if together else torch.randn(B, E, L)
    return inputs, torch.randn(C, E, K), torch.randn(C) if biased else None, stride, padding


def longest(outputs):
    return torch.relu(outputs).max(2)[0]


def results(layer, given, use, dtype=torch.float32):
    """The outputs, and the gradients of what is used of them, with fixed weights."""
    *tensors, stride, padding = given
    own = [None if t is None else t.to(dtype, copy=True).requires_grad_() for t in tensors]
    outputs = layer(*own, stride, padding)
    used = use(outputs)
    torch.manual_seed(1)
    upstream = torch.randn(used.shape, dtype=torch.float64).to(dtype)
    return [outputs.detach(), *torch.autograd.grad(used, [t for t in own if t is not None], upstream)]


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_below_a_maximum_are_as_accurate_as_torchs(shape, together, calls):
    torch.manual_seed(0)
    given = arguments(shape, biased=together, together=together)
    truth = results(by_torch, given, longest, torch.float64)
    ours, theirs = results(conv1d, given, longest), results(by_torch, given, longest)
    assert calls
    assert torch.equal(ours[0], theirs[0])
    for name, own, other, true in zip(NAMES, ours, theirs, truth, strict=False):
        error, most = (own - true).abs().max(), (other - true).abs().max()
        assert own.shape == true.shape
        assert error <= MARGIN * most + SMALLEST * true.abs().max(), (
            f"{name}: {error:.2e}, torch's {most:.2e}"
        )


USES = {
    "all": lambda out: out * 2,
    "half of them": torch.relu,
    "one sequence's": lambda out: out[-1:],
    "one channel's": lambda out: out[:, :1].contiguous(),
    "expanded": lambda out: out.sum((1, 2)),
    "strided": lambda out: out.transpose(0, 2)[:2],
}


@pytest.mark.parametrize("name", USES)
def test_gradients_of_other_uses(name, calls):
    torch.manual_seed(0)
    given = arguments((7, 12, 30, 20, 3, 1, 1))
    ours, truth = results(conv1d, given, USES[name]), results(by_torch, given, USES[name], torch.float64)
    assert bool(calls) == (name in ("one channel's", "strided"))
    for own, true in zip(ours, truth, strict=True):
        assert torch.allclose(own.double(), true, rtol=1e-4, atol=1e-4)


def test_many_gradients_without_a_bias(calls):
    given = arguments((7, 12, 30, 20, 3, 2, 1), biased=False)
    ours, truth = results(conv1d, given, torch.relu), results(by_torch, given, torch.relu, torch.float64)
    assert not calls
    assert all(torch.allclose(a.double(), b, rtol=1e-4, atol=1e-4) for a, b in zip(ours, truth, strict=True))


def test_the_share_of_gradients_below_which_the_kernel_computes_them(calls):
    given = arguments((2, 4, 8 * op.FEW, 3, 1, 1, 0))
    for n, is_few in ((8, True), (9, False)):
        results(conv1d, given, lambda out, n=n: out[..., :n])
        assert bool(calls) == is_few
        del calls[:]


def test_small_ones_are_torchs(calls, monkeypatch):
    monkeypatch.setattr(op, "LEAST_PRODUCTS", 2 * 15 * 6 * 4 * 3)
    for L, is_torchs in ((16, True), (17, False)):
        results(conv1d, arguments((2, 4, L, 6, 3, 1, 0)), longest)
        assert bool(calls) != is_torchs


def test_the_bits_do_not_depend_on_threads_or_on_what_memory_held(calls):
    given, threads, found = arguments((9, 20, 30, 40, 5, 1, 2)), torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            torch.full((1 << 20,), float("nan"))  # what the next tensors may find in their memory
            found.append(results(conv1d, given, longest)[1:])
    finally:
        torch.set_num_threads(threads)
    assert len(calls) == 3
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)], ids=str)
@pytest.mark.parametrize("use", [longest, torch.relu], ids=["few", "many"])
def test_a_graph_can_be_kept_and_what_needs_no_gradient_gets_none(use, needed):
    *tensors, stride, padding = arguments((3, 5, 12, 6, 3, 1, 1))
    given = [t.requires_grad_(i in needed) for i, t in enumerate(tensors)]
    total = use(conv1d(*given, stride, padding)).square().sum()
    total.backward(retain_graph=True)
    once = [None if t.grad is None else t.grad.clone() for t in given]
    total.backward()
    assert [grad is None for grad in once] == [not t.requires_grad for t in given]
    assert all(torch.equal(2 * a, t.grad) for a, t in zip(once, given, strict=True) if a is not None)


def test_a_gradient_that_is_not_a_number_stays_visible():
    *tensors, stride, padding = arguments((3, 5, 12, 6, 3, 1, 1))
    given = [t.requires_grad_() for t in tensors]
    upstream = torch.zeros(3, 6, 12)
    upstream[1, 2, 3] = float("nan")
    found = torch.autograd.grad(conv1d(*given, stride, padding), given, upstream)
    assert all(gradient.isnan().any() for gradient in found)


def test_what_it_returns_may_be_changed_in_place():
    *tensors, stride, padding = arguments((3, 5, 12, 6, 3, 1, 1))
    given = [t.requires_grad_() for t in tensors]
    found = [
        torch.autograd.grad(change(conv1d(*given, stride, padding)).amax(2).sum(), given)
        for change in (torch.relu, torch.relu_)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_second_derivative_and_many_gradients_at_once():
    *tensors, stride, padding = arguments((3, 5, 12, 6, 3, 1, 1))
    given = [t.requires_grad_() for t in tensors]
    found = []
    for layer in (conv1d, by_torch):
        out = layer(*given, stride, padding).amax(2)
        [first] = torch.autograd.grad(out.square().sum(), given[:1], create_graph=True)
        many = torch.randn(2, *out.shape, generator=torch.Generator().manual_seed(0))
        batched = torch.autograd.grad(out, given, many, is_grads_batched=True, retain_graph=True)
        found.append([*torch.autograd.grad(first.square().sum(), given, allow_unused=True)[:2], *batched])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*found, strict=True))


def test_the_oracle_computes_other_dtypes():
    *tensors, stride, padding = arguments((3, 5, 12, 6, 3, 1, 1))
    given = [t.double() for t in tensors]
    assert torch.equal(conv1d(*given, stride, padding), by_torch(*given, stride, padding))

"""GRU and LSTM layers by kernels: values and gradients against float64 truth, beside those of torch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast.kernels import gru, lstm
from mt2st_fast.kernels.recurrent import reference

# By layer: the op, its oracle, torch's operator and the number of gates.
LAYERS = {
    "gru": (gru, reference.gru, torch._VF.gru, 3),
    "lstm": (lstm, reference.lstm, torch._VF.lstm, 4),
}
# Steps, rows, inputs and numbers of a state: whole vectors and not, whole blocks of rows and not, one of each.
SHAPES = [(12, 32, 16, 64), (5, 7, 3, 32), (1, 1, 1, 16), (3, 130, 5, 10), (7, 33, 20, 50), (2, 70, 4, 128)]
# torch's tanh is exact within a bit, that of kernels within two: gradients through a GRU's candidates tell.
MARGIN, SMALLEST = 6.0, 3e-7


def arguments(name, shape, *, begins=True, biased=True):
    """(inputs, one or two first states, weights, biases) in float32."""
    T, N, F, H = shape
    gates = LAYERS[name][3]
    states = [torch.randn(N, H) if begins else None for _ in range(1 if name == "gru" else 2)]
    weights = [torch.randn(gates * H, F) / F**0.5, torch.randn(gates * H, H) / H**0.5]
    return [
        torch.randn(T, N, F),
        *states,
        *weights,
        *(torch.randn(gates * H) if biased else None for _ in "ih"),
    ]


def results(layer, given, dtype=torch.float32):
    """Outputs and gradients of a sum of all outputs with fixed weights."""
    own = [None if t is None else t.to(dtype, copy=True).requires_grad_() for t in given]
    outputs = layer(*own)
    torch.manual_seed(1)
    weighted = [(out * torch.randn(out.shape, dtype=torch.float64).to(dtype)).sum() for out in outputs]
    torch.stack(weighted).sum().backward()
    return [out.detach() for out in outputs] + [t.grad for t in own if t is not None]


def by_torch(name):
    def layer(inputs, *rest):
        n = 1 if name == "gru" else 2
        H = rest[n + 1].shape[1]
        begin = [inputs.new_zeros(inputs.shape[1], H) if s is None else s for s in rest[:n]]
        states = tuple(s.unsqueeze(0) for s in begin)
        weights = [w for w in rest[n:] if w is not None]
        biased = rest[-1] is not None
        found = LAYERS[name][2](
            inputs, states[0] if n == 1 else states, weights, biased, 1, 0.0, True, False, False
        )
        return found[0], *(last[0] for last in found[1:])

    return layer


@pytest.mark.parametrize("begins", [True, False], ids=["begins", "zeros"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_results_are_as_accurate_as_torchs(name, shape, begins):
    torch.manual_seed(0)
    given = arguments(name, shape, begins=begins, biased=begins)
    truth = results(LAYERS[name][1], given, torch.float64)
    ours, theirs = results(LAYERS[name][0], given), results(by_torch(name), given)
    assert len(ours) == len(theirs) == len(truth)
    for own, other, true in zip(ours, theirs, truth, strict=True):
        error, most = (own - true).abs().max(), (other - true).abs().max()
        assert own.shape == true.shape
        assert error <= MARGIN * most + SMALLEST * true.abs().max(), f"{error:.2e} beside torch's {most:.2e}"


@pytest.mark.parametrize("name", LAYERS)
def test_the_bits_do_not_depend_on_threads_or_on_what_memory_held(name):
    given = arguments(name, (6, 70, 8, 32))
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            torch.full((1 << 20,), float("nan"))  # what the next tensors may find in their memory
            found.append(results(LAYERS[name][0], given)[: 2 if name == "gru" else 3])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_strided_and_of_single_outputs(name):
    op, oracle, *_ = LAYERS[name]
    given = arguments(name, (4, 9, 6, 16))
    uses = {
        "transposed": lambda out: (out[0].transpose(0, 1).flatten(1) ** 2).sum(),
        "every other number": lambda out: (out[0][..., ::2] ** 2).sum(),
        "expanded": lambda out: out[0].sum(),
        "the last state": lambda out: (out[1] ** 2).sum(),
        "the last of all": lambda out: (out[-1] ** 2).sum(),
    }
    for how, use in uses.items():
        found = []
        for layer, dtype in ((op, torch.float32), (oracle, torch.float64)):
            own = [t.to(dtype, copy=True).requires_grad_() for t in given]
            found.append(torch.autograd.grad(use(layer(*own)), own))
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a.double(), b, rtol=1e-4, atol=1e-5), how


@pytest.mark.parametrize("name", LAYERS)
def test_a_graph_can_be_kept_and_what_needs_no_gradient_gets_none(name):
    given = [t.requires_grad_(i % 2 == 0) for i, t in enumerate(arguments(name, (3, 5, 4, 16)))]
    total = LAYERS[name][0](*given)[0].square().sum()
    total.backward(retain_graph=True)
    once = [None if t.grad is None else t.grad.clone() for t in given]
    total.backward()
    assert [grad is None for grad in once] == [not t.requires_grad for t in given]
    assert all(torch.equal(2 * a, t.grad) for a, t in zip(once, given, strict=True) if a is not None)


@pytest.mark.parametrize("name", LAYERS)
def test_what_it_returns_may_be_changed_in_place(name):
    given = [t.requires_grad_() for t in arguments(name, (3, 5, 4, 16))]
    found = []
    for change in (lambda out: out * 2, lambda out: out.mul_(2)):
        out = LAYERS[name][0](*given)
        found.append(torch.autograd.grad(change(out[0]).sum() + out[1].mul_(3).sum(), given[0])[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("name", LAYERS)
def test_a_second_derivative_is_torchs(name):
    op, oracle, *_ = LAYERS[name]
    given = arguments(name, (3, 5, 4, 16))
    found = []
    for layer, dtype in ((op, torch.float32), (oracle, torch.float64)):
        own = [t.to(dtype, copy=True).requires_grad_() for t in given]
        [first] = torch.autograd.grad(layer(*own)[0].square().sum(), own[:1], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), own, allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a.double(), b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_many_gradients_at_once(name):
    given = [t.requires_grad_() for t in arguments(name, (3, 5, 4, 16))]
    out = LAYERS[name][0](*given)[0]
    many = torch.randn(2, *out.shape)
    together = torch.autograd.grad(out, given, many, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        for a, b in zip(together, torch.autograd.grad(out, given, many[i], retain_graph=True), strict=True):
            assert torch.allclose(a[i], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_the_oracle_computes_other_dtypes(name):
    given = [t.double() for t in arguments(name, (3, 5, 4, 10))]
    assert all(
        torch.equal(a, b) for a, b in zip(LAYERS[name][0](*given), LAYERS[name][1](*given), strict=True)
    )


@pytest.mark.parametrize(("module", "name"), [(nn.GRU(4, 10), "gru"), (nn.LSTM(4, 10), "lstm")])
def test_the_oracle_is_torchs_layer(module, name):
    module = module.double()
    inputs = torch.randn(6, 5, 4, dtype=torch.float64)
    states = [None] * (1 if name == "gru" else 2)
    ours = LAYERS[name][1](inputs, *states, *module.parameters())
    outputs, last = module(inputs)
    theirs = outputs, *(each[0] for each in (last if name == "lstm" else (last,)))
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))

"""Activations: value and derivative of what kernels compile, against torch and its autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast.kernels import ACTIVATIONS, chosen_activation
from mt2st_fast.kernels.machine.jit import address_of, entry
from mt2st_fast.kernels.machine.simd import FLOAT_BYTES, WIDTH, load, store
from mt2st_fast.kernels.step.activations import ALWAYS, MOST_OPTIONS, NAMES, is_activation
from mt2st_fast.kernels.step.on_numba.activations import usual_value_and_slope, value_and_slope

MODULES = {
    "Tanh": nn.Tanh(), "GELU": nn.GELU(), "GELU by tanh": nn.GELU("tanh"), "SiLU": nn.SiLU(inplace=True),
    "LeakyReLU": nn.LeakyReLU(), "LeakyReLU, growing": nn.LeakyReLU(2.0), "LeakyReLU, falling": nn.LeakyReLU(-0.5),
    "ELU": nn.ELU(), "ELU, less": nn.ELU(0.3), "ELU, falling": nn.ELU(-1.5), "CELU": nn.CELU(),
    "CELU, less": nn.CELU(0.3), "SELU": nn.SELU(), "Sigmoid": nn.Sigmoid(), "LogSigmoid": nn.LogSigmoid(),
    "Softplus": nn.Softplus(), "Softplus, steep": nn.Softplus(5, 3), "Mish": nn.Mish(),
    "Hardsigmoid": nn.Hardsigmoid(), "Hardswish": nn.Hardswish(), "Hardtanh": nn.Hardtanh(),
    "Hardtanh, aside": nn.Hardtanh(-0.5, 2), "ReLU6": nn.ReLU6(), "Softsign": nn.Softsign(),
    "Tanhshrink": nn.Tanhshrink(),
}  # fmt: skip
# Where torch's kernels may be in error themselves, as after a cancellation: of value and derivative.
MARGIN = {"Tanhshrink": (2e-7, 2e-7), "GELU": (1e-6, 1e-6)}
EDGES = torch.tensor(
    [0.0, -0.0, 1e-30, -1e-30, 1e-6, -1e-6, 3.0, -3.0, 6.0, 20.0, -20.0, 88.5, -88.5, 90.0, -90.0, 1e5, -1e5, 1e10,
     -1e10, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]
)  # fmt: skip


@entry
def of_any(code, x, a, b, values, slopes):
    for i in range(0, len(x), WIDTH):
        at = FLOAT_BYTES * i
        value, slope = value_and_slope(code, load(address_of(x) + at), a, b)
        store(value, address_of(values) + at)
        store(slope, address_of(slopes) + at)


@entry
def of_usual(code, x, values, slopes):
    for i in range(0, len(x), WIDTH):
        at = FLOAT_BYTES * i
        value, slope = usual_value_and_slope(code, load(address_of(x) + at), np.float32(0), np.float32(0))
        store(value, address_of(values) + at)
        store(slope, address_of(slopes) + at)


def by_kernel(module, x, *, usual=False):
    chosen = chosen_activation(module)
    padded = np.zeros(-(-len(x) // WIDTH) * WIDTH, np.float32)
    padded[: len(x)] = x
    values, slopes = np.empty_like(padded), np.empty_like(padded)
    a, b = (*chosen.numbers, 0.0, 0.0)[:MOST_OPTIONS]
    if usual:
        of_usual(NAMES.index(chosen.name), padded, values, slopes)
    else:
        of_any(NAMES.index(chosen.name), padded, np.float32(a), np.float32(b), values, slopes)
    return torch.from_numpy(values[: len(x)]), torch.from_numpy(slopes[: len(x)])


def by_torch(module, x):
    x = x.clone().requires_grad_()
    values = module(x * 1.0)  # which a module may change in place
    values.sum().backward()
    return values.detach(), x.grad


@pytest.mark.parametrize("name", MODULES)
def test_values_and_derivatives_are_as_accurate_as_those_of_torch(name):
    draw = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 5.0, 40.0):
        x = torch.randn(4000, generator=draw) * scale
        truth, theirs = by_torch(MODULES[name], x.double()), by_torch(MODULES[name], x)
        for place, (found, wanted, of_torch) in enumerate(
            zip(by_kernel(MODULES[name], x), truth, theirs, strict=True)
        ):
            # In units of the result, where that is not next to 0.
            size, margin = wanted.abs().clamp(min=1.0), MARGIN.get(name, (4e-7, 4e-7))[place]
            error, their_error = (
                float(((each.double() - wanted).abs() / size).max()) for each in (found, of_torch)
            )
            assert error <= their_error + margin, (scale, place, error, their_error)


@pytest.mark.parametrize("name", MODULES)
def test_edges_are_as_in_torch(name):
    # torch's own GELU is infinite from 1e38 on, and NaN at infinity.
    x = EDGES[~(EDGES > 1e38)] if name == "GELU" else EDGES
    found, wanted = by_kernel(MODULES[name], x), by_torch(MODULES[name], x)
    torch.testing.assert_close(found[0], wanted[0], rtol=2e-6, atol=1e-6, equal_nan=True)
    told = wanted[0].isfinite()
    torch.testing.assert_close(found[1][told], wanted[1][told], rtol=2e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    "name", [name for name in MODULES if chosen_activation(MODULES[name]).name in ALWAYS]
)
def test_those_of_every_stack_are_the_same_beside_others(name):
    x = torch.linspace(-9, 9, 1000)
    assert all(map(torch.equal, by_kernel(MODULES[name], x), by_kernel(MODULES[name], x, usual=True)))


def test_every_activation_is_tested():
    assert {chosen_activation(module).name for module in MODULES.values()} == {*NAMES} - {"none", "relu"}
    assert not is_activation(nn.Identity())
    assert len(set(NAMES)) == len(ACTIVATIONS)


def falling(module):
    module.max_val = -1.0
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: nn.ELU(float("inf")), "takes a ELU whose alpha is a finite number of float32, not inf"),
        (
            lambda: nn.LeakyReLU(torch.tensor(0.1)),
            r"negative_slope is a finite number of float32, not tensor\(0.1",
        ),
        # torch raises an error for these, in a forward pass on float32
        (lambda: nn.Hardtanh(-1.0, 1e39), "max_val is a finite number of float32, not 1e\\+39"),
        (lambda: nn.Softplus(1, 10**400), "threshold is a finite number of float32, not 1000"),
        (lambda: nn.CELU(-1.0), "takes a CELU with a positive alpha, not -1.0"),
        (lambda: nn.Softplus(0), "takes a Softplus with a positive beta, not 0"),
        (
            lambda: nn.LeakyReLU(-0.5, inplace=True),
            "a negative negative_slope of LeakyReLU in place has no gradient",
        ),
        (lambda: nn.ELU(-1.5, inplace=True), "a negative alpha of ELU in place has no gradient"),
        (lambda: falling(nn.ReLU6()), "the min_val and max_val of a ReLU6 are 0.0 and -1.0"),
        (lambda: nn.GELU("none "), "does not support approximate='none ' of GELU"),
    ],
)
def test_an_option_that_the_kernel_does_not_know_is_named(module, reason):
    found = chosen_activation(module())
    assert isinstance(found, str)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found)

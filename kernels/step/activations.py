"""The activations of a stack of layers: torch's module, its options, and the function that kernels compile.

A new one is an entry of ACTIVATIONS. An element function(x, a, b) returns value and derivative for a block x; a and b
are the module's options, in the order of `options`. It is written in the functions of `heads/elements.py` and of this
file, float literals and arithmetic, without annotations; backends compile it with their own versions of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..heads.elements import absolute, exp_of_negative, log1p_and_reciprocal, where

MOST_OPTIONS = 2
LARGEST = torch.finfo(torch.float32).max


def tanh(x: Tensor) -> Tensor:
    """tanh(x)."""
    return x.tanh()


def expm1_of_negative(x: Tensor) -> Tensor:
    """exp(x) - 1 for x <= 0 only."""
    return torch.expm1(x)


# erfc(y) = t exp(-y^2 + P(t)), t = 1 / (1 + y / 2), within 1.2e-7 of itself (Press et al., Numerical Recipes).
P0, P1, P2, P3, P4 = -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806
P5, P6, P7, P8, P9 = 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277
HALF_ROOT_HALF, NORMAL, CUBE, ROOT_2_OVER_PI = 0.5 * 0.707106781, 0.398942280, 0.044715, 0.797884561
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _tanh(x, a, b):
    value = tanh(x)
    return value, 1.0 - value * value


def _gelu(x, a, b):
    t = 1.0 / (1.0 + absolute(x) * HALF_ROOT_HALF)
    p = P4 + t * (P5 + t * (P6 + t * (P7 + t * (P8 + t * P9))))
    p = P0 + t * (P1 + t * (P2 + t * (P3 + t * p)))
    bell = exp_of_negative(x * x * -0.5)
    tail = t * bell * exp_of_negative(p) * 0.5
    below = where(x > 0.0, 1.0 - tail, tail)
    return x * below, below + x * bell * NORMAL


def _gelu_by_tanh(x, a, b):
    square = x * x
    inner = tanh(x * ROOT_2_OVER_PI * (1.0 + square * CUBE))
    slope = (1.0 - inner * inner) * ROOT_2_OVER_PI * (1.0 + square * (CUBE * 3.0))
    return x * 0.5 * (1.0 + inner), 0.5 * (1.0 + inner) + x * 0.5 * slope


def _sigmoid(x, a, b):
    u = exp_of_negative(0.0 - absolute(x))
    r = 1.0 / (1.0 + u)
    value = where(x < 0.0, u * r, r)
    return value, value * (1.0 - value)


def _log_sigmoid(x, a, b):
    u = exp_of_negative(0.0 - absolute(x))
    log, r = log1p_and_reciprocal(u)
    return where(x > 0.0, 0.0, x) - log, where(x < 0.0, r, u * r)


def _silu(x, a, b):
    u = exp_of_negative(0.0 - absolute(x))
    r = 1.0 / (1.0 + u)
    gate = where(x < 0.0, u * r, r)
    return x * gate, gate * (1.0 + x * (1.0 - gate))


def _softplus(x, beta, threshold):
    y = x * beta
    u = exp_of_negative(0.0 - absolute(y))
    log, r = log1p_and_reciprocal(u)
    value = (where(y < 0.0, 0.0, y) + log) / beta
    return where(y > threshold, x, value), where(y > threshold, 1.0, where(y < 0.0, u * r, r))


def _mish(x, a, b):
    u = exp_of_negative(0.0 - absolute(x))
    r = 1.0 / (1.0 + u)
    gate = where(x < 0.0, u * r, r)
    # tanh(log(1 + e^x)) = (e^2x + 2 e^x) / (e^2x + 2 e^x + 2), by whichever of e^x and e^-x is small.
    square = u * u
    below = 1.0 / where(x < 0.0, square + 2.0 * u + 2.0, 1.0 + 2.0 * u + 2.0 * square)
    inner = where(x < 0.0, square + 2.0 * u, 1.0 + 2.0 * u) * below
    rest = where(x < 0.0, 2.0, 2.0 * square) * below
    return x * inner, inner + x * gate * (rest * (1.0 + inner))


def _hardsigmoid(x, a, b):
    y = x + 3.0
    y = where(y < 0.0, 0.0, where(y > 6.0, 6.0, y))
    return y / 6.0, where(x > -3.0, where(x < 3.0, 1.0 / 6.0, 0.0), 0.0)


def _hardswish(x, a, b):
    y = x + 3.0
    y = where(y < 0.0, 0.0, where(y > 6.0, 6.0, y))
    return x * y / 6.0, where(0.0 - x >= 3.0, 0.0, where(x >= 3.0, 1.0, x / 3.0 + 0.5))


def _leaky_relu(x, slope, b):
    return where(x > 0.0, x, x * slope), where(x > 0.0, 1.0, slope)


def _elu(x, alpha, b):
    return where(x > 0.0, x, expm1_of_negative(x) * alpha), where(x > 0.0, 1.0, exp_of_negative(x) * alpha)


def _celu(x, alpha, b):
    y = x / alpha
    return where(x > 0.0, x, expm1_of_negative(y) * alpha), where(x > 0.0, 1.0, exp_of_negative(y))


def _selu(x, a, b):
    value = where(x > 0.0, x * SELU_SCALE, expm1_of_negative(x) * (SELU_SCALE * SELU_ALPHA))
    return value, where(x > 0.0, SELU_SCALE, exp_of_negative(x) * (SELU_SCALE * SELU_ALPHA))


def _hardtanh(x, least, most):
    value = where(x < least, least, where(x > most, most, x))
    return value, where(x >= most, 0.0, where(least >= x, 0.0, 1.0))


def _softsign(x, a, b):
    r = 1.0 / (1.0 + absolute(x))
    return x / (1.0 + absolute(x)), r * r


def _tanhshrink(x, a, b):
    value = tanh(x)
    return x - value, value * value


class Activation(NamedTuple):
    """An activation as a module of torch.

    element: None for those that the kernels themselves know. options: the module's attributes that are numbers of the
    element function. only: values of other attributes that the module has to have. positive, rising: options that must
    be positive, or not less than the one before. in_place: options that must not be negative where the module works in
    place, for which torch has no gradient then. always: compiled for every stack; else only for stacks with any such.
    """

    name: str
    module: type[nn.Module]
    element: Any = None
    options: tuple[str, ...] = ()
    only: Mapping[str, Any] = MappingProxyType({})
    positive: tuple[str, ...] = ()
    rising: bool = False
    in_place: tuple[str, ...] = ()
    always: bool = False

    @property
    def watched(self) -> tuple[str, ...]:
        """The module's attributes that say what it computes."""
        return *self.options, *self.only, *(("inplace",) if self.in_place else ())


# The first two are the kernels' own: what comes out as it is, and what is known from its outputs.
ACTIVATIONS = (
    Activation("none", nn.Identity),
    Activation("relu", nn.ReLU),
    Activation("tanh", nn.Tanh, _tanh, always=True),
    Activation("gelu", nn.GELU, _gelu, only={"approximate": "none"}, always=True),
    Activation("gelu_tanh", nn.GELU, _gelu_by_tanh, only={"approximate": "tanh"}, always=True),
    Activation("silu", nn.SiLU, _silu),
    Activation("leaky_relu", nn.LeakyReLU, _leaky_relu, ("negative_slope",), in_place=("negative_slope",)),
    Activation("elu", nn.ELU, _elu, ("alpha",), in_place=("alpha",)),
    Activation("celu", nn.CELU, _celu, ("alpha",), positive=("alpha",)),
    Activation("selu", nn.SELU, _selu),
    Activation("sigmoid", nn.Sigmoid, _sigmoid),
    Activation("log_sigmoid", nn.LogSigmoid, _log_sigmoid),
    Activation("softplus", nn.Softplus, _softplus, ("beta", "threshold"), positive=("beta",)),
    Activation("mish", nn.Mish, _mish),
    Activation("hardsigmoid", nn.Hardsigmoid, _hardsigmoid),
    Activation("hardswish", nn.Hardswish, _hardswish),
    Activation("hardtanh", nn.Hardtanh, _hardtanh, ("min_val", "max_val"), rising=True),
    Activation("relu6", nn.ReLU6, _hardtanh, ("min_val", "max_val"), rising=True),
    Activation("softsign", nn.Softsign, _softsign),
    Activation("tanhshrink", nn.Tanhshrink, _tanhshrink),
)
NAMES = tuple(each.name for each in ACTIVATIONS)
ALWAYS = frozenset(each.name for each in ACTIVATIONS if each.always or each.element is None)


class Chosen(NamedTuple):
    """The name of an activation, and its options as numbers."""

    name: str
    numbers: tuple[float, ...] = ()


UNCHANGED = Chosen("none")


def is_activation(module: nn.Module) -> bool:
    """Whether kernels know activations of this class."""
    return any(type(module) is each.module for each in ACTIVATIONS[1:])


def chosen_activation(module: nn.Module) -> Chosen | str:
    """Return the activation that a module of such a class is, or why kernels do not know it."""
    name = type(module).__name__
    for each in ACTIVATIONS[1:]:
        if type(module) is each.module and all(getattr(module, key) == each.only[key] for key in each.only):
            numbers = [getattr(module, option) for option in each.options]
            reason = _number_obstacle(each, name, numbers) or _in_place_obstacle(each, module)
            return Chosen(each.name, tuple(map(float, numbers))) if reason is None else reason
    given = ", ".join(f"{key}={getattr(module, key)!r}" for key in _limits(module))
    return f"its kernel does not support {given} of {name}"


def _number_obstacle(activation: Activation, name: str, numbers: Sequence[Any]) -> str | None:
    for option, number in zip(activation.options, numbers, strict=True):
        if type(number) not in (int, float) or not abs(number) <= LARGEST:  # nor is NaN
            return f"its kernel takes a {name} whose {option} is a finite number of float32, not {number!r}"
        if option in activation.positive and not number > 0:
            return f"its kernel takes a {name} with a positive {option}, not {number}"
    if activation.rising and list(numbers) != sorted(numbers):  # torch raises an error
        return f"the {' and '.join(activation.options)} of a {name} are {numbers[0]} and {numbers[1]}"
    return None


def _in_place_obstacle(activation: Activation, module: nn.Module) -> str | None:
    for option in activation.in_place:
        if module.inplace and getattr(module, option) < 0:  # torch raises an error
            return f"a negative {option} of {type(module).__name__} in place has no gradient"
    return None


def _limits(module: nn.Module) -> list[str]:
    return list(
        dict.fromkeys(key for each in ACTIVATIONS if type(module) is each.module for key in each.only)
    )

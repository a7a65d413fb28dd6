"""An encoder of torch's layers as a stack that one kernel call trains: linear layers, activations and dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

from torch import nn

TAKEN = "nn.Linear, ReLU, Tanh, GELU, Dropout and Identity"
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], str]] = {
    nn.ReLU: lambda module: "relu",
    nn.Tanh: lambda module: "tanh",
    nn.GELU: lambda module: "gelu" if module.approximate == "none" else "gelu_tanh",
}


class StackLayers(NamedTuple):
    """The linear layers of an encoder, the name of each one's activation, and dropout before and after each."""

    linears: list[nn.Linear]
    activations: list[str]
    dropouts: list[nn.Dropout | None]  # one more than layers: the first is of the inputs


def stack_layers(encoder: nn.Module) -> StackLayers | str:
    """Return the layers of an encoder, or why it is no such stack."""
    if type(encoder) not in (nn.Sequential, nn.Linear):
        return f"it is for a WindowEncoder, a BagEncoder or an nn.Sequential of linear layers, not for {_name(encoder)}"
    if replaced := next((part for part in encoder.modules() if "forward" in vars(part)), None):
        return f"the forward method of a {_name(replaced)} was replaced"
    found = StackLayers([], [], [None])
    for module in _leaves(encoder):
        if (reason := _add(module, found)) is not None:
            return reason
    return found if found.linears else "the encoder has no nn.Linear"


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is nn.Sequential:
        for part in module:
            yield from _leaves(part)
    else:
        yield module


def _add(module: nn.Module, found: StackLayers) -> str | None:
    """Add the next module of the encoder; returns why it cannot come here, or None."""
    kind = type(module)
    if kind is nn.Linear:
        assert isinstance(module, nn.Linear)
        found.linears.append(module)
        found.activations.append("none")
        found.dropouts.append(None)
    elif kind is nn.Dropout:
        assert isinstance(module, nn.Dropout)
        if found.dropouts[-1] is not None:
            return "two Dropouts follow each other in the encoder"
        found.dropouts[-1] = module
    elif kind in _ACTIVATIONS:
        return _activate(module, found)
    elif kind is not nn.Identity:
        return f"it is for an nn.Sequential of {TAKEN}, and the encoder has a {_name(module)}"
    return None


def _activate(module: nn.Module, found: StackLayers) -> str | None:
    if not found.linears:
        return f"a {_name(module)} comes before the first nn.Linear of the encoder"
    if found.activations[-1] != "none":
        return "two activations follow each other in the encoder"
    # Dropout and ReLU give the same in either order.
    if found.dropouts[-1] is not None and type(module) is not nn.ReLU:
        return f"a Dropout comes before a {_name(module)} in the encoder"
    found.activations[-1] = _ACTIVATIONS[type(module)](module)
    return None


def _name(module: nn.Module) -> str:
    return type(module).__name__


class HeldModules:
    """Which modules an encoder consists of, and which parameters they have: whoever has looked may look again."""

    def __init__(self, encoder: nn.Module) -> None:
        self._places: list[dict[str, Any]] = [
            place for module in encoder.modules() for place in (module._modules, module._parameters)
        ]
        self._held = self._now()

    def _now(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._places)))

    def have_changed(self) -> bool:
        """Return whether another module or parameter is in the place of one, or one was added or removed."""
        now = self._now()
        return len(now) != len(self._held) or not all(map(is_, now, self._held))

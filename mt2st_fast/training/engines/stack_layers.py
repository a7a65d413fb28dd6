"""An encoder of torch's layers as a stack that one kernel call trains: linear layers, activations and dropout.

Before the layers, or instead of them, there may be a table of words (stack_front.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from mt2st_fast.training.engines.stack_front import FrontTable, front_table, is_table

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
    front: FrontTable | None  # makes the inputs of the first layer


def stack_layers(encoder: nn.Module) -> StackLayers | str:
    """Return the layers of an encoder, or why it is no such stack."""
    if type(encoder) not in (nn.Sequential, nn.Linear, nn.EmbeddingBag):
        return (
            "it is for a WindowEncoder, a BagEncoder, an nn.EmbeddingBag or an nn.Sequential of linear layers, not for "
            f"{_name(encoder)}"
        )
    split = _split_front(list(_leaves(encoder)))
    if isinstance(split, str):
        return split
    found = StackLayers([], [], [None], split[0])
    for module in split[1]:
        if (reason := _add(module, found)) is not None:
            return reason
    return found if found.linears or found.front else "the encoder has no nn.Linear"


def _split_front(modules: list[nn.Module]) -> tuple[FrontTable | None, list[nn.Module]] | str:
    """Return the table, if the first of these modules is one, and the modules after it; or why that cannot be."""
    if not modules or not is_table(modules[0]):
        return None, modules
    front = front_table(modules[0])
    if isinstance(front, str):
        return front
    rest = _without_flatten(modules[1:]) if front.how == "concat" else modules[1:]
    if rest is None:
        return "an nn.Embedding is not followed by an nn.Flatten of all but the first axis"
    return front, rest


def _without_flatten(modules: list[nn.Module]) -> list[nn.Module] | None:
    """Return the modules after an nn.Embedding without the nn.Flatten that has to follow; None if it does not."""
    for place, module in enumerate(modules):
        if type(module) is nn.Flatten and (module.start_dim, module.end_dim) in ((1, -1), (1, 2)):
            return [*modules[:place], *modules[place + 1 :]]
        if type(module) not in (nn.Dropout, nn.Identity):  # which do not care for axes
            break
    return None


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
        here = "a" if not is_table(module) else "after the first module a"
        return f"it is for an nn.Sequential of {TAKEN}, and the encoder has {here} {_name(module)}"
    return None


def _activate(module: nn.Module, found: StackLayers) -> str | None:
    if not found.linears:  # after a table, too
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

"""An encoder of torch's layers as a stack that one kernel call trains: linear layers, norms and what follows them.

Before the layers, or instead of them, there may be a table of words (stack_embedding.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from mt2st_fast.kernels import ACTIVATIONS, chosen_activation, is_activation
from mt2st_fast.kernels.step.activations import UNCHANGED, Chosen
from mt2st_fast.training.engines.kernel_calls.stack_embedding import StackEmbedding, is_table, stack_embedding
from mt2st_fast.training.engines.kernel_calls.stack_norms import NORMS, AnyNorm, norm_obstacle, width_of

_CLASSES = dict.fromkeys(each.module.__name__ for each in ACTIVATIONS[1:])
TAKEN = f"nn.Linear, {', '.join(each.__name__ for each in NORMS)}, Dropout, Identity, {', '.join(_CLASSES)}"


@dataclass(slots=True)
class StackLayer:
    """A linear layer, a norm, or both in this order, and the activation after them."""

    linear: nn.Linear | None
    norm: AnyNorm | None = None
    activation: Chosen = UNCHANGED

    @property
    def modules(self) -> list[nn.Module]:
        """Those that it has."""
        return [module for module in (self.linear, self.norm) if module is not None]

    @property
    def shape(self) -> tuple[int, int]:
        """How many outputs it has, and how many inputs."""
        if self.linear is not None:
            return self.linear.out_features, self.linear.in_features
        assert self.norm is not None
        return width_of(self.norm), width_of(self.norm)


class StackLayers(NamedTuple):
    """The layers of an encoder, and dropout before and after each."""

    layers: list[StackLayer]
    dropouts: list[nn.Dropout | None]  # one more than layers: the first is of the inputs
    embedding: StackEmbedding | None  # makes the inputs of the first layer


def stack_layers(encoder: nn.Module) -> StackLayers | str:
    """Return the layers of an encoder, or why it is no such stack."""
    if type(encoder) not in (nn.Sequential, nn.Linear, nn.EmbeddingBag, *NORMS):
        return (
            "it is for a WindowEncoder, a BagEncoder, an nn.EmbeddingBag or an nn.Sequential of linear layers, not for "
            f"{_name(encoder)}"
        )
    split = _split_embedding(list(_leaves(encoder)))
    if isinstance(split, str):
        return split
    found = StackLayers([], [None], split[0])
    for module in split[1]:
        if (reason := _add(module, found)) is not None:
            return reason
    return found if found.layers or found.embedding else "the encoder has no nn.Linear"


def _split_embedding(modules: list[nn.Module]) -> tuple[StackEmbedding | None, list[nn.Module]] | str:
    """Return the table, if the first of these modules is one, and the modules after it; or why that cannot be."""
    if not modules or not is_table(modules[0]):
        return None, modules
    embedding = stack_embedding(modules[0])
    if isinstance(embedding, str):
        return embedding
    rest = _without_flatten(modules[1:]) if embedding.how == "concat" else modules[1:]
    if rest is None:
        return "an nn.Embedding is not followed by an nn.Flatten of all but the first axis"
    return embedding, rest


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
        found.layers.append(StackLayer(module))
        found.dropouts.append(None)
    elif kind in NORMS:
        assert isinstance(module, AnyNorm)
        return _normalise(module, found)
    elif kind is nn.Dropout:
        assert isinstance(module, nn.Dropout)
        if found.dropouts[-1] is not None:
            return "two Dropouts follow each other in the encoder"
        found.dropouts[-1] = module
    elif is_activation(module):
        return _activate(module, found)
    elif kind is not nn.Identity:
        here = "a" if not is_table(module) else "after the first module a"
        return f"it is for an nn.Sequential of {TAKEN}, and the encoder has {here} {_name(module)}"
    return None


def _normalise(module: AnyNorm, found: StackLayers) -> str | None:
    if (reason := norm_obstacle(module)) is not None:
        return reason
    last, width = found.layers[-1] if found.layers else None, width_of(module)
    if last is not None and last.shape[0] != width:  # torch raises an error
        return (
            f"a {_name(module)} is over {width} numbers, and what comes before it has {last.shape[0]} outputs"
        )
    if last is None or last.norm or last.activation != UNCHANGED or found.dropouts[-1] is not None:
        found.layers.append(StackLayer(None, module))
        found.dropouts.append(None)
    else:  # in the pass over the outputs of the linear layer
        last.norm = module
    return None


def _activate(module: nn.Module, found: StackLayers) -> str | None:
    if not found.layers:  # after a table, too
        return f"a {_name(module)} comes before the first layer of the encoder"
    if found.layers[-1].activation != UNCHANGED:
        return "two activations follow each other in the encoder"
    # Dropout and ReLU give the same in either order.
    if found.dropouts[-1] is not None and type(module) is not nn.ReLU:
        return f"a Dropout comes before a {_name(module)} in the encoder"
    chosen = chosen_activation(module)
    if isinstance(chosen, str):
        return chosen
    found.layers[-1].activation = chosen
    return None


def _name(module: nn.Module) -> str:
    return type(module).__name__

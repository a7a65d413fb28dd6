"""How transformers makes an encoder anew: its class, and the arguments that its configuration does not tell.

A BertModel without pooling layer has the same configuration as one with: `add_pooling_layer` is an argument of the
class. A model that is loaded must have the layers that were saved, so such facts are taken from the encoder itself.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import torch
import transformers
from transformers import MODEL_MAPPING, AutoModel, PretrainedConfig, PreTrainedModel

from mt2st_fast.errors import InputError

AUTO = "AutoModel"  # for a class that a program registers there


class Making(NamedTuple):
    """The class of an encoder by its name, and the arguments besides the configuration; None if these are not known."""

    name: str
    arguments: dict[str, bool] | None


def making_of(encoder: PreTrainedModel) -> Making:
    """Return how an encoder is made: with which truth values of its class's arguments it has the layers that it has."""
    kind = type(encoder)
    name = _name_in_transformers(encoder)
    wanted = _parameters(encoder)
    for arguments in () if name is None else _choices(kind):
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                made = kind(copy.deepcopy(encoder.config), **arguments)
        except Exception:  # whatever a class raises, it is not made like this
            continue
        if _parameters(made) == wanted:
            return Making(str(name), arguments)
    return Making(f"{kind.__module__}.{kind.__qualname__}", None)


def way_to_load(making: Making) -> str | None:
    """Return how to load an encoder that transformers cannot create, in one sentence; None if it can."""
    if making.arguments is not None:
        return None
    return (
        f"the encoder is a {making.name}, which transformers cannot create from its configuration; to load it, create "
        "it, pass it to MultiTaskModel(config, encoder), and load the state dict"
    )


def made(config: PretrainedConfig, making: Making) -> PreTrainedModel:
    """Make an encoder. Raises InputError if transformers has no such class, or if its arguments are not known."""
    if making.arguments is None:
        raise InputError(str(way_to_load(making)))
    if making.name == AUTO:
        return AutoModel.from_config(config, **making.arguments)
    kind: Any = getattr(transformers, making.name, None)
    if not _is_model(kind):
        raise InputError(
            f"the encoder was a {making.name}, which transformers {transformers.__version__} does not have; install a "
            "version that has it"
        )
    return kind._from_config(config, **making.arguments)


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, PreTrainedModel)


def _name_in_transformers(encoder: PreTrainedModel) -> str | None:
    kind = type(encoder)
    if getattr(transformers, kind.__name__, None) is kind:
        return kind.__name__
    return AUTO if MODEL_MAPPING.get(type(encoder.config), None) is kind else None


def _choices(kind: type) -> Iterator[dict[str, bool]]:
    """Yield the arguments to try, without any first: all truth values of the parameters that have one by default."""
    defaults: Mapping[str, Any] = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if isinstance(parameter.default, bool)
    }
    tried = product(*([default, not default] for default in defaults.values()))
    choices = [
        {name: value for name, value in zip(defaults, values, strict=True) if value != defaults[name]}
        for values in tried
    ]
    yield from sorted(choices, key=len)


def _parameters(model: torch.nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}

"""An encoder and its heads as JSON and tensors, and back: the content of a saved model.

A custom encoder can be saved, too: it needs a method `configuration()` that returns the arguments of its class
(numbers, strings and tensors) by name. Classes are never looked up by a name from a file; the caller of a load
function passes in those that are not in this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.module_state import state_of, uncompiled, under_own_names
from mt2st_fast.model.sharded import check_whole
from mt2st_fast.model.task_json import tasks_from_json, tasks_to_json
from mt2st_fast.model_folder import read_model, write_model

KIND = "encoder and heads"
_KNOWN = (WindowEncoder, BagEncoder)


def save_modules(folder: str | Path, encoder: nn.Module, heads: MultiTaskHeads) -> None:
    """Write an encoder and its heads to a folder (see mt2st_fast.model_folder).

    Raises InputError for a folder that cannot be written, and for modules that `describe` refuses.
    """
    configuration, tensors = describe(encoder, heads)
    write_model(folder, KIND, configuration, tensors)


def load_modules(
    folder: str | Path, classes: Iterable[type] = (), device: str | torch.device = "cpu"
) -> tuple[nn.Module, MultiTaskHeads]:
    """Load (encoder, heads) from a folder, in evaluation mode; classes: those that are not in this package.

    Raises InputError for a folder that holds no such model or is damaged, and for an unknown class.
    """
    _, configuration, tensors = read_model(folder, KIND)
    encoder, heads = rebuild(configuration, tensors, classes)
    return encoder.to(device), heads.to(device)


def describe(encoder: nn.Module, heads: MultiTaskHeads) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return (configuration, tensors), JSON-able and by name, from which `rebuild` makes the same modules.

    Raises InputError for an encoder without `configuration()`, and for a task that is not a dataclass with a fused
    head.
    """
    encoder = uncompiled(encoder)
    check_whole(encoder)
    if not callable(getattr(encoder, "configuration", None)):
        raise InputError(
            f"a {type(encoder).__name__} cannot be saved: give it a method configuration() that returns its "
            "constructor arguments"
        )
    if reason := next(iter(heads.reasons_to_call().items()), None):
        raise InputError(
            f"the head of {reason[0]} {reason[1]}, so it cannot be saved; remove its hooks, merge its adapter, or "
            "replace it by a torch.nn.Linear"
        )
    arguments: Mapping[str, Any] = encoder.configuration()  # type: ignore[operator]
    tensors = {f"argument/{name}": value for name, value in arguments.items() if isinstance(value, Tensor)}
    tensors |= state_of(encoder, "encoder") | state_of(heads, "heads")
    linear = heads.linear(heads.main)
    configuration = {
        "encoder": {
            "class": type(encoder).__name__,
            "arguments": {name: value for name, value in arguments.items() if not isinstance(value, Tensor)},
        },
        "heads": {
            "in_features": linear.in_features,
            "bias": linear.bias is not None,
            "main": heads.main,
            "backend": heads.backend,
            "plan": heads.plan,
            **({} if heads.default_weights is None else {"weights": heads.default_weights}),
            **tasks_to_json({name: heads.task(name) for name in heads.names}),
        },
    }
    return configuration, tensors


def rebuild(
    configuration: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: Iterable[type] = ()
) -> tuple[nn.Module, MultiTaskHeads]:
    """Rebuild (encoder, heads) from what `describe` returned, in evaluation mode.

    Raises InputError for a class that is neither in this package nor among `classes`, and for parts that do not fit.
    """
    known = {each.__name__: each for each in (*_KNOWN, *classes)}
    of_encoder, of_heads = configuration["encoder"], configuration["heads"]
    given = of_encoder["arguments"] | _under(tensors, "argument/")
    try:
        with torch.random.fork_rng(devices=[]):  # random initial values, which are overwritten
            encoder: nn.Module = _class(known, of_encoder["class"])(**given)
            tasks = tasks_from_json(of_heads, classes)
            options = {name: of_heads[name] for name in ("bias", "backend", "plan")}
            heads = MultiTaskHeads(of_heads["in_features"], tasks, of_heads["main"], **options)
        for module, of_module in ((encoder, "encoder/"), (heads, "heads/")):
            stored = under_own_names(module, _under(tensors, of_module))
            _take_types(module, stored)
            module.load_state_dict(stored)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the saved model does not match its classes: {' '.join(str(error).split())[:300]}"
        ) from error
    heads.set_weights(of_heads.get("weights"))
    heads.set_active(heads.active)  # as the loaded state says; this freezes the others
    return encoder.eval(), heads.eval()


def _take_types(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the dtypes of the tensors that they are about to hold, float64 for example."""
    for name, held in (*module.named_parameters(), *module.named_buffers()):
        if name in tensors and held.dtype != tensors[name].dtype:
            held.data = held.data.to(tensors[name].dtype)


def _class(known: Mapping[str, type], name: str) -> type:
    if name not in known:
        raise InputError(f"the model uses an unknown class {name}; load it with classes=({name},)")
    return known[name]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

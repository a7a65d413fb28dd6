"""An encoder and its heads as JSON and tensors, and back: what a model's folder holds of them.

An encoder of one's own can be kept, too: it has a method `configuration()` that returns the arguments of its class,
numbers, texts and tensors by name. Classes are never looked up by a name from a file; who loads a model hands in those
that are not this package's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import Classification, MultiLabel, Regression
from mt2st_fast.model_folder import read_model, write_model

KIND = "encoder and heads"
_KNOWN = (WindowEncoder, BagEncoder, Classification, MultiLabel, Regression)


def save_modules(folder: str | Path, encoder: nn.Module, heads: MultiTaskHeads) -> None:
    """Write an encoder and its heads to a folder (see mt2st_fast.model_folder).

    Raises InputError for a folder that cannot be written, and for modules that `describe` refuses.
    """
    configuration, tensors = describe(encoder, heads)
    write_model(folder, KIND, configuration, tensors)


def load_modules(
    folder: str | Path, classes: Iterable[type] = (), device: str | torch.device = "cpu"
) -> tuple[nn.Module, MultiTaskHeads]:
    """(encoder, heads) of a folder, in evaluation mode; classes: those that are not of this package.

    Raises InputError for a folder that holds no such model, or is damaged, and for a class that is not known.
    """
    _, configuration, tensors = read_model(folder, KIND)
    encoder, heads = rebuild(configuration, tensors, classes)
    return encoder.to(device), heads.to(device)


def describe(encoder: nn.Module, heads: MultiTaskHeads) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(configuration, tensors), JSON-able and by name, from which `rebuild` makes the same modules.

    Raises InputError for an encoder without `configuration()` and for a task that is no dataclass of a fused head.
    """
    if not callable(getattr(encoder, "configuration", None)):
        raise InputError(
            f"a {type(encoder).__name__} cannot be kept: give it a method configuration() that returns the arguments "
            "of its class"
        )
    arguments: Mapping[str, Any] = encoder.configuration()  # type: ignore[operator]
    tensors = {f"argument/{name}": value for name, value in arguments.items() if isinstance(value, Tensor)}
    tensors |= {f"encoder/{name}": value for name, value in encoder.state_dict().items()}
    tensors |= {f"heads/{name}": value for name, value in heads.state_dict().items()}
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
            "active": list(heads.active),
            "backend": heads.backend,
            "plan": heads.plan,
            "tasks": [[name, *_task(heads, name)] for name in heads.names],
        },
    }
    return configuration, tensors


def _task(heads: MultiTaskHeads, name: str) -> tuple[str, dict[str, Any]]:
    """The class of a task and its options."""
    task = heads.tasks.get(name)
    if task is None or not is_dataclass(task):
        what = "loss of its own" if task is None else f"{type(task).__name__}, which is no dataclass"
        raise InputError(f"the task {name} cannot be kept: it is a {what}; keep heads without it")
    return type(task).__name__, asdict(task)


def rebuild(
    configuration: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: Iterable[type] = ()
) -> tuple[nn.Module, MultiTaskHeads]:
    """(encoder, heads) from what `describe` returned, in evaluation mode.

    Raises InputError for a class that is neither of this package nor among `classes`, and for what does not fit.
    """
    known = {each.__name__: each for each in (*_KNOWN, *classes)}
    of_encoder, of_heads = configuration["encoder"], configuration["heads"]
    given = of_encoder["arguments"] | _under(tensors, "argument/")
    try:
        with torch.random.fork_rng(devices=[]):  # random starts, which are written over
            encoder: nn.Module = _class(known, of_encoder["class"])(**given)
            tasks = {
                name: _class(known, kind)(**_tuples(options)) for name, kind, options in of_heads["tasks"]
            }
            options = {name: of_heads[name] for name in ("bias", "backend", "plan")}
            heads = MultiTaskHeads(of_heads["in_features"], tasks, of_heads["main"], **options)
        encoder.load_state_dict(_under(tensors, "encoder/"))
        heads.load_state_dict(_under(tensors, "heads/"))
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the model does not fit its classes: {' '.join(str(error).split())[:300]}"
        ) from error
    heads.set_active(of_heads["active"])
    return encoder.eval(), heads.eval()


def _class(known: Mapping[str, type], name: str) -> type:
    if name not in known:
        raise InputError(
            f"the model is made of a class {name}, which is not known here; load it with classes=({name},)"
        )
    return known[name]


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

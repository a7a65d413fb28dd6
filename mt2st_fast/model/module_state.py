"""The state of modules as files hold it: tensors alone, under names that torch.compile does not change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from mt2st_fast.errors import InputError

Value = TypeVar("Value")
_COMPILED = "_orig_mod"  # where torch.compile keeps the module that it wraps


def plain_name(name: str) -> str:
    """Return the name of a parameter without torch.compile's part of it: a file fits a module compiled or not."""
    return name.replace(f"{_COMPILED}.", "")


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that torch.compile has wrapped, or the module itself."""
    found: nn.Module = getattr(module, _COMPILED, module)
    return found


def state_of(module: nn.Module, part: str, *, keep_vars: bool = False) -> dict[str, Tensor]:
    """Return the state of a module as {"part/name": tensor}.

    Raises InputError for a value that is no tensor, as `get_extra_state` and quantized layers may have.
    """
    found = {f"{part}/{plain_name(name)}": v for name, v in module.state_dict(keep_vars=keep_vars).items()}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} is of type {type(value).__name__}, but files hold tensors alone, so the {part} cannot be "
                "saved; make it a buffer, or have get_extra_state return a tensor"
            )
    return found


def under_own_names(module: nn.Module, stored: Mapping[str, Value]) -> dict[str, Value]:
    """Return stored values under the names that a module has for them; what it does not have keeps its name."""
    own = {plain_name(name): name for name in module.state_dict(keep_vars=True)}
    return {own.get(plain_name(name), name): value for name, value in stored.items()}

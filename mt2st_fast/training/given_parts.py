"""Checks of the parts that a training is made of: a thing of another kind is refused where it is given, by its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.training.callbacks.callback import Callback

_CALLS = tuple(name for name in vars(Callback) if name.startswith("on_"))


def check_heads(heads: Any) -> None:
    """Raise InputError for anything but MultiTaskHeads, however these are wrapped."""
    if isinstance(heads, type) or not callable(getattr(heads, "set_active", None)):
        raise InputError(f"heads must be MultiTaskHeads, not {kind_of(heads)}")


def check_parts(encoder: Any, heads: Any, optimizer: Any = None, callbacks: Any = ()) -> None:
    """Raise InputError for a part of a Trainer that cannot be one."""
    if not isinstance(encoder, nn.Module):
        raise InputError(f"encoder must be a torch.nn.Module, not {kind_of(encoder)}")
    check_heads(heads)
    if optimizer is not None and not callable(optimizer):
        name = type(optimizer).__name__
        raise InputError(
            f"optimizer must be a function that makes one, since each run makes its own: pass lambda parameters: "
            f"{name}(parameters, ...), not {kind_of(optimizer)}"
        )
    if not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks must be a list of callbacks, not {kind_of(callbacks)}; pass [callback]")
    for callback in callbacks:
        missing = [name for name in _CALLS if not callable(getattr(callback, name, None))]
        if isinstance(callback, type) or missing:
            raise InputError(
                f"a callback must be an instance of a subclass of mt2st_fast.Callback, not {kind_of(callback)}"
            )


def kind_of(value: Any) -> str:
    """Return "the class X" for a class, and "an instance of X" for anything else."""
    return (
        f"the class {value.__name__}" if isinstance(value, type) else f"an instance of {type(value).__name__}"
    )

"""Counts of what a GPU would be told to do, and a mode in which nobody may wait for it; on any machine.

A launch is a Triton kernel, interpreted or not, or a torch operator that computes. A torch operator may be several
kernels: MANY holds those that we know of. In torch.profiler's counts of a GPU memsets come on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

# Operators that compute nothing, beside views.
FREE = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::lift_fresh", "aten::set_", "aten::resize_", "aten::is_pinned", "aten::is_coalesced", "aten::_coalesced_",
    "aten::_sparse_coo_tensor_with_dims_and_tensors", "aten::detach", "aten::_dimI", "aten::_dimV", "aten::sparse_dim",
    "aten::dense_dim", "aten::_reshape_alias", "aten::is_same_size", "aten::stride", "aten::storage_offset",
}  # fmt: skip
MANY = {"aten::sort": 10, "aten::argsort": 10, "aten::cumsum": 2, "aten::nonzero": 4, "aten::_unique2": 12}
# Operators whose result a host has to see before it can go on.
WAITS = {
    "aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::masked_select", "aten::is_nonzero",
    "aten::equal", "aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
    "aten::bincount", "aten::_assert_async",
}  # fmt: skip


@dataclass
class Launches:
    """What was launched, in order; a torch operator that is several kernels stands there as often."""

    names: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """How many launches there were."""
        return len(self.names)

    @property
    def triton(self) -> list[str]:
        """The Triton kernels alone."""
        return [name for name in self.names if not name.startswith("aten::")]


class WaitError(AssertionError):
    """Somebody has asked for what only the device knows."""


class _Counting(TorchDispatchMode):
    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not (name in FREE or _is_view(func) or not name.startswith("aten::")):
            self.launches.names += [name] * MANY.get(name, 1)
        return func(*args, **(kwargs or {}))


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in WAITS or (name == "aten::index" and _has_mask(args)):
            raise WaitError(f"{name} waits for the device")
        if name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None:
            raise WaitError("repeat_interleave without output_size waits for the device")
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    returned = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def _has_mask(args: Any) -> bool:
    return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


@contextmanager
def counted_launches(*, execute: bool = True) -> Iterator[Launches]:
    """`launches.total` and `launches.names` of the block. execute: False leaves interpreted kernels out, whose results
    are then whatever memory holds: for sizes that an interpreter does not get through."""
    launches = Launches()
    with _triton_launches(launches, execute), _Counting(launches):
        yield launches


@contextmanager
def refused_waits() -> Iterator[None]:
    """Raises WaitError where a host would wait for a device: also for `int(tensor)`, `bool(tensor)`, `.tolist()`."""

    def refused(name: str) -> Any:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            raise WaitError(f"Tensor.{name} waits for the device")

        return method

    with ExitStack() as stack:
        stack.enter_context(_triton_launches(Launches(), execute=True))
        for name in ("item", "tolist", "numpy", "cpu", "__int__", "__bool__", "__float__", "__index__"):
            stack.enter_context(mock.patch.object(Tensor, name, refused(name)))
        stack.enter_context(_Refusing())
        yield


_ORIGINAL = {name: getattr(Tensor, name) for name in ("item", "tolist", "numpy", "cpu")}
_ORIGINAL |= {name: getattr(Tensor, name) for name in ("__int__", "__bool__", "__float__", "__index__")}


@contextmanager
def _triton_launches(launches: Launches, execute: bool) -> Iterator[None]:
    """What Triton does to run a kernel, in the interpreter with torch's own operators, is no launch and no wait."""
    from triton.runtime import interpreter, jit

    run, call = jit.JITFunction.run, interpreter.GridExecutor.__call__

    def counted_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("warmup"):
            launches.names.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    def counted_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.names.append(self.fn.__name__)
        if not execute:
            return None
        with ExitStack() as stack:
            stack.enter_context(_disable_current_modes())
            for name, method in _ORIGINAL.items():
                stack.enter_context(mock.patch.object(Tensor, name, method))
            return call(self, *args, **kwargs)

    with (
        mock.patch.object(jit.JITFunction, "run", counted_run),
        mock.patch.object(interpreter.GridExecutor, "__call__", counted_call),
    ):
        yield

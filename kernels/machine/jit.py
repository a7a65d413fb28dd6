"""The one place for Numba's decorators and flags.

A kernel that Python calls is an `entry` or a `Kernel`: its machine code is kept (cache.py), with all that was compiled
into it. A `helper` is called by kernels alone, and kept with them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba
import torch
from numba.core import event, types
from numba.extending import intrinsic

from .cache import kernel_cache
from .compiling import clock

# Sums may be reordered (that is what lets them vectorise; the order is fixed at compile time, so the same
# call still gives the same bits). NaN and infinity keep their meaning: a diverged loss has to be seen.
_REORDERED = {"reassoc", "contract", "nsz", "arcp"}


def elementwise(function: Callable) -> Any:
    """Arithmetic on vectors or scalars, inlined into kernels: no reordering, so range reduction stays exact."""
    return numba.njit(fastmath={"contract"}, inline="never", error_model="numpy")(function)


def helper(function: Callable) -> Any:
    """A serial loop that kernels call."""
    return numba.njit(fastmath=_REORDERED, error_model="numpy")(function)


def entry(function: Callable) -> Any:
    """A serial loop that Python calls, and kernels may."""
    return _kept(numba.njit(fastmath=_REORDERED, error_model="numpy")(function))


def exact_entry(function: Callable) -> Any:
    """An entry whose arithmetic is done as it is written."""
    return _kept(numba.njit(function))


def _kept(dispatcher: Any) -> Any:
    cache = kernel_cache(dispatcher.py_func)
    if cache is not None:
        dispatcher._cache = cache  # what its enable_caching() does with Numba's own
    return dispatcher


class _OnTheClock(event.Listener):
    """Times what Numba compiles for this package; a user's own functions are none of its business."""

    def on_start(self, event: Any) -> None:
        if _is_ours(event):
            clock.start(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: Any) -> None:
        if _is_ours(event):
            clock.stop()


def _is_ours(event: Any) -> bool:
    return event.data["dispatcher"].py_func.__module__.startswith(_PACKAGE)


_PACKAGE = __name__.rpartition(".machine.")[0]
event.register("numba:compile", _OnTheClock())


# Below this many float32 numbers that are read the start of a parallel region costs more than it saves.
PARALLEL_FLOATS = 1 << 18
MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def thread_count() -> int:
    """Threads that a parallel kernel uses: as many as torch does."""
    return min(torch.get_num_threads(), MOST_THREADS)


class Kernel:
    """One Python function in two variants, each compiled when it is first called: serial for small work, parallel over
    its outer prange."""

    def __init__(self, function: Callable) -> None:
        options: Any = {"fastmath": _REORDERED, "error_model": "numpy", "nogil": True}
        self.serial = _kept(numba.njit(**options)(_renamed(function, "serial")))
        self.parallel = _kept(numba.njit(parallel=True, **options)(_renamed(function, "parallel")))

    def __call__(self, *args: Any, parallel: bool) -> Any:
        threads = thread_count()
        if not parallel or threads == 1:
            return self.serial(*args)
        if numba.get_num_threads() != threads:
            numba.set_num_threads(threads)
        return self.parallel(*args)


def _renamed(function: Callable, variant: str) -> FunctionType:
    """A copy under a name of its own: Numba's cache knows a function by its name, not by its flags, and
    would load one variant for the other."""
    copy = FunctionType(function.__code__, function.__globals__)
    copy.__qualname__ = f"{function.__qualname__}_{variant}"
    copy.__doc__ = function.__doc__
    return copy


def _pointer_to(element: Any) -> Any:
    @intrinsic
    def pointer(typing_context, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.inttoptr(args[0], context.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(types.int64), codegen

    return pointer


# K targets of one type each arrive as K addresses: a tuple of arrays would compile anew for every K.
pointer_to_int64 = _pointer_to(types.int64)
pointer_to_float32 = _pointer_to(types.float32)

"""The one place for Numba's decorators and flags.

Numba's cache looks at the file of a kernel, not at the files of what it calls: after a change here, or in what
kernels of other files call, remove kernels/__pycache__.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba
import torch
from numba.core import types
from numba.extending import intrinsic

# Sums may be reordered (that is what lets them vectorise; the order is fixed at compile time, so the same
# call still gives the same bits). NaN and infinity keep their meaning: a diverged loss has to be seen.
_REORDERED = {"reassoc", "contract", "nsz", "arcp"}


def elementwise(function: Callable, *, cache: bool = True) -> Any:
    """Arithmetic on vectors or scalars, inlined into kernels: no reordering, so range reduction stays exact."""
    return numba.njit(cache=cache, fastmath={"contract"}, inline="never", error_model="numpy")(function)


def helper(function: Callable) -> Any:
    """A serial loop that kernels call."""
    return numba.njit(cache=True, fastmath=_REORDERED, error_model="numpy")(function)


# Below this many float32 numbers that are read the start of a parallel region costs more than it saves.
PARALLEL_FLOATS = 1 << 18
MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


def thread_count() -> int:
    """Threads that a parallel kernel uses: as many as torch does."""
    return min(torch.get_num_threads(), MOST_THREADS)


class Kernel:
    """One Python function compiled twice: serial for small work, parallel over its outer prange."""

    def __init__(self, function: Callable) -> None:
        options: Any = {"cache": True, "fastmath": _REORDERED, "error_model": "numpy", "nogil": True}
        self.serial = numba.njit(**options)(_renamed(function, "serial"))
        self.parallel = numba.njit(parallel=True, **options)(_renamed(function, "parallel"))

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

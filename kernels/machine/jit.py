"""The one place for Numba's decorators and flags.

A kernel that Python calls is an `entry`, or a `Kernel` (team.py): its machine code is cached (cache.py) together with
everything compiled into it. A `helper` is called only by kernels, and cached with them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core import event, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

from .cache import KernelCache, kernel_cache
from .compiling import clock
from .registry import NO_NUMBA

if getattr(numba.config, "DISABLE_JIT", 0):  # set as it is imported, so that no type checker knows it
    # They work on addresses and vectors, which Python does not have.
    raise ImportError(f"{NO_NUMBA} is set, and kernels for CPUs run only compiled; unset it", name=NO_NUMBA)

log = logging.getLogger("mt2st_fast")

# Sums may be reordered so that they vectorize; the order is fixed at compile time, so the same call still gives the
# same bits. NaN and infinity keep their meaning: a diverged loss must be visible.
_REORDERED = {"reassoc", "contract", "nsz", "arcp"}


def _compilers() -> tuple[Any, Any]:
    """Return the compilers of helpers and of kernels."""
    try:
        from .linking import HelperCompiler, KernelCompiler
    except ImportError as error:  # a version of Numba that is another inside: its own way takes longer
        log.warning("kernels compile more slowly: %s", error)
        return Compiler, Compiler
    return HelperCompiler, KernelCompiler


_OF_HELPERS, _OF_KERNELS = _compilers()

# Whether references to arrays are counted. Unless told, Numba compiles a function as the one that calls it first.
_COUNTED: dict[str, Any] = {"_nrt": True}
_BORROWED: dict[str, Any] = {"_nrt": False}
_LINKED: dict[str, Any] = {
    "pipeline_class": _OF_HELPERS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
}  # fmt: skip
_WHOLE: dict[str, Any] = {"pipeline_class": _OF_KERNELS, "no_cfunc_wrapper": True}


def elementwise(function: Callable) -> Any:
    """For arithmetic on vectors or scalars, inlined into kernels.

    Without reordering, so range reduction stays exact.
    """
    return numba.njit(fastmath={"contract"}, inline="never", error_model="numpy", **_COUNTED, **_LINKED)(
        function
    )


def helper(function: Callable) -> Any:
    """For a serial loop that kernels call."""
    return numba.njit(fastmath=_REORDERED, error_model="numpy", **_COUNTED, **_LINKED)(function)


def inlined(function: Callable) -> Any:
    """For a helper that takes functions: as part of its caller.

    A function is known by its type. As an argument it is also an address of Python's, with which no code can be cached;
    inlined, nothing is left of it.
    """
    return numba.njit(fastmath=_REORDERED, error_model="numpy", forceinline=True, **_COUNTED, **_LINKED)(
        function
    )


def borrower(function: Callable) -> Any:
    """For a helper that is called for every row or tile: it counts no references to the arrays that it works on.

    Counting takes a call for each array, for which every vector leaves its register. The caller keeps the arrays. A
    borrower makes none, also by numba.carray, which Numba refuses; and it calls nothing that returns a new one, which
    would never be freed.
    """
    return numba.njit(fastmath=_REORDERED, error_model="numpy", **_BORROWED, **_LINKED)(function)


def entry(function: Callable) -> Any:
    """For a serial loop that Python calls; kernels may call it, too."""
    return _kept(numba.njit(fastmath=_REORDERED, error_model="numpy", **_COUNTED, **_WHOLE)(function))


def free_entry(function: Callable) -> Any:
    """An entry that releases the GIL."""
    return _kept(numba.njit(fastmath=_REORDERED, error_model="numpy", nogil=True, **_WHOLE)(function))


def exact_entry(function: Callable) -> Any:
    """An entry whose arithmetic is performed as written."""
    return _kept(numba.njit(**_COUNTED, **_WHOLE)(function))


def _kept(dispatcher: Any) -> Any:
    cache = kernel_cache(dispatcher.py_func)
    if cache is not None:
        dispatcher._cache = cache  # as its enable_caching() does with Numba's own cache
    return dispatcher


class _OnTheClock(event.Listener):
    """Time what Numba compiles for this package, but not a user's own functions.

    The cyclic garbage collector is paused meanwhile: a compiler makes a great many objects that refer to each other and
    stay alive, and every collection would traverse all of them.
    """

    def __init__(self) -> None:
        self._depth, self._paused = 0, False  # Numba compiles for one thread at a time

    def on_start(self, event: Any) -> None:
        if _is_ours(event):
            self._depth += 1
            if gc.isenabled():
                gc.disable()
                self._paused = True
            clock.start(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: Any) -> None:
        if not _is_ours(event):
            return
        clock.stop()
        self._depth -= 1
        if self._paused and not self._depth:
            self._paused = False
            gc.enable()
        dispatcher = event.data["dispatcher"]
        # (The event's own is_failed is inverted, still in Numba 0.68.)
        if tuple(event.data["args"]) not in dispatcher.overloads and isinstance(
            dispatcher._cache, KernelCache
        ):
            dispatcher._cache.give_up()


def _is_ours(event: Any) -> bool:
    return event.data["dispatcher"].py_func.__module__.startswith(_PACKAGE)


_PACKAGE = __name__.rpartition(".machine.")[0]
event.register("numba:compile", _OnTheClock())


def _pointer_to(element: Any) -> Any:
    @intrinsic
    def pointer(typing_context, address):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return builder.inttoptr(args[0], context.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(types.int64), codegen

    return pointer


# K targets of one type arrive as K addresses: a tuple of arrays would be compiled anew for every K.
pointer_to_int32 = _pointer_to(types.int32)
pointer_to_int64 = _pointer_to(types.int64)
pointer_to_float32 = _pointer_to(types.float32)


@helper
def address_of(array):  # type: ignore[no-untyped-def]
    """Return the address of its first number, as int64: otherwise helpers would be compiled for `uintp`, too."""
    return np.int64(array.ctypes.data)

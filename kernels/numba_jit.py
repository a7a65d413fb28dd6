"""The one place for Numba's decorators and flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

# Sums may be reordered (that is what lets them vectorise; the order is fixed at compile time, so the same
# call still gives the same bits). NaN and infinity keep their meaning: a diverged loss has to be seen.
_REORDERED = {"reassoc", "contract", "nsz", "arcp"}


def elementwise(function: Callable) -> Any:
    """A scalar helper that is inlined into kernels: no reordering, so range reduction stays exact."""
    return numba.njit(cache=True, fastmath={"contract"}, inline="never", error_model="numpy")(function)


def helper(function: Callable) -> Any:
    """A serial loop that kernels call."""
    return numba.njit(cache=True, fastmath=_REORDERED, error_model="numpy")(function)


MOST_THREADS: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]


class Kernel:
    """One Python function compiled twice: serial for small work, parallel over its outer prange."""

    def __init__(self, function: Callable) -> None:
        options: Any = {"cache": True, "fastmath": _REORDERED, "error_model": "numpy", "nogil": True}
        self.serial = numba.njit(**options)(function)
        self.parallel = numba.njit(parallel=True, **options)(function)

    def __call__(self, *args: Any, parallel: bool) -> Any:
        threads = min(torch.get_num_threads(), MOST_THREADS)
        if not parallel or threads == 1:
            return self.serial(*args)
        if numba.get_num_threads() != threads:
            numba.set_num_threads(threads)
        return self.parallel(*args)


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


@intrinsic
def float_bits(typing_context, value):  # type: ignore[no-untyped-def]
    """The bits of a float32 as int32."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


@intrinsic
def bits_float(typing_context, value):  # type: ignore[no-untyped-def]
    """The float32 with these int32 bits."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen

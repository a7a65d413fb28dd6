"""The one place for Numba's decorators and flags.

Numba's cache looks at the file of a kernel, not at the files of what it calls: after a change here remove
kernels/__pycache__. What a kernel calls otherwise stands in its own file.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
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
        self.serial = numba.njit(**options)(_renamed(function, "serial"))
        self.parallel = numba.njit(parallel=True, **options)(_renamed(function, "parallel"))

    def __call__(self, *args: Any, parallel: bool) -> Any:
        threads = min(torch.get_num_threads(), MOST_THREADS)
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


def _float32_intrinsic(build: Callable[[Any, Any], Any], doc: str) -> Any:
    """A float32 -> float32 operation on bits, in 32-bit integers throughout: Numba's own arithmetic would
    widen them to 64 bits, and a loop of mixed widths vectorises badly."""

    @intrinsic
    def operation(typing_context, value):  # type: ignore[no-untyped-def]
        def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
            return build(builder, args[0])

        return types.float32(types.float32), codegen

    operation.__doc__ = doc
    return operation


_I32, _F32 = ir.IntType(32), ir.FloatType()


def _bits(value: int) -> Any:
    return ir.Constant(_I32, value)


def _build_power_of_two(builder: Any, n: Any) -> Any:
    biased = builder.add(builder.fptosi(n, _I32), _bits(127))
    return builder.bitcast(builder.shl(biased, _bits(23)), _F32)


def _build_exponent(builder: Any, x: Any) -> Any:
    biased = builder.lshr(builder.bitcast(x, _I32), _bits(23))
    return builder.sitofp(builder.sub(biased, _bits(127)), _F32)


def _build_mantissa(builder: Any, x: Any) -> Any:
    fraction = builder.and_(builder.bitcast(x, _I32), _bits(0x007FFFFF))
    return builder.bitcast(builder.or_(fraction, _bits(0x3F800000)), _F32)


def _build_truncate(builder: Any, x: Any) -> Any:
    return builder.sitofp(builder.fptosi(x, _I32), _F32)


power_of_two = _float32_intrinsic(_build_power_of_two, "2^n for a whole n in [-126, 127].")
exponent_of = _float32_intrinsic(_build_exponent, "The exponent of a positive normal x.")
mantissa_of = _float32_intrinsic(_build_mantissa, "The mantissa, in [1, 2), of a positive normal x.")
truncate = _float32_intrinsic(_build_truncate, "x without its fraction, for |x| < 2^31.")

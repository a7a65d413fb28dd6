"""float32 vectors for Numba kernels: one register wide, with Python's operators.

    v = load(address) + bias          # a vector; a number is broadcast
    peak = select(v > peak, v, peak)  # a comparison gives a mask

Numba vectorizes loops over arrays, but then stores and reloads every intermediate array. Written with vectors, a loop
over classes keeps the running maximum and sum of WIDTH rows in registers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from .intrinsics import intrinsic_of

_FEATURES = llvmlite.binding.get_host_cpu_features()

FLOAT_BYTES = 4
# float32 numbers per vector register.
WIDTH: int = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx2") else 4

_I32, _F32 = ir.IntType(32), ir.FloatType()
_FLOATS, _INTEGERS = ir.VectorType(_F32, WIDTH), ir.VectorType(_I32, WIDTH)
_MASK = ir.VectorType(ir.IntType(1), WIDTH)
# a * b + c in one instruction, if there is one. Nothing else is reordered: range reduction stays exact.
_CONTRACT = ("contract",)


class _Register(types.Type):
    """The Numba type of a vector or of a mask."""


vector_type = _Register("float32_vector")
mask_type = _Register("mask")


@register_model(_Register)
class _RegisterModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):  # type: ignore[no-untyped-def]
        super().__init__(manager, numba_type, _FLOATS if numba_type is vector_type else _MASK)


# --- in LLVM ---------------------------------------------------------------------------------------------


def load_vector(builder: Any, pointer: Any) -> Any:
    """Load a vector from memory of any alignment."""
    return builder.load(builder.bitcast(pointer, _FLOATS.as_pointer()), align=4)


def store_vector(builder: Any, vector: Any, pointer: Any) -> None:
    """Store a vector to memory of any alignment."""
    builder.store(vector, builder.bitcast(pointer, _FLOATS.as_pointer()), align=4)


def broadcast(builder: Any, scalar: Any) -> Any:
    """Fill a vector with one number."""
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTEGERS, [0] * WIDTH))


def _as_vector(builder: Any, value: Any, numba_type: Any) -> Any:
    if numba_type is vector_type:
        return value
    # Numba types a literal as float64.
    return broadcast(builder, builder.fptrunc(value, _F32) if numba_type == types.float64 else value)


# --- operators -------------------------------------------------------------------------------------------


def _binary(symbol: Callable, result: Any, build: Callable[[Any, Any, Any], Any]) -> None:
    """Teach Numba `symbol` for two vectors, or for a vector and a number, which is rounded to float32."""
    numbers = (vector_type, types.float32, types.float64)

    @infer_global(symbol)
    class _Typing(AbstractTemplate):
        def generic(self, args, kws):  # type: ignore[no-untyped-def]
            if len(args) == 2 and vector_type in args and all(arg in numbers for arg in args):
                return signature(result, *args)
            return None

    def lower(context, builder, sig, args):  # type: ignore[no-untyped-def]
        x, y = (_as_vector(builder, value, kind) for value, kind in zip(args, sig.args, strict=True))
        return build(builder, x, y)

    for left, right in ((0, 0), (0, 1), (1, 0), (0, 2), (2, 0)):
        lower_builtin(symbol, numbers[left], numbers[right])(lower)


_binary(operator.add, vector_type, lambda b, x, y: b.fadd(x, y, flags=_CONTRACT))
_binary(operator.sub, vector_type, lambda b, x, y: b.fsub(x, y, flags=_CONTRACT))
_binary(operator.mul, vector_type, lambda b, x, y: b.fmul(x, y, flags=_CONTRACT))
_binary(operator.truediv, vector_type, lambda b, x, y: b.fdiv(x, y))
_binary(operator.lt, mask_type, lambda b, x, y: b.fcmp_ordered("<", x, y))
_binary(operator.gt, mask_type, lambda b, x, y: b.fcmp_ordered(">", x, y))
_binary(operator.ge, mask_type, lambda b, x, y: b.fcmp_ordered(">=", x, y))
_binary(operator.eq, mask_type, lambda b, x, y: b.fcmp_ordered("==", x, y))


@infer_global(operator.and_)
class _AndTyping(AbstractTemplate):
    def generic(self, args, kws):  # type: ignore[no-untyped-def]
        return signature(mask_type, *args) if args == (mask_type, mask_type) else None


@lower_builtin(operator.and_, mask_type, mask_type)
def _lower_and(context, builder, sig, args):  # type: ignore[no-untyped-def]
    return builder.and_(*args)


# --- functions -------------------------------------------------------------------------------------------


@intrinsic_of(vector_type, types.int64)
def load(builder, address):  # type: ignore[no-untyped-def]
    """Load the WIDTH float32 numbers at an address."""
    return load_vector(builder, builder.inttoptr(address, _F32.as_pointer()))


@intrinsic_of(types.void, vector_type, types.int64)
def store(builder, vector, address):  # type: ignore[no-untyped-def]
    """Store a vector to an address."""
    store_vector(builder, vector, builder.inttoptr(address, _F32.as_pointer()))


def _prefetch(builder: Any, address: Any, to_write: bool) -> None:
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    declared = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    called = cgutils.get_or_insert_function(builder.module, declared, "llvm.prefetch.p0")
    builder.call(called, [pointer, *(ir.Constant(_I32, value) for value in (int(to_write), 3, 1))])


@intrinsic_of(types.void, types.int64)
def prefetch(builder, address):  # type: ignore[no-untyped-def]
    """Prefetch the cache line of an address that is about to be read; any address is allowed."""
    _prefetch(builder, address, to_write=False)


@intrinsic_of(types.void, types.int64)
def prefetch_to_write(builder, address):  # type: ignore[no-untyped-def]
    """Prefetch a line that is about to be written; this also invalidates copies in other cores' caches."""
    _prefetch(builder, address, to_write=True)


splat = intrinsic_of(vector_type, types.float32)(broadcast)


@intrinsic
def select(typing_context, mask, yes, no):  # type: ignore[no-untyped-def]
    """Select per lane: yes where the mask is set, else no; vectors or numbers."""

    def codegen(context, builder, sig, args):  # type: ignore[no-untyped-def]
        m, x, y = args
        return builder.select(m, _as_vector(builder, x, yes), _as_vector(builder, y, no))

    return vector_type(mask_type, yes, no), codegen


class _RootTyping(AbstractTemplate):
    key = np.sqrt

    def generic(self, args, kws):  # type: ignore[no-untyped-def]
        return signature(vector_type, vector_type) if args == (vector_type,) else None


# With its type: as a decorator this asks for the module of np.sqrt, which NumPy does not tell before 2.2.
infer_global(np.sqrt, types.Function(_RootTyping))


@lower_builtin(np.sqrt, vector_type)
def _lower_root(context, builder, sig, args):  # type: ignore[no-untyped-def]
    function = ir.FunctionType(_FLOATS, [_FLOATS])
    called = cgutils.get_or_insert_function(builder.module, function, f"llvm.sqrt.v{WIDTH}f32")
    return builder.call(called, args)


def _integers(value: int) -> Any:
    return ir.Constant(_INTEGERS, [value] * WIDTH)


@intrinsic_of(vector_type, vector_type)
def absolute(builder, x):  # type: ignore[no-untyped-def]
    """|x|."""
    bits = builder.bitcast(x, _INTEGERS)
    return builder.bitcast(builder.and_(bits, _integers(0x7FFFFFFF)), _FLOATS)


@intrinsic_of(types.float32, vector_type)
def sum_of(builder, x):  # type: ignore[no-untyped-def]
    """Sum a vector's numbers, by halves."""
    half = WIDTH // 2
    while half:
        lanes = [i + half if i < half else i for i in range(WIDTH)]
        x = builder.fadd(x, builder.shuffle_vector(x, x, ir.Constant(_INTEGERS, lanes)))
        half //= 2
    return builder.extract_element(x, ir.Constant(_I32, 0))


@intrinsic_of(vector_type, vector_type)
def truncate(builder, x):  # type: ignore[no-untyped-def]
    """Drop the fraction of x, for |x| < 2^31."""
    return builder.sitofp(builder.fptosi(x, _INTEGERS), _FLOATS)


@intrinsic_of(vector_type, vector_type)
def power_of_two(builder, n):  # type: ignore[no-untyped-def]
    """2^n for integers n in [-126, 127]."""
    biased = builder.add(builder.fptosi(n, _INTEGERS), _integers(127))
    return builder.bitcast(builder.shl(biased, _integers(23)), _FLOATS)


@intrinsic_of(vector_type, vector_type)
def exponent_of(builder, x):  # type: ignore[no-untyped-def]
    """Exponents of positive normal numbers."""
    biased = builder.lshr(builder.bitcast(x, _INTEGERS), _integers(23))
    return builder.sitofp(builder.sub(biased, _integers(127)), _FLOATS)


@intrinsic_of(vector_type, vector_type)
def mantissa_of(builder, x):  # type: ignore[no-untyped-def]
    """Mantissas, in [1, 2), of positive normal numbers."""
    fraction = builder.and_(builder.bitcast(x, _INTEGERS), _integers(0x007FFFFF))
    return builder.bitcast(builder.or_(fraction, _integers(0x3F800000)), _FLOATS)

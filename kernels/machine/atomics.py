"""Primitives for threads that share memory, which Numba lacks: atomic integers, and spinning, yielding and sleeping.

Addresses are of int64. All accesses are sequentially consistent ("seq_cst").
"""

from __future__ import annotations

import platform
import sys
import time as _time
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

_I32, _I64, _BYTES = ir.IntType(32), ir.IntType(64), 8
_ORDER = "seq_cst"
_HAS_PAUSE = platform.machine().lower() in ("x86_64", "amd64")


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def read(typing_context, address):  # type: ignore[no-untyped-def]
    """Read the number at an address atomically."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load_atomic(_pointer(builder, args[0]), _ORDER, _BYTES)

    return types.int64(types.int64), codegen


@intrinsic
def write(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Write a number to an address atomically."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        builder.store_atomic(args[1], _pointer(builder, args[0]), _ORDER, _BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def add(typing_context, address, value):  # type: ignore[no-untyped-def]
    """Add value to the number at an address atomically; return the number before."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], _ORDER)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def exchange(typing_context, address, expected, value):  # type: ignore[no-untyped-def]
    """Atomically replace the number at an address by value if it is the expected one; return whether it was."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        found = builder.cmpxchg(_pointer(builder, args[0]), args[1], args[2], _ORDER, _ORDER)
        return builder.extract_value(found, 1)

    return types.boolean(types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(typing_context):  # type: ignore[no-untyped-def]
    """Tell the processor that this thread spins: for about 50 ns the other hardware thread has the core to itself."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if _HAS_PAUSE:
            nothing = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def nanoseconds(typing_context):  # type: ignore[no-untyped-def]
    """Read a monotonic clock; a read takes 25 ns."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if sys.platform == "win32":
            return _I64(0)
        time = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
        declared = ir.FunctionType(_I32, [_I32, time.type])
        called = cgutils.get_or_insert_function(builder.module, declared, "clock_gettime")
        builder.call(called, [_I32(_time.CLOCK_MONOTONIC), time])
        seconds, rest = (builder.load(cgutils.gep_inbounds(builder, time, 0, i)) for i in range(2))
        return builder.add(builder.mul(seconds, _I64(1_000_000_000)), rest)

    return types.int64(), codegen


@intrinsic
def yield_core(typing_context):  # type: ignore[no-untyped-def]
    """Let another thread have the core, if one waits for it."""
    return types.void(), lambda context, builder, _, args: _call(context, builder, "sched_yield", args)


@intrinsic
def sleep_microseconds(typing_context, microseconds):  # type: ignore[no-untyped-def]
    """Sleep for less than a second."""
    return types.void(types.int64), lambda context, builder, _, args: _call(context, builder, "usleep", args)


def _call(context: Any, builder: Any, name: str, args: Any) -> Any:
    """Call a POSIX function whose error code could only mean corrupt memory, so it is ignored."""
    if sys.platform != "win32":  # Windows has none of them: a team there is one thread
        declared = ir.FunctionType(_I32, [_I64] * len(args))
        builder.call(cgutils.get_or_insert_function(builder.module, declared, name), args)
    return context.get_dummy_value()


def _posix(name: str) -> Any:
    @intrinsic
    def of_address(typing_context, address):  # type: ignore[no-untyped-def]
        return types.void(types.int64), lambda context, builder, _, args: _call(context, builder, name, args)

    return of_address


lock, unlock = _posix("pthread_mutex_lock"), _posix("pthread_mutex_unlock")
wake_all = _posix("pthread_cond_broadcast")


@intrinsic
def sleep(typing_context, condition, mutex):  # type: ignore[no-untyped-def]
    """Release the mutex, sleep until wake_all, and take the mutex again; may also wake spuriously."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return _call(context, builder, "pthread_cond_wait", args)

    return types.void(types.int64, types.int64), codegen

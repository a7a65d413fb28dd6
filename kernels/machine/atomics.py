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

from .intrinsics import intrinsic_of

_I32, _I64, _BYTES = ir.IntType(32), ir.IntType(64), 8
_ORDER = "seq_cst"
_HAS_PAUSE = platform.machine().lower() in ("x86_64", "amd64")


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic_of(types.int64, types.int64)
def read(builder, address):  # type: ignore[no-untyped-def]
    """Read the number at an address atomically."""
    return builder.load_atomic(_pointer(builder, address), _ORDER, _BYTES)


@intrinsic_of(types.void, types.int64, types.int64)
def write(builder, address, value):  # type: ignore[no-untyped-def]
    """Write a number to an address atomically."""
    builder.store_atomic(value, _pointer(builder, address), _ORDER, _BYTES)


@intrinsic_of(types.int64, types.int64, types.int64)
def add(builder, address, value):  # type: ignore[no-untyped-def]
    """Add value to the number at an address atomically; return the number before."""
    return builder.atomic_rmw("add", _pointer(builder, address), value, _ORDER)


@intrinsic_of(types.boolean, types.int64, types.int64, types.int64)
def exchange(builder, address, expected, value):  # type: ignore[no-untyped-def]
    """Atomically replace the number at an address by value if it is the expected one; return whether it was."""
    found = builder.cmpxchg(_pointer(builder, address), expected, value, _ORDER, _ORDER)
    return builder.extract_value(found, 1)


@intrinsic_of(types.void)
def pause(builder):  # type: ignore[no-untyped-def]
    """Tell the processor that this thread spins: for about 50 ns the other hardware thread has the core to itself."""
    if _HAS_PAUSE:
        nothing = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, nothing, "llvm.x86.sse2.pause"), [])


@intrinsic_of(types.int64)
def nanoseconds(builder):  # type: ignore[no-untyped-def]
    """Read a monotonic clock; a read takes 25 ns."""
    if sys.platform == "win32":
        return _I64(0)
    time = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
    declared = ir.FunctionType(_I32, [_I32, time.type])
    called = cgutils.get_or_insert_function(builder.module, declared, "clock_gettime")
    builder.call(called, [_I32(_time.CLOCK_MONOTONIC), time])
    seconds, rest = (builder.load(cgutils.gep_inbounds(builder, time, 0, i)) for i in range(2))
    return builder.add(builder.mul(seconds, _I64(1_000_000_000)), rest)


def _posix(name: str, n_arguments: int) -> Any:
    """Make a function that calls one of POSIX. Its error code could only mean corrupt memory, so it is ignored."""

    @intrinsic_of(types.void, *[types.int64] * n_arguments)
    def function(builder: Any, *values: Any) -> None:
        if sys.platform != "win32":  # Windows has none of them: a team there is one thread
            declared = ir.FunctionType(_I32, [_I64] * n_arguments)
            builder.call(cgutils.get_or_insert_function(builder.module, declared, name), values)

    return function


yield_core = _posix("sched_yield", 0)  # lets another thread have the core, if one waits for it
sleep_microseconds = _posix("usleep", 1)  # for less than a second
lock, unlock = _posix("pthread_mutex_lock", 1), _posix("pthread_mutex_unlock", 1)
wake_all = _posix("pthread_cond_broadcast", 1)
# sleep(condition, mutex): release the mutex, sleep until wake_all, and take the mutex again; may wake spuriously.
sleep = _posix("pthread_cond_wait", 2)

"""A barrier for threads of Python that stay inside Numba: nobody goes on before all have come.

Waiting spins for a moment, then yields the processor, so on a machine that is shared with other work the one that is
waited for gets to run. (The threads of Numba's own parallel regions spin on, and keep it from running.)
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .jit import helper

SPINS = 2000  # a few microseconds
ARRIVED, TURN, STOP, STOPPED, FAILED = range(5)
_I64, _BYTES = ir.IntType(64), 8


def new_barrier() -> np.ndarray:
    """int64 (5,): who has arrived, how often all have, who asked to stop, whether all do, and whether one failed."""
    return np.zeros(5, np.int64)


def stop(barrier: np.ndarray) -> None:
    """Have all threads stop at the same meeting, the next one."""
    barrier[STOP] = 1


def fail(barrier: np.ndarray) -> None:
    """Let everybody go who waits or will: a thread that was to come will not."""
    barrier[FAILED] = 1


@intrinsic
def _add(typing_context, address, value):  # type: ignore[no-untyped-def]
    """The number at an address before value is added to it, in one step for all threads."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _read(typing_context, address):  # type: ignore[no-untyped-def]
    """The number at an address as it is now."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "seq_cst", _BYTES)

    return types.int64(types.int64), codegen


@intrinsic
def _yield(typing_context):  # type: ignore[no-untyped-def]
    """Let another thread have the processor."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if sys.platform != "win32":
            declared = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, declared, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


@helper
def wait(barrier, n_threads):
    """Wait until n_threads have called this. Returns whether to go on, the same to all unless one has failed."""
    arrived = barrier.ctypes.data
    turn, failed, stopped = arrived + _BYTES * TURN, arrived + _BYTES * FAILED, arrived + _BYTES * STOPPED
    my_turn = _read(turn)
    if _add(arrived, 1) == n_threads - 1:
        _add(arrived, -n_threads)
        # One thread looks, for all.
        _add(stopped, _read(arrived + _BYTES * STOP))
        _add(turn, 1)
    spins = 0
    while _read(turn) == my_turn:
        if _read(failed):
            return False
        spins += 1
        if spins > SPINS:
            _yield()
    return _read(stopped) == 0

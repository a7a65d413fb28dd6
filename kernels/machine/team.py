"""A thread team that shares a kernel's pieces of work without leaving machine code.

    in_parallel(team, n_pieces, piece, (x, y))  # in a kernel: piece(p, x, y) for p in range(n_pieces)

Every thread starts with its own pieces, the same ones in each call, whose data are in its core's cache, and then takes
pieces that others have not begun. The calling thread takes part, so it waits only for pieces that have begun: next to
other busy processes, work proceeds at the pace of the cores that are left. An idle thread spins for a moment, so that
it is awake for the next job, and then sleeps, which frees its core for others. A piece's result does not depend on the
thread that computes it; if the number of pieces depends only on the work, results are the same for any number of
threads.

A team works for one caller at a time. A second caller at the same moment computes its pieces alone.

Why not Numba's prange, or OpenMP: both cut work into one part per thread and wait at a barrier for the slowest, which
on a machine with other processes may be a thread without a core for milliseconds; and both enter a parallel region from
Python, where a step has five of them.

Except between torch's own operators: there the team is torch's threads, in an OpenMP region (openmp.py). Torch's idle
threads spin, too, and for longer, on the cores that our workers would need.

Why it is correct. All words are read and written with sequential consistency.
- A piece is computed once: it belongs to the thread whose `add` on its range returned it, and a range only counts up.
- A worker that is late by a whole job does no harm. Its add hits either a used-up range, and gets nothing, or a range
  that the owner has written for the next job, and gets a piece of that: RUN, DATA and N_PIECES were written before.
- A job's words do not change until its last piece is done: a thread with a piece has not yet added to DONE, and the
  owner returns when DONE is N_PIECES. So nobody adds to DONE after its job is over.
- Nobody sleeps through work: a worker counts itself into SLEEPING and then reads JOB, under MUTEX; the owner writes
  JOB and then reads SLEEPING. At least one of them sees the other. The same holds for WAITING and DONE.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .atomics import add, exchange, lock, nanoseconds, pause, read, sleep, unlock, wake_all, write, yield_core
from .cache import BOUNDS_CHECKED
from .intrinsics import intrinsic_of
from .jit import free_entry, helper
from .openmp import OpenMP, openmp_of_torch

# Words of a team's memory, one cache line each: threads that spin on one word must not disturb others.
LINE_BYTES = 128  # two lines: processors fetch them in pairs
(
    JOB,  # the job's number
    N_PIECES,
    DONE,  # pieces of the job that are finished
    RUN,  # the address of the machine code for a piece of the job
    DATA,  # the address of its arguments
    OWNER,  # 1 while a job is running
    STOPPED,
    SLEEPING,  # number of sleeping workers
    WAITING,  # 1 while the owner sleeps
    MUTEX,
    WORK,  # condition: there is work
    FINISHED,  # condition: the last piece is done
    N_THREADS,
    REGION,  # the address of the function that enters an OpenMP region; 0 for a team with workers of its own
    THREAD_NUMBER,  # the address of the function that returns a thread's number in a region
    RANGES,  # from here on one line per thread: its range of pieces, the end and the next packed into one number
) = (LINE_BYTES * line for line in range(16))

# An idle thread spins, then yields its core, then sleeps. Waking it costs the waker 5 us, and it arrives 50 us later. A
# thread that returns late from a yield sleeps at once: its core is wanted.
SPIN_NS, AWAKE_NS, LATE_NS = 50_000, 2_000_000, 100_000
SPINS = 16  # between two reads of the clock
RANGE_BITS = 24
NEXT = (1 << RANGE_BITS) - 1
MOST_PIECES = NEXT // 2  # late threads still increment the next piece, once each


# --- in a kernel -----------------------------------------------------------------------------------------

_I32 = ir.IntType(32)
_I64, _ABORT = ir.IntType(64), ir.FunctionType(ir.VoidType(), [])
_numbers = count()


@intrinsic
def in_parallel(typing_context, team, n_pieces, piece, args):  # type: ignore[no-untyped-def]
    """Run piece(p, *args) for all p in range(n_pieces), in any order and in parallel; return when all are done.

    team: the address of a team's memory, or 0 to compute all pieces in this thread, in order.
    A piece must not raise, nor call in_parallel itself; with bounds checking, a piece that accesses an array out of
    bounds aborts the process. (An intrinsic, since a function around a piece would be optimized together with all its
    contents.)
    """
    signature = piece.get_call_type(typing_context, (types.int64, *args.types), {})
    dispatcher = piece.dispatcher

    def codegen(context, builder, _, values):  # type: ignore[no-untyped-def]
        packed = cgutils.alloca_once_value(builder, _borrowed(context, builder, args, values[3]))
        compiled = dispatcher.overloads[tuple(signature.args)]
        context.active_code_library.add_linking_library(compiled.library)
        shape = ir.FunctionType(ir.VoidType(), [_I64, _I64])
        function = ir.Function(
            builder.module, shape, f"piece_{compiled.fndesc.mangled_name}_{next(_numbers)}"
        )
        function.linkage = "internal"
        inside = ir.IRBuilder(function.append_basic_block())
        p, address = function.args
        unpacked = cgutils.unpack_tuple(
            inside, inside.load(inside.inttoptr(address, packed.type)), len(args.types)
        )
        status, _ = context.call_internal_no_propagate(inside, compiled.fndesc, signature, [p, *unpacked])
        if BOUNDS_CHECKED:
            with inside.if_then(status.is_error):
                inside.call(cgutils.get_or_insert_function(builder.module, _ABORT, "abort"), [])
        inside.ret_void()
        job = [values[0], values[1], builder.ptrtoint(function, _I64), builder.ptrtoint(packed, _I64)]
        numbers = types.void(*[types.int64] * 4)
        _compute.compile(numbers)
        compute = _compute.overloads[numbers.args]
        context.active_code_library.add_linking_library(compute.library)
        context.call_internal_no_propagate(builder, compute.fndesc, types.none(*numbers.args), job)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, piece, args), codegen


def _borrowed(context: Any, builder: Any, numba_type: Any, value: Any) -> Any:
    """Return a copy of the value with borrowed array references.

    If threads counted references whenever they pass an array to a helper, they would contend for its cache line each
    time. A function is known by its type; its value is an address of Python's, with which code cannot be cached.
    """
    if isinstance(numba_type, types.Dispatcher):
        return cgutils.get_null_value(value.type)
    if isinstance(numba_type, types.Array):
        array = context.make_array(numba_type)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        return array._getvalue()
    if isinstance(numba_type, types.BaseTuple):
        kinds = list(numba_type)  # type: ignore[call-overload]
        parts = cgutils.unpack_tuple(builder, value, len(kinds))
        own = [_borrowed(context, builder, *each) for each in zip(kinds, parts, strict=True)]
        return context.make_tuple(builder, numba_type, own)
    return value


@intrinsic_of(types.void, *[types.int64] * 3)
def _call(builder, run, p, data):  # type: ignore[no-untyped-def]
    """Compute piece p."""
    shape = ir.FunctionType(ir.VoidType(), [_I64, _I64])
    builder.call(builder.inttoptr(run, shape.as_pointer()), [p, data])


@intrinsic
def _in_region(typing_context, team, n_threads):  # type: ignore[no-untyped-def]
    """Compute the team's job in an OpenMP region of n_threads, the calling thread among them."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        numbers = types.void(types.int64, types.int64)
        _take_part.compile(numbers)
        take_part = _take_part.overloads[numbers.args]
        context.active_code_library.add_linking_library(take_part.library)
        shape = ir.FunctionType(ir.VoidType(), [_I64])
        region = ir.Function(builder.module, shape, f"region_{next(_numbers)}")
        region.linkage = "internal"
        inside = ir.IRBuilder(region.append_basic_block())
        [same_team] = region.args
        thread_number = _function_at(inside, same_team, THREAD_NUMBER, ir.FunctionType(_I32, []))
        me = inside.zext(inside.call(thread_number, []), _I64)
        context.call_internal_no_propagate(
            inside, take_part.fndesc, types.none(*numbers.args), [same_team, me]
        )
        inside.ret_void()
        enter = ir.FunctionType(ir.VoidType(), [shape.as_pointer(), _I64, _I32, _I32])
        flags = _I32(0)
        arguments = [region, args[0], builder.trunc(args[1], _I32), flags]
        builder.call(_function_at(builder, args[0], REGION, enter), arguments)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _function_at(builder: Any, team: Any, word: int, shape: Any) -> Any:
    """Return the function whose address is in this word of a team."""
    at = builder.inttoptr(builder.add(team, _I64(word)), _I64.as_pointer())
    return builder.inttoptr(builder.load(at), shape.as_pointer())


@helper
def threads_of(team):
    """Return how many threads share the team's work, for a kernel that makes one split each (see `splits_of`)."""
    return read(team + N_THREADS) if team else 1


@helper
def _compute(team, n_pieces, run, data):
    if team == 0 or n_pieces < 2 or n_pieces > MOST_PIECES or not exchange(team + OWNER, 0, 1):
        for p in range(n_pieces):
            _call(run, p, data)
        return
    write(team + DONE, 0)
    write(team + RUN, run)
    write(team + DATA, data)
    write(team + N_PIECES, n_pieces)
    n_threads = read(team + N_THREADS)
    for t in range(n_threads):
        first, end = t * n_pieces // n_threads, (t + 1) * n_pieces // n_threads
        write(team + RANGES + LINE_BYTES * t, (end << RANGE_BITS) | first)
    if read(team + REGION):
        _in_region(team, n_threads)
        write(team + OWNER, 0)
        return
    add(team + JOB, 1)
    if read(team + SLEEPING):
        lock(team + MUTEX)
        wake_all(team + WORK)
        unlock(team + MUTEX)
    _take_part(team, 0)
    _wait_for_all(team, n_pieces)
    write(team + OWNER, 0)


@helper
def _take_part(team, me):
    """Compute the pieces of thread `me` that have not begun, then those of others."""
    n_threads = read(team + N_THREADS)
    for i in range(n_threads):
        pieces = team + RANGES + LINE_BYTES * ((me + i) % n_threads)
        while _take_piece(team, pieces):
            pass


@helper
def _take_piece(team, pieces):
    """Compute the next piece of a range; return whether there was one."""
    if not _has_next(read(pieces)):
        return False
    taken = add(pieces, 1)
    if not _has_next(taken):
        return False
    # The job cannot end before this piece does, so what is read here belongs to it.
    n_pieces = read(team + N_PIECES)
    _call(read(team + RUN), taken & NEXT, read(team + DATA))
    if add(team + DONE, 1) + 1 == n_pieces and read(team + WAITING):
        lock(team + MUTEX)
        wake_all(team + FINISHED)
        unlock(team + MUTEX)
    return True


@helper
def _has_next(pieces):
    return pieces & NEXT < pieces >> RANGE_BITS


@helper
def _wait_for_all(team, n_pieces):
    """Wait for pieces that others have begun. Spin first, then sleep, which frees this core for a waiting thread."""
    begin = nanoseconds()
    while read(team + DONE) < n_pieces and nanoseconds() - begin < SPIN_NS:
        for _ in range(SPINS):
            pause()
    if read(team + DONE) == n_pieces:
        return
    lock(team + MUTEX)
    write(team + WAITING, 1)
    while read(team + DONE) < n_pieces:
        sleep(team + FINISHED, team + MUTEX)
    write(team + WAITING, 0)
    unlock(team + MUTEX)


@helper
def _stay_awake(team, job):
    """Wait briefly for a job after `job`."""
    begin = nanoseconds()
    now = begin
    while read(team + JOB) == job and now - begin < AWAKE_NS and not read(team + STOPPED):
        if now - begin < SPIN_NS:
            for _ in range(SPINS):
                pause()
            now = nanoseconds()
        else:
            before = now
            yield_core()
            now = nanoseconds()
            if now - before > LATE_NS:
                return


@free_entry
def _work(team, me):
    """Main loop of a worker, thread `me`, until its team is stopped."""
    job = read(team + JOB)
    while not read(team + STOPPED):
        _stay_awake(team, job)
        lock(team + MUTEX)
        add(team + SLEEPING, 1)
        while read(team + JOB) == job and not read(team + STOPPED):
            sleep(team + WORK, team + MUTEX)
        add(team + SLEEPING, -1)
        unlock(team + MUTEX)
        job = read(team + JOB)
        _take_part(team, me)


# --- the host --------------------------------------------------------------------------------------------


class Team:
    """The memory of a team of n_threads."""

    def __init__(self, n_threads: int) -> None:
        # Aligned by hand: numpy guarantees only 16 bytes.
        self._memory = np.zeros(RANGES + (n_threads + 1) * LINE_BYTES, np.uint8)
        self.address = -(-self._memory.ctypes.data // LINE_BYTES) * LINE_BYTES
        self._write(N_THREADS, n_threads)

    def _write(self, word: int, value: int) -> None:
        ctypes.c_int64.from_address(self.address + word).value = value

    def stop(self) -> None:
        """End what the team began."""


class TorchTeam(Team):
    """A team of the threads that torch's operators use."""

    def __init__(self, n_threads: int, openmp: OpenMP) -> None:
        super().__init__(n_threads)
        self._write(REGION, openmp.region)
        self._write(THREAD_NUMBER, openmp.thread_number)


class OwnTeam(Team):
    """A team with n_threads - 1 workers of its own, which live until the team is stopped."""

    def __init__(self, n_threads: int) -> None:
        super().__init__(n_threads)
        self._posix = ctypes.CDLL(None)
        self._posix.pthread_mutex_init(self._at(MUTEX), None)
        for condition in (WORK, FINISHED):
            self._posix.pthread_cond_init(self._at(condition), None)
        _work.compile("void(int64, int64)")  # before the threads start, as each would compile it
        self._workers = [
            threading.Thread(
                target=_work_in, args=(self._memory, self.address, i), name=f"mt2st_fast-{i}", daemon=True
            )
            for i in range(1, n_threads)
        ]
        for worker in self._workers:
            worker.start()

    def _at(self, word: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.address + word)

    def stop(self) -> None:
        """Let the workers finish the pieces that they have begun, and end.

        The owner of a running job computes the rest.
        """
        self._posix.pthread_mutex_lock(self._at(MUTEX))
        self._write(STOPPED, 1)
        self._posix.pthread_cond_broadcast(self._at(WORK))
        self._posix.pthread_mutex_unlock(self._at(MUTEX))
        for worker in self._workers:
            worker.join(timeout=1.0)


def _work_in(memory: np.ndarray, address: int, me: int) -> None:
    """Run a worker, keeping the memory alive meanwhile."""
    _work(address, me)
    del memory


# Below this many float32 numbers read, asking other threads for help costs more than it saves.
PARALLEL_FLOATS = 1 << 14
PIECES_A_THREAD = 8  # more would balance better, but each has a cost


def pieces_of(work: int, least: int) -> int:
    """Return the number of pieces, of at least `least` work each, if the result does not depend on how work is cut."""
    return max(1, min(PIECES_A_THREAD * thread_count(), work // least))


def splits_of(work: int, least: int) -> int:
    """Return the number of splits, of at least `least` work each, if every split makes its own partial sums.

    At most one split per thread: zeroing and adding up the sums costs time, and the last bits of the result depend on
    their number.
    """
    return max(1, min(thread_count(), work // least))


def thread_count() -> int:
    """Return the number of threads that share a kernel's work: as many as torch uses."""
    return 1 if sys.platform == "win32" else torch.get_num_threads()


_teams: dict[tuple[int, bool], Team] = {}  # by number of threads, and whether these are torch's
_making = threading.Lock()
_openmp = openmp_of_torch()


def team_address(*, beside_torch: bool = False) -> int:
    """Return the address of the memory of a team as large as `thread_count`, for `in_parallel`; 0 for one thread.

    beside_torch: for a call among torch's operators, which leave their threads spinning.
    """
    n_threads = thread_count()
    if n_threads == 1:
        return 0
    key = n_threads, beside_torch and _openmp is not None
    team = _teams.get(key)
    return _made(*key).address if team is None else team.address


def _made(n_threads: int, of_torch: bool) -> Team:
    """Return the team of this size. It stays: threads of one program may ask for teams of different sizes."""
    key = n_threads, of_torch
    with _making:
        if key not in _teams:
            _teams[key] = TorchTeam(n_threads, _openmp) if of_torch and _openmp else OwnTeam(n_threads)
        return _teams[key]


def _forget_teams() -> None:
    """Begin anew in a forked process, which has no threads yet, and whose locks may have no living owner.

    It leaves OpenMP alone, whose regions wait there for the threads of the parent.
    """
    global _making, _openmp
    _making, _openmp = threading.Lock(), None
    _teams.clear()


@atexit.register
def _stop_teams() -> None:
    for team in list(_teams.values()):
        team.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_teams)


class Kernel:
    """A function of Python numbers and arrays, compiled on its first call.

    Its first argument is the team's address, which callers omit. beside_torch: it is called among torch's operators.
    """

    def __init__(self, function: Callable, *, beside_torch: bool = False) -> None:
        self.compiled = free_entry(function)
        self._beside_torch = beside_torch

    def __call__(self, *args: Any) -> Any:
        return self.compiled(team_address(beside_torch=self._beside_torch), *args)

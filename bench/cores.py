"""How long two cores take to answer each other, which tells where a virtual machine's host has put them.

On two cores of an AMD EPYC (family 25, model 17) the answer came within 100 ns or after 500, and changed at any time,
for seconds or for an hour: presumably with one cache and with two. After 500 ns the EWT tagger's step took half as long
again, whose threads hand data to each other, and torch's GEMMs a tenth longer (`python -m bench.measure step` prints
both). Once it came within 46 ns, and everything took longer still: presumably one core with two threads. Measurements
need to know.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future

import numpy as np

from mt2st_fast.kernels.machine.atomics import read, write
from mt2st_fast.kernels.machine.jit import free_entry

ANSWERS, TRIES = 200, 3
MOST_CORES = 16
LINE_BYTES = 128
# Between times of one placement there is no larger step, in order of size, than this factor.
LARGEST_STEP = 1.35
# Cores with a longer round trip share no cache: a report says so.
NO_COMMON_CACHE_NS = 300.0


@free_entry
def _ask(at, first, last):  # type: ignore[no-untyped-def]
    for i in range(first, last):
        write(at, i)
        while read(at + LINE_BYTES) != i:
            pass


@free_entry
def _answer(at, last):  # type: ignore[no-untyped-def]
    for i in range(1, last):
        while read(at) != i:
            pass
        write(at + LINE_BYTES, i)


def round_trip_ns() -> float | None:
    """Return how long the farthest of this process's cores takes to answer the first, in nanoseconds.

    None with a single core, and where threads cannot be given a core, or no longer.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    first, *others = sorted(allowed)[:MOST_CORES]
    if not others:
        return None
    try:
        os.sched_setaffinity(0, {first})
    except OSError:
        return None
    try:
        return max(min(_between(other) for _ in range(TRIES)) for other in others)
    except OSError:
        return None
    finally:
        os.sched_setaffinity(0, allowed)


def placements_of(trips_ns: np.ndarray) -> np.ndarray:
    """Number the placements that these round trips (n,) tell of, in order of size, (n,)."""
    order = np.argsort(trips_ns)
    steps = np.concatenate([[False], trips_ns[order][1:] > LARGEST_STEP * trips_ns[order][:-1]])
    placements = np.empty(len(trips_ns), int)
    placements[order] = np.cumsum(steps)
    return placements


def _between(other: int) -> float:
    """Return the round trip between this thread's core and another, in nanoseconds.

    Raises OSError if a thread cannot be given the other core.
    """
    memory = np.zeros(4 * LINE_BYTES, np.uint8)
    at = -(-memory.ctypes.data // LINE_BYTES) * LINE_BYTES
    placed: Future[None] = Future()

    def answer() -> None:
        try:
            os.sched_setaffinity(0, {other})
        except OSError as error:
            placed.set_exception(error)
            return
        placed.set_result(None)
        _answer(at, 2 * ANSWERS + 1)

    thread = threading.Thread(target=answer)
    thread.start()
    placed.result()  # otherwise nobody would ever answer
    _ask(at, 1, ANSWERS + 1)  # meanwhile the other thread arrives
    started_ns = time.perf_counter_ns()
    _ask(at, ANSWERS + 1, 2 * ANSWERS + 1)
    elapsed_ns = time.perf_counter_ns() - started_ns
    thread.join()
    return elapsed_ns / ANSWERS

"""Counters in memory that several processes have mapped: a process raises its own, and the others wait for that.

A process that dies leaves nothing locked. A waiting one spins for a while, then yields its core, then sleeps between
looks, so that others can work; it returns now and then, for its caller to find out whether the others are still there.
"""

from __future__ import annotations

from .atomics import nanoseconds, pause, read, sleep_microseconds, write, yield_core
from .jit import free_entry

AWAKE_NS = 2_000_000
SPINS = 16  # between two reads of the clock
SHORT_SLEEP_US, LONG_SLEEP_US, LONG_NS = 50, 1_000, 50_000_000  # the longer sleep after a longer wait


@free_entry
def raise_to(counter, number):
    """Set the counter at an address; whoever sees the number also sees what this thread has written before."""
    write(counter, number)


@free_entry
def wait_for(first, n, stride, number, spin_ns, most_ns):
    """Wait until n counters, at addresses `stride` apart, are at least `number`; at most so long.

    spin_ns: how long to keep the core. Return the index of the first counter that is not there, or n.
    """
    begin = nanoseconds()
    i = 0
    while True:
        while i < n and read(first + i * stride) >= number:
            i += 1
        waited = nanoseconds() - begin
        if i == n or waited > most_ns:
            return i
        if waited < spin_ns:
            for _ in range(SPINS):
                pause()
        elif waited < AWAKE_NS:
            yield_core()
        else:
            sleep_microseconds(SHORT_SLEEP_US if waited < LONG_NS else LONG_SLEEP_US)

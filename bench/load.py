"""The share of the processors that other processes used during a measurement."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
# Above this a measurement is marked as disturbed.
DISTURBED_SHARE = 0.05


class CpuLoad:
    """Measures the load from its creation on."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def others_share(self) -> float | None:
        """Return the others' share of all processors, 0 to 1, including steal time; None without /proc/stat."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        others_seconds = (busy - self._busy) - (_own_seconds() - self._own)
        available_seconds = (time.perf_counter() - self._started) * (os.cpu_count() or 1)
        return round(max(0.0, others_seconds / available_seconds), 3)


def _busy_seconds() -> float | None:
    """Return processor seconds since boot: user, nice, system, irq, softirq and steal of `man 5 proc_stat`."""
    if not STAT.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Return processor seconds of this process, and of ended processes that it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

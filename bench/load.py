"""What share of the processors other processes used while something was measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
# Above this a measurement is marked as disturbed.
DISTURBED_SHARE = 0.05


class CpuLoad:
    """Starts to watch when it is made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._busy, self._own = _busy_seconds(), _own_seconds()

    def others_share(self) -> float | None:
        """0 to 1 of all processors, the host's theft included; None where /proc/stat does not exist."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        others_seconds = (busy - self._busy) - (_own_seconds() - self._own)
        available_seconds = (time.perf_counter() - self._started) * (os.cpu_count() or 1)
        return round(max(0.0, others_seconds / available_seconds), 3)


def _busy_seconds() -> float | None:
    """Processor seconds since boot: user, nice, system, irq, softirq and steal of `man 5 proc_stat`."""
    if not STAT.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Of this process, and of those that it has started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

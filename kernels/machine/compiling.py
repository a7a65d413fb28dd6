"""Book-keeping for compilation: how long it has taken, and who is notified when it begins. Imports no compiler."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("mt2st_fast")

Listener = Callable[[str], object]  # called with the name of every kernel that starts to compile


class CompileClock:
    """Seconds spent compiling kernels or loading cached ones. Time for a kernel's helpers counts as its own."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.is_kept = True  # False where nothing can be cached, which has been said then
        self._depth = threading.local()
        self._listeners: list[Listener] = []
        self._told = False

    def start(self, name: str | None) -> None:
        """Note that a kernel starts to compile or, without a name, to load."""
        depth = getattr(self._depth, "value", 0)
        self._depth.value = depth + 1
        if depth == 0:
            self._depth.started = time.perf_counter()
            if name is not None:
                self.tell(name)

    def stop(self) -> None:
        """Note that what `start` began is done."""
        self._depth.value -= 1
        if self._depth.value == 0:
            self.seconds += time.perf_counter() - self._depth.started

    def tell(self, name: str) -> None:
        """Announce that a kernel starts to compile, in this process or in one that this one waits for."""
        for listener in self._listeners:
            listener(name)
        if not self._listeners and not self._told:
            self._told = True
            when = ", only once; the first run" if self.is_kept else "; the run"
            log.warning("compiling kernels for this machine%s takes up to a minute longer", when)

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Notify `listener` instead of the log."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


clock = CompileClock()


def compile_seconds() -> float:
    """Return the seconds that this process has spent compiling kernels, or loading cached ones, so far."""
    return clock.seconds

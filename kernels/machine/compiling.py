"""What is known of compiling: how long it has taken so far, and who is told when it begins. Imports no compiler."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("mt2st_fast")

Listener = Callable[[str], object]  # hears the name of every kernel that begins to be compiled


class CompileClock:
    """Seconds that kernels took to be compiled, or loaded from where they are kept. A kernel's helpers are its own."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = threading.local()
        self._listeners: list[Listener] = []
        self._told = False

    def start(self, name: str | None) -> None:
        """A kernel begins to be compiled, or, without a name, to be loaded."""
        depth = getattr(self._depth, "value", 0)
        self._depth.value = depth + 1
        if depth == 0:
            self._depth.started = time.perf_counter()
            if name is not None:
                self.tell(name)

    def stop(self) -> None:
        """What `start` began is done."""
        self._depth.value -= 1
        if self._depth.value == 0:
            self.seconds += time.perf_counter() - self._depth.started

    def tell(self, name: str) -> None:
        """Say that a kernel begins to be compiled, here or by a process that this one waits for."""
        for listener in self._listeners:
            listener(name)
        if not self._listeners and not self._told:
            self._told = True
            log.warning("compiling kernels for this machine, once: a first run takes up to a minute longer")

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Tell `listener` instead of the log."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


clock = CompileClock()


def compile_seconds() -> float:
    """Seconds of this process that went into compiling kernels, or loading compiled ones, so far."""
    return clock.seconds

"""Compiling kernels, as those see it who know no kernel: its seconds are no part of a step, and a bar may show it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mt2st_fast.kernels.machine.compiling import clock, compile_seconds

# with on_compile(listener): listener(name) hears of every kernel that begins to be compiled.
on_compile = clock.listening


@contextmanager
def counted_as_compiling(what: str) -> Iterator[None]:
    """Seconds of something that compiles kernels as it runs for the first time, a step on a GPU."""
    clock.start(what)
    try:
        yield
    finally:
        clock.stop()


__all__ = ["compile_seconds", "counted_as_compiling", "on_compile"]

"""Compilation of kernels for callers that know no kernel: its time is not part of a step, and a bar may show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mt2st_fast.kernels.machine.compiling import clock, compile_seconds

# The kernel of `train` that takes longest to compile, for words and for documents.
LONGEST = "_step_on_text"

# Within `with on_compile(listener)`, listener(name) is called whenever a kernel begins to be compiled.
on_compile = clock.listening


def stopwatch() -> Callable[[], float]:
    """Return a function that returns the seconds since this call, without those in which kernels were compiled."""
    started, compiled = time.perf_counter(), compile_seconds()
    return lambda: time.perf_counter() - started - (compile_seconds() - compiled)


@contextmanager
def counted_as_compiling(what: str) -> Iterator[None]:
    """Count the block's seconds as compilation: it compiles kernels as it first runs, as a step on a GPU does."""
    clock.start(what)
    try:
        yield
    finally:
        clock.stop()


def is_first_on(level: str) -> bool:
    """Whether kernels for training at this level on a CPU were never compiled or precompiled, and can be cached."""
    from mt2st_fast.kernels.machine.cache import folder, has_none_of  # loads the compiler

    place = folder()
    return place is not None and has_none_of(LONGEST) and not (place / _stamp(level)).exists()


def note_precompiled(level: str) -> None:
    """Leave a mark in the kernel cache that a run on such a corpus was precompiled."""
    from mt2st_fast.kernels.machine.cache import folder

    if (place := folder()) is not None:
        (place / _stamp(level)).touch()


def _stamp(level: str) -> str:
    return f"precompiled.{level}"


__all__ = [
    "compile_seconds",
    "counted_as_compiling",
    "is_first_on",
    "note_precompiled",
    "on_compile",
    "stopwatch",
]

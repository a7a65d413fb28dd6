"""Compiling kernels, as those see it who know no kernel: its seconds are no part of a step, and a bar may show it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mt2st_fast.kernels.machine.compiling import clock, compile_seconds

# What takes longest to compile of all that `train` needs, for words and for documents.
LONGEST = "_step_on_text"

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


def is_first_on(level: str) -> bool:
    """Whether what trains a corpus of this level on a CPU was never compiled here, nor rehearsed, and could be kept."""
    from mt2st_fast.kernels.machine.cache import folder, has_none_of  # which loads the compiler

    place = folder()
    return place is not None and has_none_of(LONGEST) and not (place / _stamp(level)).exists()


def note_rehearsed(level: str) -> None:
    """Keep in mind, where kernels are kept, that a run on such a corpus was rehearsed."""
    from mt2st_fast.kernels.machine.cache import folder

    if (place := folder()) is not None:
        (place / _stamp(level)).touch()


def _stamp(level: str) -> str:
    return f"rehearsed.{level}"


__all__ = ["compile_seconds", "counted_as_compiling", "is_first_on", "note_rehearsed", "on_compile"]

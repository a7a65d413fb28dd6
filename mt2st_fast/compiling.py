"""Compiling kernels, as those see it who know no kernel: its seconds are no part of a step, and a bar may show it."""

from mt2st_fast.kernels.machine.compiling import clock, compile_seconds

# with on_compile(listener): listener(name) hears of every kernel that begins to be compiled.
on_compile = clock.listening

__all__ = ["compile_seconds", "on_compile"]

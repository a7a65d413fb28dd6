"""Compiling kernels, as those see it who know no kernel: its seconds are no part of a step, and a bar may show it."""

from mt2st_fast.kernels.machine.compiling import clock, compile_seconds

on_compile = (
    clock.listening
)  # with on_compile(listener): listener(name) hears of each kernel that is being compiled

__all__ = ["compile_seconds", "on_compile"]

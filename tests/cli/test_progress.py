"""What a terminal shows while a command does something that takes seconds."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mt2st_fast.cli import bars, progress
from mt2st_fast.kernels.machine.compiling import clock


def shown_by(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    """What a stream shows of waiting, in which a kernel is compiled."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    monkeypatch.setattr(bars, "plain_console", lambda **_: console)
    with progress.waiting("warm up"):
        if terminal:
            clock.tell("_step_on_text")
    return stream.getvalue()


def test_waiting_names_what_is_done_and_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = shown_by(monkeypatch, terminal=True)
    assert "warm up" in shown
    assert "compiling kernels for this machine (only the first time): step_on_text" in shown


def test_waiting_is_silent_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shown_by(monkeypatch, terminal=False).strip()

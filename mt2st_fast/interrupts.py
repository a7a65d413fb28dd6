"""Ctrl-C while a command imports modules, which takes seconds: it ends the command as it ends one that runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mt2st_fast.errors import INTERRUPTED

_commands: list[int] = []  # the process whose whole purpose is a command


def begin_command() -> None:
    """Have `importing` end this process."""
    _commands[:] = [os.getpid()]


@contextmanager
def importing() -> Iterator[None]:
    """Within the block, Ctrl-C ends a command at once.

    An exception would be one of somebody's import, who may catch it or say something else. Where Ctrl-C is ignored, as
    under nohup, or handled in another way, that stays so, and so it does in a program that calls a command.
    """
    usual = signal.default_int_handler
    is_ours = _commands == [os.getpid()] and threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def leave(*signal_and_frame: object) -> None:
    """End the process with the line of an interrupted command."""
    del signal_and_frame
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)

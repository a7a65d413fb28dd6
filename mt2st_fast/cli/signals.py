"""Ctrl-C and SIGTERM during training: the run stops cleanly, and can be resumed."""

from __future__ import annotations

import os
import signal
from types import TracebackType
from typing import Any

from mt2st_fast.cli.launched import is_first
from mt2st_fast.training.callbacks.callback import Callback, Training

# The step may take long, such as one that compiles kernels.
STOPPING = "mt2st-fast: stopping after this step; Ctrl-C again ends at once"


class StoppingOnSignals(Callback):
    """Ends a run after the current step at the first Ctrl-C or SIGTERM (sent by schedulers), and at once at the second.

    It says at once that it has received Ctrl-C.

    It is a context manager, and a callback of every trainer that should stop. received: the signals received so far;
    one that arrives between two runs stops the second run before its first step.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StoppingOnSignals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """The exit code that a shell expects after a signal."""
        return 128 + (self.received[0] if self.received else signal.SIGINT)

    def on_fit_start(self, trainer: Training) -> None:
        """React to a signal that arrived before the first step."""
        self.on_step(trainer)

    def on_step(self, trainer: Training) -> None:
        """React to a signal."""
        if self.received:
            trainer.stop_requested = True

    def _note(self, number: int, frame: Any) -> None:
        del frame
        self.received.append(number)
        if number == signal.SIGINT and is_first():
            os.write(2, f"{STOPPING}\n".encode())  # not by `print`, which this may have interrupted
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

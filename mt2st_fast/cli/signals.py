"""Ctrl-C and SIGTERM while training: the run ends in order, and can go on."""

from __future__ import annotations

import signal
from types import TracebackType
from typing import Any

from mt2st_fast.training.callbacks import Callback, Training


class StoppingOnSignals(Callback):
    """The first Ctrl-C or SIGTERM (which schedulers send) ends a run after the step at hand; the second at once.

    A context manager and a callback of every trainer that is to stop. received: the signals that came; one that comes
    between two runs stops the second before its first step.
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
        """What a shell says of a command that a signal has ended."""
        return 128 + (self.received[0] if self.received else signal.SIGINT)

    def on_fit_start(self, trainer: Training) -> None:
        """Heed a signal that came before the first step."""
        self.on_step(trainer)

    def on_step(self, trainer: Training) -> None:
        """Heed a signal."""
        if self.received:
            trainer.stop_requested = True

    def _note(self, number: int, frame: Any) -> None:
        del frame
        self.received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

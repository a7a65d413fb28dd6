"""When a run's checkpoint is written."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Protocol


class Run(Protocol):
    """What is asked of a run."""

    def save(self, path: Path) -> None:
        """Write a checkpoint."""


class Saving:
    """Writes a run's checkpoint when it is due: at the end of an epoch, and by the clock within one."""

    def __init__(self, path: Path | None, seconds: float | None) -> None:
        self._path, self._seconds = path, math.inf if seconds is None else seconds
        self._last = time.monotonic()
        self.due = False  # by the clock, as all processes have agreed

    @property
    def is_asked(self) -> bool:
        """Whether there is a file to write."""
        return self._path is not None

    def is_due_by_clock(self) -> bool:
        """Return whether the last checkpoint is too old."""
        return self.is_asked and time.monotonic() - self._last >= self._seconds

    def after_step(self, run: Run, epoch_ends: bool) -> None:
        """Write a checkpoint if it is due."""
        if self.due or epoch_ends:
            self.now(run)

    def now(self, run: Run) -> None:
        """Write a checkpoint now."""
        if self._path is not None:
            run.save(self._path)
            self._last = time.monotonic()

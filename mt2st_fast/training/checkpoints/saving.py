"""When a run's checkpoint is written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Saving:
    """Writes a run's checkpoint when it is due: at the end of an epoch, and by the clock within one.

    save: writes it; None if no checkpoint is asked for. seconds: between two of them; None: not within an epoch.
    """

    def __init__(self, save: Callable[[], None] | None, seconds: float | None) -> None:
        self._save, self._seconds = save, math.inf if seconds is None else seconds
        self._last = time.monotonic()
        self.due = False  # by the clock, as all processes have agreed

    @property
    def is_asked(self) -> bool:
        """Whether there is a file to write."""
        return self._save is not None

    def is_due_by_clock(self) -> bool:
        """Return whether the last checkpoint is too old."""
        return self.is_asked and time.monotonic() - self._last >= self._seconds

    def after_step(self, epoch_ends: bool) -> None:
        """Write a checkpoint if it is due."""
        if self.due or epoch_ends:
            self.now()

    def now(self) -> None:
        """Write a checkpoint now."""
        if self._save is not None:
            self._save()
            self._last = time.monotonic()

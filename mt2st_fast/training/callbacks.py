"""Hooks into training. Each does nothing unless a subclass says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mt2st_fast.training.history import Evaluation, PhaseRecord, StepRecord

if TYPE_CHECKING:
    from mt2st_fast.training.trainer import Trainer


class Callback:
    """Called by `Trainer.fit`; `trainer.history` and `trainer.step` are up to date in every call.

    Nothing here waits for the device except `on_record`, whose losses have just been read.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first step, or the first after resuming."""

    def on_phase(self, trainer: Trainer, phase: PhaseRecord) -> None:
        """The active tasks have changed, and what retired is let go."""

    def on_step(self, trainer: Trainer) -> None:
        """A step is done."""

    def on_record(self, trainer: Trainer, record: StepRecord) -> None:
        """Losses were read, every `log_every` steps."""

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """The validation batches were evaluated."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """An epoch is over and, where asked for, its checkpoint is written."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """The last step is done."""

"""Hooks into training. Each does nothing unless a subclass overrides it."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.history import Evaluation, History, PhaseRecord, StepRecord


class Training(Protocol):
    """What a callback sees of its Trainer; setting `stop_requested` ends the run after the current step."""

    encoder: nn.Module
    heads: MultiTaskHeads
    stop_requested: bool

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        ...

    @property
    def epoch(self) -> float:
        """Passes over the main task's data done."""
        ...

    @property
    def history(self) -> History:
        """What has happened so far."""
        ...


class Callback:
    """Base class of callbacks; `trainer.history` and `trainer.step` are up to date in every call.

    Nothing here waits for the device except `on_record`, whose losses have just been read.
    """

    def on_fit_start(self, trainer: Training) -> None:
        """Called before the first step, or before the first step after resuming."""

    def on_phase(self, trainer: Training, phase: PhaseRecord) -> None:
        """Called after the active tasks have changed and the retired ones were released."""

    def on_step(self, trainer: Training) -> None:
        """Called after every step."""

    def on_record(self, trainer: Training, record: StepRecord) -> None:
        """Called after losses were read, every `log_every` steps."""

    def on_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """Called after the validation batches were evaluated."""

    def on_epoch_end(self, trainer: Training) -> None:
        """Called after an epoch ends and its checkpoint, if requested, is written."""

    def on_fit_end(self, trainer: Training) -> None:
        """Called after the last step."""

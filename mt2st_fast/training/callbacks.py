"""Hooks into training. Each does nothing unless a subclass says otherwise."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.history import Evaluation, History, PhaseRecord, StepRecord


class Training(Protocol):
    """What a callback sees of its Trainer; setting `stop_requested` ends the run after the step at hand."""

    encoder: nn.Module
    heads: MultiTaskHeads
    stop_requested: bool

    @property
    def writes(self) -> bool:
        """Whether this process is the one of several that writes."""
        ...

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def total_steps(self) -> int:
        """Optimizer steps that the run is to have."""
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
    """Called by `Trainer.fit`; `trainer.history` and `trainer.step` are up to date in every call.

    Nothing here waits for the device except `on_record`, whose losses have just been read.
    """

    def on_fit_start(self, trainer: Training) -> None:
        """Before the first step, or the first after resuming."""

    def on_phase(self, trainer: Training, phase: PhaseRecord) -> None:
        """The active tasks have changed, and what retired is let go."""

    def on_step(self, trainer: Training) -> None:
        """A step is done."""

    def on_record(self, trainer: Training, record: StepRecord) -> None:
        """Losses were read, every `log_every` steps."""

    def on_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """The validation batches were evaluated."""

    def on_epoch_end(self, trainer: Training) -> None:
        """An epoch is over and, where asked for, its checkpoint is written."""

    def on_fit_end(self, trainer: Training) -> None:
        """The last step is done."""

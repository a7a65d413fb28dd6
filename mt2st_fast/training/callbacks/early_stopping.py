"""Ends a run at its plateau: the main task has not improved for a number of evaluations."""

from __future__ import annotations

import math

from mt2st_fast.numbers import check_count, check_not_negative
from mt2st_fast.spelling import counted
from mt2st_fast.training.callbacks.callback import Callback, Training
from mt2st_fast.training.history import Evaluation, History


class EarlyStopping(Callback):
    """Ends a run if the main task has not risen by more than `min_delta` in `patience` evaluations.

    A rise is measured from the last evaluation that was one, so that many small ones add up. `history.stopped` says
    why the run ended. It keeps no state but the history: a run resumed from a checkpoint stops
    where it would have stopped. Raises InputError for a patience under 1 and a negative min_delta.
    """

    def __init__(self, patience: int, min_delta: float = 0.0) -> None:
        check_count(patience=patience)
        check_not_negative(min_delta=min_delta)
        self.patience, self.min_delta = patience, min_delta

    def on_fit_start(self, trainer: Training) -> None:
        """Check at once: a resumed run may have reached its plateau before."""
        self._look(trainer)

    def on_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """Stop if this was one evaluation too many without a rise."""
        del evaluation  # it is the last one in the history
        self._look(trainer)

    def _look(self, trainer: Training) -> None:
        reason = self.plateau(trainer.history)
        if reason is not None and trainer.step < trainer.total_steps:
            trainer.history.stopped = reason
            trainer.stop_requested = True

    def plateau(self, history: History) -> str | None:
        """Return the reason if a run has reached its plateau, else None. A NaN evaluation decides nothing."""
        measured = [e for e in history.evaluations if not math.isnan(e.metrics[history.main])]
        best, step, waited = -math.inf, 0, 0
        for evaluation in measured:
            quality = evaluation.metrics[history.main]
            if quality > best + self.min_delta:
                best, step, waited = quality, evaluation.step, 0
            else:
                waited += 1
        if waited < self.patience:
            return None
        rise = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{history.main} has not risen{rise} in {counted(waited, 'evaluation')} since {best:.4f} at step {step}"

"""Sends what happens in a run to another logger: TensorBoard, wandb, MLflow, or any of Lightning's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from mt2st_fast.errors import InputError
from mt2st_fast.training.callbacks.callback import Callback, Training
from mt2st_fast.training.history import Evaluation, PhaseRecord, StepRecord

METHODS = ("log_metrics", "add_scalar", "log")


class LogTo(Callback):
    """Writes losses, weights, learning rate, active tasks and metrics to a logger, by step.

        Trainer(..., callbacks=[LogTo(SummaryWriter("runs/tensorboard"))])

    logger: anything with `log_metrics(metrics, step)`, like Lightning's loggers and the module mlflow; with
    `add_scalar(name, value, step)`, like torch.utils.tensorboard.SummaryWriter; or with `log(metrics, step)`, like a
    run of wandb. Names: "loss/total", "loss/TASK", "weight/TASK" and "rate" with every record; "active/TASK", 1 or 0,
    with every phase; "metric/TASK", and "main" for that of the main task, with every evaluation. Values that are not
    finite are left out. Of several processes, one writes. The logger stays open.

    Raises InputError for a logger that has none of these methods, and for one of Python's logging.
    """

    def __init__(self, logger: Any) -> None:
        of_messages = isinstance(logger, logging.Logger | logging.LoggerAdapter)
        if of_messages or not any(callable(getattr(logger, name, None)) for name in METHODS):
            raise InputError(
                "LogTo needs a logger with log_metrics(metrics, step), add_scalar(name, value, step) or "
                f"log(metrics, step), not a {type(logger).__name__}"
            )
        self.logger = logger

    def on_phase(self, trainer: Training, phase: PhaseRecord) -> None:
        """Write which tasks train from here on."""
        active = {f"active/{name}": float(name in phase.active) for name in trainer.heads.names}
        self._write(trainer, active, phase.first_step)

    def on_record(self, trainer: Training, record: StepRecord) -> None:
        """Write the means since the last record."""
        values = {"loss/total": record.total, "rate": record.learning_rate}
        values |= {f"loss/{name}": loss for name, loss in record.losses.items()}
        values |= {f"weight/{name}": weight for name, weight in record.weights.items()}
        self._write(trainer, values, record.step)

    def on_evaluation(self, trainer: Training, evaluation: Evaluation) -> None:
        """Write held-out quality."""
        values = {f"metric/{name}": value for name, value in evaluation.metrics.items()}
        main = evaluation.metrics.get(trainer.history.main)
        self._write(trainer, values if main is None else values | {"main": main}, evaluation.step)

    def on_fit_end(self, trainer: Training) -> None:
        """Flush what the logger still holds to its file."""
        for name in ("flush", "save"):
            if trainer.writes and callable(write := getattr(self.logger, name, None)):
                write()
                return

    def _write(self, trainer: Training, values: Mapping[str, float], step: int) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if not finite or not trainer.writes:
            return
        if callable(getattr(self.logger, "log_metrics", None)):
            self.logger.log_metrics(finite, step=step)
            return
        if not callable(getattr(self.logger, "add_scalar", None)):
            self.logger.log(finite, step=step)
            return
        for name, value in finite.items():
            self.logger.add_scalar(name, value, step)

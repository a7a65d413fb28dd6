"""Runs in which one process is lost or fails: each says how it ended, and ends at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from mt2st_fast import Callback, Classification, MultiTask, MultiTaskHeads, Trainer
from tests.training.processes import runs


class Mark(Callback):
    """Writes a file once some steps are done, and raises in one process where that is asked for."""

    def __init__(self, folder: Path, fails_in: int | None = None) -> None:
        self.file, self.fails_in = folder / f"going-{dist.get_rank()}", fails_in

    def on_step(self, trainer: Any) -> None:
        if trainer.step == 5:
            self.file.touch()
            if self.fails_in == dist.get_rank():
                raise RuntimeError("the disk is full")


def _train(folder: Path, fails_in: int | None = None, **options: Any) -> NoReturn:
    torch.manual_seed(0)
    heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    callbacks = [Mark(folder, fails_in)]
    trainer = Trainer(
        nn.Linear(runs.FEATURES, 8), heads, schedule=MultiTask(), device="cpu", callbacks=callbacks, **options
    )
    data = [(x, {"classes": targets["classes"]}) for x, targets in runs.batches()]
    try:
        trainer.fit(data, epochs=1_000_000)
    except Exception as error:
        print(f"ended: {type(error).__name__}: {error}", flush=True)
        os._exit(3)
    os._exit(0)


def endless(folder: Path) -> NoReturn:
    _train(folder)


def failing(folder: Path) -> NoReturn:
    _train(folder, fails_in=1)

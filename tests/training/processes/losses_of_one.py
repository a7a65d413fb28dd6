"""Runs in which one process is lost or fails: each says how it ended, and ends at once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn

from mt2st_fast import (
    BagEncoder,
    Callback,
    Classification,
    LazyAdam,
    MultiTask,
    MultiTaskHeads,
    Switch,
    Trainer,
    shard_rows,
)
from mt2st_fast.training.processes.watch import LostProcessError
from tests.training.processes import runs, sharded


class Mark(Callback):
    """Writes a file once some steps are done, and raises in one process where that is asked for."""

    def __init__(self, folder: Path, fails_in: int | None = None) -> None:
        self.file, self.fails_in = folder / f"going-{dist.get_rank()}", fails_in
        self.steps = 0  # of this process: a resumed run has made more

    def on_step(self, trainer: Any) -> None:
        self.steps += 1
        if self.steps == 5:
            self.file.touch()
            if self.fails_in == dist.get_rank():
                raise RuntimeError("the disk is full")


def _train(
    folder: Path, fails_in: int | None = None, encoder: nn.Module | None = None, **options: Any
) -> NoReturn:
    torch.manual_seed(0)
    encoder = encoder or nn.Linear(runs.FEATURES, 8)
    heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    callbacks = [Mark(folder, fails_in)]
    trainer = Trainer(encoder, heads, schedule=MultiTask(), device="cpu", callbacks=callbacks, **options)
    data = [(x, {"classes": targets["classes"]}) for x, targets in runs.batches()]
    try:
        trainer.fit(data, epochs=1_000_000)
    except Exception as error:
        print(f"ended: {type(error).__name__}: {error}", flush=True)
        os._exit(3)
    os._exit(0)


def endless(folder: Path) -> NoReturn:
    _train(folder)


def endless_sharded(folder: Path) -> NoReturn:
    """Here most messages are torch's own, within forward and backward passes."""
    encoder = sharded.Layers()
    sharded.shard(encoder)
    _train(folder, encoder=encoder)


def failing(folder: Path) -> NoReturn:
    _train(folder, fails_in=1)


class Slowly(Mark):
    def on_step(self, trainer: Any) -> None:
        super().on_step(trainer)
        if self.steps > 4:
            time.sleep(0.02)


def slow(folder: Path) -> dict[str, Any]:
    """Goes on where there is a checkpoint, which is written every few steps; dropout draws numbers in every process."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(runs.FEATURES, 8), nn.Dropout(0.3))
    return _slowly(folder, encoder, runs.batches(), epochs=60)


def slow_divided(folder: Path) -> dict[str, Any]:
    """The same with a table of which each process has rows, and writes them itself."""
    torch.manual_seed(0)
    encoder = BagEncoder(50, 8, sparse=True)
    shard_rows(encoder)
    data = []
    for _ in range(4):
        words = torch.randint(50, (12, 3))
        data.append(((words.flatten(), torch.arange(0, 37, 3)), {"classes": words[:, 0] % 4}))
    return _slowly(folder, encoder, data[dist.get_rank() :: 2], epochs=100, optimizer=LazyAdam)


def _slowly(
    folder: Path, encoder: nn.Module, data: list[Any], *, epochs: int, **options: Any
) -> dict[str, Any]:
    heads = MultiTaskHeads(8, {"classes": Classification(4), "weighted": runs.TASKS["weighted"]}, "classes")
    callbacks = [Slowly(folder)]
    trainer = Trainer(encoder, heads, schedule=Switch(at=0.5), device="cpu", callbacks=callbacks, **options)
    path = folder / "slow.safetensors"
    try:
        trainer.fit(data, epochs=epochs, checkpoint=path, checkpoint_seconds=0.1, resume=path.exists())
    except LostProcessError as error:
        print(f"ended: {error}", flush=True)
        os._exit(3)
    return runs.learnt(trainer)

"""How several processes begin a run: with the same options, from the same weights."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from mt2st_fast.model.sharded import whole_shape
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.processes.resuming import draw_own_numbers
from mt2st_fast.training.run_options import RunOptions, description

if TYPE_CHECKING:
    from mt2st_fast.training.run import Run


def begin_together(processes: Processes, run: Run, options: RunOptions, *, resumed: bool) -> None:
    """Start all processes at the same step with the weights of process 0, but each with its own random numbers.

    Raises InputError, in every process, naming what differs between one of them and process 0.
    """
    if not processes.are_several:
        return
    processes.check_same(
        {"a pass of": f"{run.steps_per_epoch} steps"},
        "give every process the same number of batches, as DistributedSampler does",
    )
    shapes = [whole_shape(p) for module in (run.encoder, run.heads) for p in module.parameters()]
    processes.check_same(
        {
            "tasks": ", ".join(run.heads.names),
            "schedule": description(options.schedule),
            "a run of": f"{run.total_steps} steps",
            "lr": options.lr,
            "lr_decay": options.lr_decay,
            "lr_scheduler": run.scheduler,
            "optimizer": type(run.optimizer).__name__,
            "clip_norm": options.clip_norm,
            "accumulate": options.accumulate,
            "precision": options.precision,
            "parameters of shapes": f"{len(shapes)} ({zlib.crc32(repr(shapes).encode()):08x})",
        }
    )
    processes.check_same(
        {"done": f"{run.steps_done} steps"},
        "let all of them read the same checkpoint, in a folder that they share",
    )
    processes.take_from_first(run.modules())
    if not resumed:
        draw_own_numbers(processes)

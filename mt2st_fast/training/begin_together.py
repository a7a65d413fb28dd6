"""How several processes begin a run: with the same options, from the same weights."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from mt2st_fast.model.sharded import whole_shape
from mt2st_fast.spelling import counted
from mt2st_fast.training.checkpoints.resuming import optimizer_options
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.processes.resuming import draw_own_numbers
from mt2st_fast.training.run import Run
from mt2st_fast.training.run_options import RunOptions, fixed_settings


def begin_together(processes: Processes, run: Run, options: RunOptions, *, resumed: bool) -> None:
    """Start all processes at the same step with the weights of process 0, but each with its own random numbers.

    Raises InputError, in every process, naming what differs between one of them and process 0.
    """
    if not processes.are_several:
        return
    processes.check_same(
        {"a pass of": counted(run.steps_per_epoch, "step")},
        "give every process the same number of batches, as DistributedSampler does",
    )
    shapes = [whole_shape(p) for module in (run.encoder, run.heads) for p in module.parameters()]
    processes.check_same(
        {
            **fixed_settings(options, run.encoder, run.heads, run.steps_per_epoch),
            "a run of": counted(run.total_steps, "step"),
            "lr": options.lr,
            "lr_scheduler": run.scheduler,
            **_optimizer_facts(run.optimizer),
            "parameters of shapes": f"{len(shapes)} ({zlib.crc32(repr(shapes).encode()):08x})",
        }
    )
    processes.check_same(
        {"done": counted(run.steps_done, "step")},
        "let all of them read the same checkpoint, in a folder that they share",
    )
    processes.take_from_first(run.modules())
    if not resumed:
        draw_own_numbers(processes)


def _optimizer_facts(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    told = optimizer_options(optimizer, None)
    rates = [{"lr": float(group["lr"])} for group in optimizer.param_groups if "lr" in group]
    of_groups = [*enumerate(rates), *enumerate(told["groups"])]
    where = "the optimizer" if len(told["groups"]) == 1 else "parameter group {} of the optimizer"
    return {
        "optimizer": told["class"],
        "parameter groups": len(told["groups"]),
        **{f"{name} of {where.format(i)}": value for i, group in of_groups for name, value in group.items()},
    }

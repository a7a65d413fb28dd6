"""What several processes cannot do, refused by name before the first step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from mt2st_fast.errors import InputError
from mt2st_fast.training.learnt_weights import WeighsByLosses
from mt2st_fast.training.processes.group import Processes


def check_options(
    processes: Processes, *, graph: bool, fuse_backward: bool | None, metrics: Mapping[str, object]
) -> None:
    """Raises InputError for options that need a step without an exchange of gradients, or all rows in one place."""
    if not processes.are_several:
        return
    for task, metric in metrics.items():
        raise InputError(
            f"the metric of {task}, {type(metric).__name__}, sees the rows of one process, and {processes.count} "
            "measure a part each: leave metrics= out, and measure in one process"
        )
    for option, asked in (("graph=True", graph), ("fuse_backward=True", fuse_backward is True)):
        if asked:
            raise InputError(
                f"{option} is for one process: {processes.count} exchange the gradients of every step; leave it out, "
                'or let every process train a model of its own with distributed="none"'
            )


def check_schedule(processes: Processes, schedule: object) -> None:
    """Raises InputError for a schedule that takes more than one exchange of gradients a step."""
    if not processes.are_several:
        return
    for asked, does in (
        (isinstance(schedule, WeighsByLosses), "weighs a step by its losses before and after it"),
        (getattr(schedule, "accumulator_a_task", False), "steps the shared parameters once a task"),
    ):
        if asked:
            raise InputError(
                f"{type(schedule).__name__} {does}, which is for one process: {processes.count} exchange the gradients "
                "of a step once; give another schedule, or let every process train a model of its own with "
                'distributed="none"'
            )


def check_modules(processes: Processes, modules: Mapping[str, nn.Module]) -> None:
    """Raises InputError for modules, by name, that exchange something themselves, or ought to."""
    if not processes.are_several:
        return
    from torch.distributed.tensor import DTensor  # takes its time, and one process needs none of it

    for name, module in modules.items():
        for part_name, part in module.named_modules():
            where = f"{name}.{part_name}" if part_name else f"the {name}"
            if isinstance(part, DistributedDataParallel):
                raise InputError(
                    f"{where} is wrapped in DistributedDataParallel, and the Trainer exchanges gradients itself, those "
                    "of the heads too: give it the module within (.module)"
                )
            if isinstance(part, _BatchNorm):
                raise InputError(
                    f"{where} is a {type(part).__name__}, whose statistics {processes.count} processes do not have in "
                    "common: take LayerNorm or GroupNorm, or train in one process"
                )
        for parameter_name, parameter in module.named_parameters():
            # Of the older FullyShardedDataParallel the parameters are flat pieces under this name.
            if isinstance(parameter, DTensor) or "_flat_param" in parameter_name:
                raise InputError(
                    f"{name}.{parameter_name} is sharded (FSDP), and the Trainer keeps whole parameters in every "
                    "process: give it modules that are not sharded, or shard them in a loop of your own"
                )

"""A command in several processes: `torchrun --nproc-per-node 2 -m mt2st_fast train ...`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import typer

from mt2st_fast.cli.launched import TOGETHER, SaidElsewhereError, are_several
from mt2st_fast.errors import InputError
from mt2st_fast.training.processes.group import Processes, the_processes

MEETING = timedelta(minutes=5)  # time for all processes to start


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """Yield the processes that were started together, connected by NCCL if the run is on CUDA, else by gloo; a single
    process is a group of one.

    An error in one ends all of them. Raises InputError if they cannot connect, and SaidElsewhereError for an error that
    process 0 also reports.
    """
    made = are_several() and not dist.is_initialized()
    if made:
        on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        if on_cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        try:
            if on_cuda:
                dist.init_process_group("nccl")
            else:
                dist.init_process_group("gloo", timeout=MEETING)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the processes cannot connect to each other: {str(error).splitlines()[0]}"
            ) from error
    processes = the_processes(call=f"mt2st-fast {TOGETHER}")
    try:
        yield processes
    except typer.Exit:  # a regular exit, the same in all processes
        processes.close()
        raise
    except BaseException as error:
        # After an error, the group is not destroyed: that could wait for a process that is gone.
        processes.tell(error)
        if processes.is_echo and isinstance(error, InputError | OSError):
            raise SaidElsewhereError(str(error)) from error
        raise
    processes.close()
    if made:
        dist.destroy_process_group()

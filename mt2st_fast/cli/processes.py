"""A command in several processes: `torchrun --nproc-per-node 2 -m mt2st_fast train ...`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
import typer

from mt2st_fast.errors import InputError
from mt2st_fast.training.processes.group import Processes, the_processes

MEETING = timedelta(minutes=5)  # time for all processes to start
TOGETHER = "train"  # the only command that several processes run together


class SaidElsewhereError(InputError):
    """An error that process 0 also reports, so here it ends the command silently."""


def is_first() -> bool:
    """Whether this process prints: it is the only one, or the first of those started together."""
    return os.environ.get("RANK", "0") == "0" or not are_several()


def are_several() -> bool:
    """Whether torchrun, or a similar launcher, has started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def be_quiet_unless_first() -> None:
    """Make all processes except the first print only their own errors."""
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
        logging.getLogger().setLevel(logging.ERROR)


def refusal(arguments: Sequence[str]) -> str | None:
    """Return why several processes cannot run this command, or None."""
    command = next((argument for argument in arguments if not argument.startswith("-")), TOGETHER)
    if not are_several() or command == TOGETHER:
        return None
    count = os.environ["WORLD_SIZE"]
    return f"{command} runs in one process, but {count} were started; run it without torchrun"


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

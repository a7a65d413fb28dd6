"""A command that several processes run: `torchrun --nproc-per-node 2 -m mt2st_fast train ...`."""

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

MEETING = timedelta(minutes=5)  # that all may take to start
TOGETHER = "train"  # the one command that several processes run together


class SaidElsewhereError(InputError):
    """An error that process 0 says, too: here it ends the command without a word."""


def is_first() -> bool:
    """Whether this process prints: it is alone, or the first of those that were started together."""
    return os.environ.get("RANK", "0") == "0" or not are_several()


def are_several() -> bool:
    """Whether torchrun, or something like it, has started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1") and "RANK" in os.environ


def be_quiet_unless_first() -> None:
    """Have all processes but the first print errors of their own only."""
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
        logging.getLogger().setLevel(logging.ERROR)


def refusal(arguments: Sequence[str]) -> str | None:
    """Why several processes do not run this command, or None."""
    command = next((argument for argument in arguments if not argument.startswith("-")), TOGETHER)
    if not are_several() or command == TOGETHER:
        return None
    count = os.environ["WORLD_SIZE"]
    return f"{command} runs in one process, and {count} were started: start it without torchrun"


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """The processes that were started together, by NCCL where the run is on CUDA, else by gloo; one alone is a group.

    An error of one ends all of them. Raises InputError where they do not find each other, and SaidElsewhereError for an
    error that process 0 says, too.
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
            raise InputError(f"the processes do not find each other: {str(error).splitlines()[0]}") from error
    processes = the_processes()
    try:
        yield processes
    except typer.Exit:  # in order, and of all alike
        processes.close()
        raise
    except BaseException as error:
        # What is in trouble is let be: taking it down may wait for a process that is gone.
        processes.tell(error)
        if processes.is_echo and isinstance(error, InputError | OSError):
            raise SaidElsewhereError(str(error)) from error
        raise
    processes.close()
    if made:
        dist.destroy_process_group()

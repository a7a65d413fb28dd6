"""Whether a command is one of several processes that were started together; does not import torch."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from mt2st_fast.errors import InputError

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

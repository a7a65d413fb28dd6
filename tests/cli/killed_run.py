"""Trains in children that are killed at random, until one ends: a process of its own, which test_killed starts.

A child is a fork of a process that has imported everything and started no thread, so that two hundred take minutes.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from mt2st_fast.cli import main

# What a run imports when it comes to it; a child would do it each time.
for name in (
    "torch._dynamo",
    "matplotlib.backends.backend_agg",
    "mt2st_fast.runs.report",
    "mt2st_fast.runs.plots",
    "mt2st_fast.kernels.step.on_numba.text_step",
    "mt2st_fast.kernels.bags.on_numba.bags",
):
    importlib.import_module(name)


def in_a_child(arguments: list[str]) -> int:
    """The number of a process that runs a command; what it says goes nowhere."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 70
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    return child


def ended(child: int, seconds: float) -> bool:
    """Whether a child ended, and well, within some seconds; else it was killed."""
    end = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < end:
        done, found = os.waitpid(child, os.WNOHANG)
        if done:
            status = found
        else:
            time.sleep(0.002)
    if status is None:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == signal.SIGKILL:
            return False
    assert status == 0, f"a child ended with {os.waitstatus_to_exitcode(status)}"
    return True


def train_killed(out: Path, kills: int, seed: int, fresh: list[str]) -> dict[str, int]:
    """How many children were killed before there was a checkpoint, and after; the last one ends the run."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as elsewhere:
        began = time.monotonic()
        assert ended(in_a_child(["train", *fresh, "--epochs", "1", "--out", elsewhere]), 600.0)
        start = time.monotonic() - began
    killed = {"before": 0, "after": 0}
    while True:
        going_on = (out / "checkpoint" / "last.safetensors").exists()
        arguments = ["--resume"] if going_on else fresh
        left = kills - sum(killed.values())
        child = in_a_child(["train", *arguments, "--out", str(out)])
        if ended(child, chance.uniform(0.0, 1.5 * start) if left else 600.0):
            return killed
        killed["after" if going_on else "before"] += 1


if __name__ == "__main__":
    out, kills, seed, *fresh = sys.argv[1:]
    print(json.dumps(train_killed(Path(out), int(kills), int(seed), fresh)))

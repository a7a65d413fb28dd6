"""Starts processes that run scenarios of this folder together, and gathers what each found."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 240  # a group of scenarios that takes longer hangs


@contextlib.contextmanager
def started(arguments: list[str], count: int = 2) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that find each other as torchrun's do, of `python` with these arguments; none outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        one_thread = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        found.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=os.environ | place | master | one_thread,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.communicate()


def scenarios(module: str, names: list[str], folder: Path) -> list[str]:
    """Arguments that run functions of a module of tests one after another."""
    return ["-m", "tests.training.processes.together", module, str(folder), *names]


def run_together(module: str, names: list[str], folder: Path, count: int = 2) -> dict[str, list[Any]]:
    """What the functions returned, or {"error": line}, by name and process."""
    with started(scenarios(module, names, folder), count) as processes:
        for rank, process in enumerate(processes):
            text, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, f"process {rank}:\n{text}"
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(count)]
        for name in names
    }


def _work(module: str, folder: Path, names: list[str]) -> None:
    dist.init_process_group("gloo")
    scenarios = __import__(f"tests.training.processes.{module}", fromlist=["*"])
    for name in names:
        try:
            result = getattr(scenarios, name)(folder)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        torch.save(result, folder / f"{name}-{dist.get_rank()}.pt")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _work(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])

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
def started(
    module: str, names: list[str], folder: Path, count: int = 2
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that run functions of a module of tests one after another; none outlives the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(count):
        env = os.environ | {
            "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.training.processes.together", module, str(folder), *names]
        found.append(
            subprocess.Popen(
                command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.communicate()


def run_together(module: str, names: list[str], folder: Path, count: int = 2) -> dict[str, list[Any]]:
    """What the functions returned, or {"error": line}, by name and process."""
    with started(module, names, folder, count) as processes:
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

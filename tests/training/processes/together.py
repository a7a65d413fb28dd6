"""Starts processes that run scenarios of this folder together, and gathers what each found."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 900  # what takes longer hangs; beside other tests, the first on a machine compile for minutes


@contextlib.contextmanager
def started(arguments: list[str], count: int = 2) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that find each other as torchrun's do, of `python` with these arguments; none outlives the block."""
    # As torchrun does, this process keeps their store. A free port that process 0 takes later may then be another's.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    found = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        master["TORCHELASTIC_USE_AGENT_STORE"] = "True"
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
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        del store


def all_said(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What processes say until they end, all at once: one whose words nobody reads waits with them, for ever."""
    with ThreadPoolExecutor(len(processes)) as readers:
        return [text for text, _ in readers.map(lambda process: process.communicate(), processes)]


def wait_for(path: Path, *processes: subprocess.Popen[str]) -> None:
    """Wait until another process, of these or of a scenario's own, has written a file."""
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end, f"nobody has written {path}"
        assert all(process.poll() is None for process in processes), [p.communicate()[0] for p in processes]
        time.sleep(0.02)


def scenarios(module: str, names: list[str], folder: Path) -> list[str]:
    """Arguments that run functions of a module one after another: of this folder, or by its name under tests."""
    return ["-m", "tests.training.processes.together", module, str(folder), *names]


def run_together(module: str, names: list[str], folder: Path, count: int = 2) -> dict[str, list[Any]]:
    """What the functions returned, or {"error": line}, by name and process."""
    with started(scenarios(module, names, folder), count) as processes:
        hang = threading.Timer(SECONDS, lambda: [process.kill() for process in processes])
        hang.start()
        said = all_said(processes)
        hang.cancel()
        ends = [process.returncode for process in processes]
        assert ends == [0] * count, "\n".join(f"process {rank}:\n{text}" for rank, text in enumerate(said))
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(count)]
        for name in names
    }


def _work(module: str, folder: Path, names: list[str]) -> None:
    dist.init_process_group("gloo")
    scenarios = import_module(f"tests.{module}" if "." in module else f"tests.training.processes.{module}")
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

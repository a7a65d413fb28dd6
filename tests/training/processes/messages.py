"""Messages of several processes, on a board and by gloo; each function returns what its process received."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mt2st_fast.errors import InputError
from mt2st_fast.training.processes import board
from mt2st_fast.training.processes import memory as shared
from mt2st_fast.training.processes.group import Processes, the_processes
from tests.training.processes import runs


@contextmanager
def with_constants(**values: int) -> Iterator[None]:
    before = {name: getattr(board, name) for name in values}
    try:
        for name, value in values.items():
            setattr(board, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(board, name, value)


def _numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _received(processes: Processes) -> dict[str, Any]:
    rank, count = processes.rank, processes.count
    found: dict[str, Any] = {}
    for n in (0, 1, 1000, 3000):
        found[f"sum of {n}"] = processes.add_up(_numbers(rank, n))
        found[f"sum of {n} doubles"] = processes.add_up(_numbers(rank, n).double())
        found[f"of {n}"] = processes.gather(_numbers(rank, n, 2).numpy().tobytes())
    found["sum of a transposed one"] = processes.add_up(_numbers(rank, 7, 5).T)
    for longest in (30, 9000):  # for the board of these tests in one part, and in several
        lengths = [longest - 8 * r for r in range(count)]

        def write(into: torch.Tensor) -> None:
            into.copy_(torch.arange(len(into)) % (7 + rank))

        messages = processes.gather_written(write, lengths, torch.device("cpu"))
        found[f"written, {longest}"] = torch.cat(messages).clone()
    processes.barrier()
    found["json"] = processes.gather_json({"rank": rank, "text": "x" * (1 + 5000 * rank)})
    found["flags"] = processes.any_of_all(rank == 0, False, rank == count - 1)
    return found


def _messages(*, has_board: bool) -> dict[str, Any]:
    processes = the_processes()
    try:
        assert (processes._board is not None) == has_board
        return _received(processes)
    finally:
        processes.close()


def on_a_board(folder: Path) -> dict[str, Any]:
    with with_constants(SLOT=4096):
        return _messages(has_board=True)


def by_gloo(folder: Path) -> dict[str, Any]:
    with with_constants(MOST_PROCESSES=1):
        return _messages(has_board=False)


def windows_by_gloo(folder: Path) -> dict[str, Any]:
    with with_constants(MOST_PROCESSES=1):
        return runs.windows(folder)


def windows_in_parts(folder: Path) -> dict[str, Any]:
    with with_constants(SLOT=512):
        return runs.windows(folder)


def without_permission(folder: Path) -> dict[str, Any]:
    """Where one process cannot open the memory, none uses it."""
    opened = shared.opened
    shared.opened = lambda told, n_bytes: None if dist.get_rank() == 1 else opened(told, n_bytes)
    try:
        return _messages(has_board=False)
    finally:
        shared.opened = opened


def of_another_length(folder: Path) -> dict[str, Any]:
    processes = the_processes()
    assert processes._board is not None
    try:
        processes._board.gather(bytes(4 + 4 * processes.rank), lambda: None)
    except InputError as error:
        return {"said": str(error)}
    finally:
        processes.close()
    return {}


def memory(folder: Path) -> dict[str, Any]:
    """Where the memory is: in no folder."""
    import os

    processes = the_processes()
    assert processes._board is not None
    try:
        return {"file": os.readlink(f"/proc/self/fd/{processes._board._file}")}
    finally:
        processes.close()

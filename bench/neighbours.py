"""python -m bench.neighbours: a training step on one thread and on two, alone and beside busy processes.

A step with all heads of the EWT tagger (of the embedding model, if the treebank is not available), by the Trainer and
by torch eager with dense tables: the median milliseconds of a step, over bursts that take turns. A busy process does
nothing but compute.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.interleaved import Candidate, interleave
from bench.measure import STEP_BURST_US
from bench.step_cases import STEP_CASES, Step, eager_step, trainer_step
from mt2st_fast import MultiTask

THREADS = (1, 2)


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run `count` processes that compute until the end of the block."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of bursts per candidate.")] = 20,
    most: Annotated[int, typer.Option(min=0, help="Largest number of busy processes.")] = 2,
) -> None:
    """Print a table with a row per candidate and number of threads, and a column per number of busy processes."""
    case = next(case for case in reversed(STEP_CASES) if case.obstacle() is None)
    model = case.build(torch.device("cpu"))
    steps: dict[str, Step] = {
        "mt2st-fast": trainer_step(model, MultiTask())[1],
        "torch eager": eager_step(model, tuple(model.heads.tasks)),
    }
    candidates = {
        f"{name}, {n_threads} threads": Candidate(step, lambda n=n_threads: torch.set_num_threads(n))
        for name, step in steps.items()
        for n_threads in THREADS
    }
    found = []
    for count in range(most + 1):
        with busy_processes(count):
            timings = interleave(
                candidates,
                rounds=rounds,
                burst_us=STEP_BURST_US["cpu"],
                limit_seconds=60.0,
                watches_cores=False,
            )
            found.append(timings)
    table = Table(
        "ms per step", *(f"beside {count}" for count in range(most + 1)), title=f"{case.name}: {model.shape}"
    )
    for name in candidates:
        medians = [timings.median_us(name) / 1e3 for timings in found]
        table.add_row(name, *(f"{ms:.2f} ({ms / medians[0]:.2f})" for ms in medians))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)

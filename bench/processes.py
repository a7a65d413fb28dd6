"""torchrun --nproc-per-node 2 -m bench.processes: the tokens/s of two processes over those of one, and what bounds it.

The tagger of English EWT with a table of a million rows, one thread per process. Bursts of steps take turns:

    one         one process alone
    apart       each process trains a model of its own, at once: what memory and caches leave of the second core
    half apart  the same with half a batch each: a step of two that exchange nothing, and update only their own rows
    together    both train one model on the batch of one: the same steps, each taken sooner (strong scaling)
    as many     both train one model, each on as many rows as one: larger steps (weak scaling)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table

from bench.step_models import EWT
from mt2st_fast.cli.reading import read_data
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment

ROWS = 1_000_000
SETTLING = 8  # steps before those that are timed, as other models were in the caches
ENDLESS_EPOCHS = 10**6

Burst = Callable[[int], float]


def _burst_of(config: Config, splits: Any, *, together: bool) -> Burst:
    """Return a function that takes so many steps of a new model, and returns the milliseconds of one."""
    experiment = Experiment.prepare(config, splits)
    experiment.trainer.distributed = "auto" if together else "none"
    run = experiment.trainer.begin(experiment.loaders, epochs=ENDLESS_EPOCHS)

    def burst(steps: int) -> float:
        for _ in range(SETTLING):
            run.step()
        started = time.perf_counter()
        for _ in range(steps):
            run.step()
        elapsed = time.perf_counter() - started
        run.record()
        return 1e3 * elapsed / steps

    return burst


def _slower(own_ms: float) -> float:
    """Return the time of the process that took longest."""
    slowest = torch.tensor(own_ms, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Number of bursts of each way.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Steps in a burst.")] = 40,
    batch: Annotated[int, typer.Option(min=2, help="Rows in a step of one process.")] = 2048,
) -> None:
    """Print a table with a row per way."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    data = f"conllu:{EWT}"
    config = Config(
        data=data, main="upos", aux=("xpos", "deprel"), buckets=ROWS, strategy="mtl", batch_size=batch
    )
    splits = read_data(config)
    alone = _burst_of(config, splits, together=False)
    part = _burst_of(replace(config, batch_size=batch // count), splits, together=False)
    ways: dict[str, Burst] = {
        "one": lambda n: alone(n) if rank == 0 else 0.0,
        "apart": alone,
        "half apart": part,
        "together": _burst_of(config, splits, together=True),
        "as many": _burst_of(replace(config, batch_size=count * batch), splits, together=True),
    }
    found_ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, burst in ways.items():
            dist.barrier()  # a process that waits here uses no core
            found_ms[name].append(_slower(burst(steps)))
    if rank == 0:
        _print(found_ms, count, batch)
    dist.destroy_process_group()


def _print(found_ms: dict[str, list[float]], count: int, batch: int) -> None:
    table = Table(
        "way",
        "rows a step, of all",
        "ms a step, median",
        "tokens/s",
        "of one process",
        title=f"{count} processes",
    )
    one_ms = statistics.median(found_ms["one"])
    for name, each_ms in found_ms.items():
        ms, batches = statistics.median(each_ms), count if name in ("apart", "as many") else 1
        table.add_row(
            name, f"{batches * batch:,}", f"{ms:.2f}", f"{1e3 * batches * batch / ms:,.0f}",
            f"{batches * one_ms / ms:.2f}",
        )  # fmt: skip
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)

"""python -m bench.bags [documents|polarity|steps|rows|memory|gpu|all]: row-sparse embeddings against their peers.

All ratios come from one run, interleaved, with the same number of threads for all, and quality is reported with speed.

    documents   50,000 documents of 40 Zipf words, V=50,000, dim 100: tokens/s of a pass over them, one head against
                fasttext.train_supervised, five heads against five runs of it. A pass is the cost of one more epoch:
                the time of LONG epochs less that of one, over LONG - 1, which excludes reading the file; LONG is
                large, so that it also excludes the noise of reading. The whole call of EPOCHS is reported as well.
    steps       a step of five heads on such bags against nn.EmbeddingBag, sparse and dense, in torch eager
    polarity    the sentences of --polarity DIR: seconds of training to fastText's own best test accuracy
    rows        the same batch on a table of 10 thousand and of 10 million rows
    memory      the peak memory of training beyond table and batch
    gpu         with --device cuda: passes over the documents against a CPU's, updates against copying their bytes
                (bags_gpu.py)

Records are appended to the folder of --records.
"""

from __future__ import annotations

import gc
import random
import tempfile
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from bench import ledger
from bench.bag_cases import (
    FAMILIES,
    Documents,
    Run,
    fasttext_obstacle,
    our_kernel_step,
    our_step,
    run_fasttext,
    run_ours,
    torch_step,
)
from bench.bags_gpu import measure_gpu
from bench.device import find
from bench.environment import describe
from bench.interleaved import Candidate, Timings, interleave
from bench.load import CpuLoad
from bench.memory import high_water_bytes, reset_high_water
from bench.printing import Measured, field, record_and_print

console = Console(width=150)

N_TRAIN, N_TEST, L, V, DIM, BATCH = 50_000, 5_000, 40, 50_000, 100, 512
EPOCHS, LONG = 5, 21
FEW_ROWS, MANY_ROWS = 10_000, 10_000_000
MEMORY_ROWS = 2_000_000
# In training, a step follows an equal one; after another candidate's pass over a whole table, the cache is cold.
STEP_BURST_US = 50_000
FASTTEXT = {"dim": DIM, "lr": 0.5, "minCount": 1}
OURS = {"dim": DIM, "batch_size": 1024, "lr": 0.1}
# fastText's own best is the best median over seeds on this grid.
POLARITY_EPOCHS, POLARITY_RATES = (3, 5, 10, 25), (0.1, 0.25, 0.5, 1.0)
POLARITY_SEEDS = 5


class Suite(StrEnum):
    """What to measure."""

    documents = "documents"
    steps = "steps"
    polarity = "polarity"
    rows = "rows"
    memory = "memory"
    gpu = "gpu"
    all = "all"


def main(
    suite: Annotated[Suite, typer.Argument(help="What to measure.")] = Suite.all,
    rounds: Annotated[int, typer.Option(min=1, help="Complete runs of each candidate.")] = 5,
    polarity: Annotated[
        Path | None, typer.Option(help="Folder with rt-polarity.pos and rt-polarity.neg.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device of the suite gpu.")] = "cuda",
    records: Annotated[Path, typer.Option(help="Folder for the records.")] = ledger.FOLDER,
) -> None:
    """Measure, print and append records."""
    if suite is Suite.gpu:
        _measure_gpu(device, rounds, records)
        return
    environment = describe()

    def wanted(one: Suite) -> bool:
        return suite in (one, Suite.all)

    with tempfile.TemporaryDirectory() as folder:
        if wanted(Suite.steps):
            ledger.append(measure_steps(environment), records)
        if wanted(Suite.rows):
            ledger.append(measure_rows(environment), records)
        if wanted(Suite.memory):
            ledger.append(measure_memory(environment), records)
        if wanted(Suite.documents):
            ledger.append(measure_documents(environment, Path(folder), rounds), records)
        if wanted(Suite.polarity):
            if polarity is None:
                console.print("skipped polarity: set its folder with --polarity DIR")
            elif reason := fasttext_obstacle():
                console.print(f"skipped polarity: {reason}")
            else:
                ledger.append(measure_polarity(environment, polarity, Path(folder)), records)


def _measure_gpu(name: str, rounds: int, records: Path) -> None:
    device = find(name)
    ledger.append(measure_gpu(describe(device), device, rounds), records)


# --- steps -----------------------------------------------------------------------------------------------


def measure_steps(environment: ledger.Record) -> list[ledger.Record]:
    """Measure five heads on bags: our step against torch's own layers."""
    documents = Documents.make(BATCH, L, V)
    steps = {
        "EmbeddingBag, sparse": torch_step(V, DIM, documents.words, documents.labels, sparse=True),
        "EmbeddingBag, dense": torch_step(V, DIM, documents.words, documents.labels, sparse=False),
        "ours": our_kernel_step(V, DIM, documents.words, documents.labels),
        "ours, fixed batch": our_kernel_step(V, DIM, documents.words, documents.labels, fixed=True),
        "ours, fused backward": our_step(V, DIM, documents.words, documents.labels),
        "ours, not fused": our_step(V, DIM, documents.words, documents.labels, fused=False),
    }
    timings = interleave(
        {name: Candidate(step) for name, step in steps.items()},
        rounds=60,
        limit_seconds=60,
        burst_us=STEP_BURST_US,
    )
    best = min(("EmbeddingBag, sparse", "EmbeddingBag, dense"), key=lambda name: timings.median_us(name))
    shape = f"B={BATCH} L={L} V={V} D={DIM} C=[{len(FAMILIES)} x 10]"
    return _report_steps(
        environment,
        "five heads on bags",
        shape,
        timings,
        {name: best for name in steps if name.startswith("ours")},
    )


def measure_rows(environment: ledger.Record) -> list[ledger.Record]:
    """Measure the same batch on a short and on a long table."""
    documents = Documents.make(BATCH, L, FEW_ROWS)
    steps = {
        f"V={rows:,}": our_kernel_step(rows, DIM, documents.words, documents.labels)
        for rows in (FEW_ROWS, MANY_ROWS)
    }
    timings = interleave(
        {name: Candidate(step) for name, step in steps.items()},
        rounds=60,
        limit_seconds=60,
        burst_us=STEP_BURST_US,
    )
    few, many = steps
    return _report_steps(environment, "length of the table", f"B={BATCH} L={L} D={DIM}", timings, {few: many})


def _report_steps(
    environment: ledger.Record, case: str, shape: str, timings: Timings, over: Mapping[str, str]
) -> list[ledger.Record]:
    """Print and make records; `over` maps a candidate to the one whose time is divided by its own."""
    measured = Measured(environment, "bags", case, shape, "step")
    return record_and_print(console, measured, timings, {name: (over[name], name) for name in over})


# --- memory ----------------------------------------------------------------------------------------------


def measure_memory(environment: ledger.Record) -> list[ledger.Record]:
    """Measure the peak bytes of steps beyond the table, its state of one number per row, and the batch."""
    documents = Documents.make(BATCH, L, V)
    warm = our_kernel_step(FEW_ROWS * 5, DIM, documents.words, documents.labels)
    step = our_kernel_step(MEMORY_ROWS, DIM, documents.words, documents.labels)
    for _ in range(2):
        warm()
    gc.collect()
    before = reset_high_water()
    for _ in range(5):
        step()
    extra = high_water_bytes() - before
    table_bytes = 4 * MEMORY_ROWS * DIM
    console.print(
        f"memory: a table of {table_bytes / 1e6:,.0f} MB; steps need {extra / 1e6:,.1f} MB more at the peak"
    )
    shape = f"B={BATCH} L={L} V={MEMORY_ROWS} D={DIM}"
    return [ledger.make_value(environment, "bags", "memory of a step", shape, "ours", "bytes", float(extra))]


# --- documents -------------------------------------------------------------------------------------------


def measure_documents(environment: ledger.Record, folder: Path, rounds: int) -> list[ledger.Record]:
    """Measure tokens/s of passes over documents."""
    train, test = Documents.make(N_TRAIN, L, V), Documents.make(N_TEST, L, V, seed=1)
    runs: dict[str, Callable[[int], Run]] = {}
    files = {
        families: (train.write(folder / f"train{i}", families), test.write(folder / f"test{i}", families))
        for i, families in enumerate([*((family,) for family in FAMILIES), FAMILIES])
    }
    one, five = files[FAMILIES[:1]], files[FAMILIES]
    runs["ours, one head"] = lambda epoch: run_ours(*one, epoch, **OURS)
    runs["ours, five heads"] = lambda epoch: run_ours(*five, epoch, **OURS)
    if reason := fasttext_obstacle():
        console.print(f"skipped fasttext: {reason}")
    else:
        runs["fasttext, one run"] = lambda epoch: run_fasttext(*one, epoch, **FASTTEXT)
        runs["fasttext, five runs"] = lambda epoch: _together(
            [run_fasttext(*files[(family,)], epoch, **FASTTEXT) for family in FAMILIES]
        )
    found, load = _interleaved_runs(runs, (1, EPOCHS, LONG), rounds)
    us_of_pass = {
        name: np.array(
            [(b.seconds - a.seconds) / (LONG - 1) * 1e6 for a, b in zip(by[1], by[LONG], strict=True)]
        )
        for name, by in found.items()
    }
    whole_us = {name: np.array([run.seconds * 1e6 for run in by[EPOCHS]]) for name, by in found.items()}
    quality = {name: median(run.accuracy for run in by[EPOCHS]) for name, by in found.items()}
    made = []
    for title, times in (("a pass", us_of_pass), (f"whole call, {EPOCHS} epochs", whole_us)):
        made += _report_documents(environment, title, Timings(times, load), quality)
    return made


def _report_documents(
    environment: ledger.Record, direction: str, timings: Timings, quality: Mapping[str, float]
) -> list[ledger.Record]:
    peer_of = {"ours, one head": "fasttext, one run", "ours, five heads": "fasttext, five runs"}
    tokens = N_TRAIN * L * (1 if direction == "a pass" else EPOCHS)
    shape = f"{N_TRAIN} documents, L={L} V={V} D={DIM}"
    return record_and_print(
        console,
        Measured(environment, "bags", "documents", shape, direction),
        timings,
        {name: (peer, name) for name, peer in peer_of.items() if {name, peer} <= set(timings.rounds_us)},
        title=f"documents, {direction}",
        more={name: {"accuracy": round(quality[name], 4)} for name in timings.rounds_us},
        columns={
            "million tokens/s": lambda record: f"{tokens / record['p50']:.2f}",
            "test accuracy": field("accuracy", digits=4),
        },
    )


def _together(runs: list[Run]) -> Run:
    return Run(sum(r.seconds for r in runs), None, sum(r.accuracy for r in runs) / len(runs))


def _interleaved_runs(
    runs: Mapping[str, Callable[[int], Run]], epochs: tuple[int, ...], rounds: int
) -> tuple[dict[str, dict[int, list[Run]]], float | None]:
    found: dict[str, dict[int, list[Run]]] = {name: {epoch: [] for epoch in epochs} for name in runs}
    for run in runs.values():  # compile and load
        run(1)
    load = CpuLoad()
    for _ in range(rounds):
        for name, run in runs.items():
            for epoch in epochs:
                found[name][epoch].append(run(epoch))
    return found, load.others_share()


# --- polarity --------------------------------------------------------------------------------------------


def measure_polarity(environment: ledger.Record, source: Path, folder: Path) -> list[ledger.Record]:
    """Measure seconds to fastText's own best accuracy: the shortest training whose median over seeds reaches it."""
    train, test = _split_polarity(source, folder)
    theirs = _grid(
        lambda epoch, lr, seed: run_fasttext(
            train, test, epoch, dim=DIM, lr=lr, wordNgrams=2, bucket=200_000, seed=seed
        ),
        POLARITY_EPOCHS,
        POLARITY_RATES,
    )
    target = max(median(r.accuracy for r in runs) for runs in theirs.values())
    ours = _grid(
        lambda epoch, lr, seed: run_ours(
            train, test, epoch, dim=DIM, lr=lr, word_ngrams=2, bucket=200_000, seed=seed, batch_size=128
        ),
        (1, 2, 3),
        (0.1, 0.2, 0.3),
    )
    made = []
    seconds = {}
    for name, grid in (("fasttext", theirs), ("ours", ours)):
        reached = {
            setting: runs for setting, runs in grid.items() if median(r.accuracy for r in runs) >= target
        }
        best = max(median(r.accuracy for r in runs) for runs in grid.values())
        if not reached:
            console.print(f"polarity: {name} does not reach {target:.4f}; its best is {best:.4f}")
            continue
        setting, runs = min(reached.items(), key=lambda item: median(_training_seconds(r) for r in item[1]))
        seconds[name] = median(_training_seconds(r) for r in runs)
        accuracy = median(r.accuracy for r in runs)
        console.print(
            f"polarity: {name} reaches {target:.4f} with {accuracy:.4f} after {seconds[name]:.3f} s "
            f"(epochs, lr) = {setting}; whole call {median(r.seconds for r in runs):.3f} s; its best {best:.4f}"
        )
        value = ledger.make_value(
            environment, "bags", "sentence polarity", f"to {target:.4f}", name, "seconds", seconds[name]
        )
        made.append({**value, "accuracy": accuracy, "best": best, "setting": list(setting)})
    if len(seconds) == 2:
        console.print(f"polarity: ours / fasttext {seconds['ours'] / seconds['fasttext']:.2f}")
    return made


def _training_seconds(run: Run) -> float:
    return run.seconds if run.train_seconds is None else run.train_seconds


def _grid(
    run: Callable[[int, float, int], Run], epochs: tuple[int, ...], rates: tuple[float, ...]
) -> dict[tuple[int, float], list[Run]]:
    run(epochs[0], rates[0], 0)  # compile and load
    return {
        (epoch, lr): [run(epoch, lr, seed) for seed in range(1, POLARITY_SEEDS + 1)]
        for epoch in epochs
        for lr in rates
    }


def _split_polarity(source: Path, folder: Path) -> tuple[Path, Path]:
    """Split into nine tenths for training and one for testing, shuffled with a fixed seed."""
    lines = [
        f"__label__{label} {line.strip()}"
        for label in ("pos", "neg")
        for line in (source / f"rt-polarity.{label}").read_text(encoding="utf-8").splitlines()
    ]
    random.Random(0).shuffle(lines)
    cut = len(lines) * 9 // 10
    parts = {"train": lines[:cut], "test": lines[cut:]}
    for name, part in parts.items():
        (folder / f"polarity.{name}").write_text("\n".join(part) + "\n", encoding="utf-8")
    return folder / "polarity.train", folder / "polarity.test"


if __name__ == "__main__":
    typer.run(main)

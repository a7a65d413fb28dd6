"""python -m bench.serving: what using a model costs, beside fastText and an eager loop; prints a table of medians.

A classifier of lines answers for one line and for all lines of a file, finds neighbours, and labels one line on the
command line, where the start of the process is what counts. A trainer evaluates a few held-out rows. fastText trains on
the same file with the same dimension; its rows are left out where it is not installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from bench.bag_cases import Documents, fasttext_obstacle
from bench.held_out import by_torch
from bench.interleaved import Candidate, interleave
from mt2st_fast import Classification, MultiTask, MultiTaskHeads, Trainer
from mt2st_fast import fasttext as ours

Calls = Mapping[str, Callable[[], object]]
DIM, WORD = 100, "w17"
WIDTH, CLASSES = 128, 10
START_ROUNDS = 5


def main(
    documents: Annotated[int, typer.Option(help="Lines to train on, and to label.")] = 50_000,
    rounds: Annotated[int, typer.Option(help="Rounds of interleaved calls.")] = 25,
) -> None:
    """Measure everything once, in about two minutes on two cores."""
    table = Table("what", "ours", "peer", "theirs", "theirs / ours")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, calls in _of_lines(folder, documents).items():
            timings = interleave({peer: Candidate(call) for peer, call in calls.items()}, rounds=rounds)
            _add(table, what, {peer: timings.median_us(peer) / 1e6 for peer in calls})
        _add(table, "label one line, mt2st-fast predict", _starts(folder))
    for n_rows in (32, 512):
        for n_heads in (1, 8):
            calls = _evaluations(n_rows, n_heads)
            timings = interleave({peer: Candidate(call) for peer, call in calls.items()}, rounds=rounds)
            what = f"Trainer.evaluate, {n_rows} rows, heads: {n_heads}"
            _add(table, what, {peer: timings.median_us(peer) / 1e6 for peer in calls})
    Console(width=120).print(table)


def _of_lines(folder: Path, documents: int) -> dict[str, Calls]:
    """Return the calls by what they do, of our model and, if it is installed, fastText's."""
    train = Documents.make(documents).write(folder / "train.txt", ("topic",))
    labelled = Documents.make(documents, seed=1).write(folder / "labelled.txt", ("topic",))
    lines = [line.partition(" ")[2] for line in labelled.read_text().splitlines()]
    (folder / "one.txt").write_text(lines[0] + "\n")
    model = ours.train_supervised(str(train), dim=DIM)
    model.save_model(folder / "model")
    found: dict[str, dict[str, Callable[[], object]]] = {
        "predict, one line": {"ours": lambda: model.predict(lines[0])},
        f"predict, a list of {documents:,} lines": {"ours": lambda: model.predict(lines)},
        "get_nearest_neighbors": {"ours": lambda: model.get_nearest_neighbors(WORD)},
    }
    if (reason := fasttext_obstacle()) is not None:
        print(reason)
        return dict(found)
    import fasttext

    other: Any = fasttext.train_supervised(str(train), dim=DIM, thread=2, verbose=0)
    # By its core: with NumPy 2, its own method fails on one line.
    peers = (
        lambda: other.f.predict(f"{lines[0]}\n", 1, 0.0, "strict"),
        lambda: other.predict(lines),
        lambda: other.get_nearest_neighbors(WORD),
    )
    for calls, call in zip(found.values(), peers, strict=True):
        calls["fastText"] = call
    return dict(found)


def _starts(folder: Path) -> dict[str, float]:
    """Return the median seconds of whole processes, which take turns."""
    predict = ["-m", "mt2st_fast", "predict", str(folder / "model"), str(folder / "one.txt")]
    programs = {"ours": predict, "import torch": ["-c", "import torch"]}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(START_ROUNDS):
        for name, program in programs.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *program], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - begin)
    return {name: median(times) for name, times in seconds.items()}


def _evaluations(n_rows: int, n_heads: int) -> Calls:
    tasks = {f"t{k}": Classification(CLASSES) for k in range(n_heads)}
    encoder = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    trainer = Trainer(encoder, MultiTaskHeads(WIDTH, tasks, "t0"), schedule=MultiTask(), device="cpu")
    batch = torch.randn(n_rows, 64), {name: torch.randint(CLASSES, (n_rows,)) for name in tasks}
    trainer.fit([batch], epochs=2)
    return {"ours": lambda: trainer.evaluate([batch]), "torch eager": lambda: by_torch(trainer, *batch)}


def _add(table: Table, what: str, seconds: Mapping[str, float]) -> None:
    own = seconds["ours"]
    for peer in [peer for peer in seconds if peer != "ours"] or [""]:
        theirs = seconds.get(peer)
        ratio = "" if theirs is None else f"{theirs / own:.2f}"
        table.add_row(what, _shown(own), peer, "" if theirs is None else _shown(theirs), ratio)


def _shown(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


if __name__ == "__main__":
    typer.run(main)

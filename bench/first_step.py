"""python -m bench.first_step: what the first steps cost on a machine that has compiled no kernel yet.

Every kind of training runs in a process of its own, with an empty folder for compiled kernels, and then once more,
when it finds them there. The data are small, so that next to nothing but compiling takes time: seconds, and the
processor's seconds (below them beside other processes), from data in memory to the end of an epoch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from mt2st_fast import (
    BagEncoder,
    Classification,
    LazyAdam,
    MultiTaskHeads,
    Trainer,
    WindowEncoder,
    Word2Vec,
    train_supervised,
)
from mt2st_fast.kernels.machine.cache import FOLDER_VARIABLE

ROWS, WORDS = 64, 100
TASKS = {"a": Classification(5), "b": Classification(3)}

Inputs = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def _train(
    encoder: nn.Module, inputs: Inputs, n_features: int, *, evaluated: bool = False, **options: Any
) -> None:
    targets = {task: torch.randint(0, kind.classes, (ROWS,)) for task, kind in TASKS.items()}
    trainer = Trainer(encoder, MultiTaskHeads(n_features, TASKS, main="a"), device="cpu", **options)
    batches = [(inputs, targets)] * 3
    trainer.fit(batches, val=batches if evaluated else None, epochs=1)


def _mlp(**options: Any) -> None:
    _train(nn.Sequential(nn.Linear(16, 32), nn.ReLU()), torch.randn(ROWS, 16), 32, **options)


def _embedding_bag() -> None:
    _train(nn.Sequential(nn.EmbeddingBag(WORDS, 32)), torch.randint(0, WORDS, (ROWS, 8)), 32)


def _tagger() -> None:
    encoder = WindowEncoder(WORDS, 16, window=1, hidden=32, sparse=True)
    _train(encoder, torch.randint(0, WORDS, (ROWS, 3)), 32, optimizer=LazyAdam)


def _bags() -> None:
    words = (
        torch.randint(0, WORDS, (8 * ROWS,)),
        torch.arange(0, 8 * ROWS + 1, 8),
    )  # the last offset is the end
    _train(BagEncoder(WORDS, 32, sparse=True), words, 32, optimizer=LazyAdam)


def _autograd() -> None:
    heads = MultiTaskHeads(16, TASKS, main="a")
    targets = {task: torch.randint(0, kind.classes, (ROWS,)) for task, kind in TASKS.items()}
    heads(torch.randn(ROWS, 16, requires_grad=True), targets).total.backward()


def _supervised() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"__label__{'ab'[i % 2]} word{i % 7} word{i % 5}" for i in range(200)]
        Path(folder, "lines.txt").write_text("\n".join(lines), "utf-8")
        train_supervised(str(Path(folder, "lines.txt")), epoch=1)


def _word2vec(sg: int) -> None:
    Word2Vec([["a", "b", "c", "d"] * 5] * 30, vector_size=16, min_count=1, epochs=1, sg=sg)


KINDS: dict[str, Callable[[], None]] = {
    "heads alone, by autograd": _autograd,
    "nn.Sequential of linear layers": _mlp,
    "the same with clip_norm": lambda: _mlp(clip_norm=1.0),
    "the same, evaluated": lambda: _mlp(evaluated=True),
    "nn.EmbeddingBag": _embedding_bag,
    "WindowEncoder, LazyAdam": _tagger,
    "BagEncoder, LazyAdam": _bags,
    "train_supervised": _supervised,
    "Word2Vec, CBOW": lambda: _word2vec(0),
    "Word2Vec, skip-gram": lambda: _word2vec(1),
}


def _first_step_of(kind: str, folder: str) -> dict[str, float]:
    """Return what a new process reports that finds its kernels in this folder."""
    found = subprocess.run(
        [sys.executable, "-m", "bench.first_step", "--child", kind],
        env={**os.environ, FOLDER_VARIABLE: folder}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        raise SystemExit(f"'{kind}' failed:\n{found.stderr}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def _report(kind: str) -> None:
    begin, begin_cpu = time.perf_counter(), time.process_time()
    KINDS[kind]()
    print(
        json.dumps({"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu})
    )


def main(
    kinds: Annotated[str, typer.Option(help="Only kinds whose name contains this.")] = "",
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print a table with a row per kind of training."""
    if child:
        _report(child)
        return
    table = Table("first steps of", "nothing compiled, s", "of the processor, s", "compiled before, s")
    for kind in KINDS:
        if kinds not in kind:
            continue
        with tempfile.TemporaryDirectory() as folder:
            first, again = _first_step_of(kind, folder), _first_step_of(kind, folder)
        times = first["seconds"], first["cpu_seconds"], again["seconds"]
        table.add_row(kind, *(f"{seconds:.1f}" for seconds in times))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)

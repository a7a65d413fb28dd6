"""python -m bench.jobs [--device cuda|cpu] [--corpus PATH]: run whole jobs as a user would, and record them.

    train         `mt2st-fast train` with its defaults, in its own process: tokens/s and accuracy from its report.json
    supervised    train_supervised on 50,000 generated documents of five label families, on the device and on the CPU
    words         Word2Vec, skip-gram, on generated text

The first call compiles or loads kernels; the second one counts, and the time of the first is recorded as well. A job
that cannot run is skipped by name in one line, and a failing one makes the exit code 1. --warm-up only compiles what
the CPU measurements need, on tiny inputs, and records nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console

from bench import ledger
from bench.bag_cases import FAMILIES, Documents, run_ours
from bench.bags_gpu import FULL, make_pass
from bench.device import find, synchronize
from bench.environment import ROOT, describe
from mt2st_fast import Word2Vec

console = Console(width=150)
EPOCHS = 5
WARM_DOCUMENTS = 400


class Sizes(NamedTuple):
    """The sizes of all jobs."""

    documents: int = 50_000
    test_documents: int = 2_000
    words: int = 2_000_000
    types: int = 20_000


FULL_SIZES = Sizes()


Job = Callable[[], Iterator[ledger.Record]]


def main(
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto (CUDA if available).")] = "auto",
    corpus: Annotated[
        Path | None,
        typer.Option(help="CoNLL-U file or folder for train; the built-in corpus by default."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this job: train, supervised or words. May be repeated.")
    ] = None,
    train_seconds: Annotated[float, typer.Option(help="Time limit of the train process.")] = 60.0,
    warm: Annotated[
        bool, typer.Option("--warm-up", help="Only compile what the CPU needs; writes no records.")
    ] = False,
    records: Annotated[Path, typer.Option(help="Folder for the records.")] = ledger.FOLDER,
) -> None:
    """Run the jobs, print one line per job and append records."""
    found = find(device)
    if warm:
        warm_cpu()
        return
    environment = describe(found)
    red = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs: dict[str, Job] = {
            "train": lambda: run_train(environment, found, corpus, folder, train_seconds),
            "supervised": lambda: run_supervised(environment, found, folder),
            "words": lambda: run_words(environment, found, folder),
        }
        if unknown := set(only or ()) - jobs.keys():
            raise typer.BadParameter(f"--only {min(unknown)}: available are {', '.join(jobs)}")
        for title, job in jobs.items():
            if not only or title in only:
                red += not survived(title, job, records)
    if red:
        raise typer.Exit(1)


def survived(title: str, job: Job, records: Path) -> bool:
    """Run one job, so that a failure does not affect the others."""
    try:
        ledger.append(job(), records)
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[-1]
        console.print(f"[red]{title}: failed, {type(error).__name__}: {first[:300]}[/red]", highlight=False)
        return False
    return True


def _record(
    environment: ledger.Record, case: str, shape: str, peer: str, unit: str, value: float, **more: Any
) -> ledger.Record:
    made = {**ledger.make_value(environment, "jobs", case, shape, peer, unit, value), **more}
    shown = ", ".join(f"{name} {_shown(field)}" for name, field in more.items())
    console.print(f"{case}, {peer}: {value:,.0f} {unit}; {shown}", highlight=False, markup=False)
    return made


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


# --- mt2st-fast train ------------------------------------------------------------------------------------


def run_train(
    environment: ledger.Record, device: torch.device, corpus: Path | None, folder: Path, limit_seconds: float
) -> Iterator[ledger.Record]:
    """Run the command line with its defaults, and read its report. Raises RuntimeError with its last line."""
    out = folder / "train"
    data = "stdlib" if corpus is None else f"conllu:{corpus.resolve()}"
    command = [sys.executable, "-m", "mt2st_fast", "train", "--data", data, "--device", device.type, "--out"]
    started = time.perf_counter()
    try:
        run = subprocess.run(
            [*command, str(out)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit_seconds
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not finished after {limit_seconds:g} s") from None
    seconds = time.perf_counter() - started
    if run.returncode:
        raise RuntimeError((run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-1])
    report = json.loads((out / "report.json").read_text("utf-8"))
    yield _record(
        environment,
        "mt2st-fast train",
        f"{report['data']['name']}, {report['steps']} steps",
        f"ours on {device.type}",
        "tokens/s",
        float(report["tokens_per_second"]),
        call_seconds=round(seconds, 2),
        train_seconds=round(float(report["train_seconds"]), 3),
        quality=report["main"]["test"],
        metric=report["main"]["metric"],
        phases=[
            {key: phase[key] for key in ("active", "engine", "graph", "step_ms_median") if key in phase}
            for phase in report["phases"]
        ],
    )


# --- train_supervised ------------------------------------------------------------------------------------


def run_supervised(
    environment: ledger.Record, device: torch.device, folder: Path, sizes: Sizes = FULL_SIZES
) -> Iterator[ledger.Record]:
    """Train five heads on generated documents for EPOCHS passes: on the device, and for comparison on a CPU."""
    train = Documents.make(sizes.documents).write(folder / "train.txt")
    test = Documents.make(sizes.test_documents, seed=1).write(folder / "test.txt")
    tokens = sizes.documents * 40 * EPOCHS
    for place in dict.fromkeys((device.type, "cpu")):
        first, run = (run_ours(train, test, EPOCHS, device=place, families=True) for _ in range(2))
        seconds = run.train_seconds or run.seconds
        yield _record(
            environment,
            "train_supervised",
            f"{sizes.documents} documents, {len(FAMILIES)} heads, {EPOCHS} epochs",
            f"ours on {place}",
            "tokens/s",
            tokens / seconds,
            call_seconds=round(run.seconds, 3),
            train_seconds=round(seconds, 6),
            first_call_seconds=round(first.seconds, 3),
            quality=round(run.accuracy, 4),
            threads=torch.get_num_threads(),
        )


# --- Word2Vec --------------------------------------------------------------------------------------------


def write_text(path: Path, words: int, types: int) -> Path:
    """Write lines of 20 Zipf words, half of them near the line's own word, so that there is something to learn."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, types + 1)
    drawn = rng.choice(types, size=(words // 20, 20), p=shares / shares.sum())
    topics = rng.integers(0, types, size=(len(drawn), 1))
    near = (topics + rng.integers(0, 20, size=drawn.shape)) % types
    chosen = np.where(rng.random(drawn.shape) < 0.5, near, drawn)
    names = [f"w{i}" for i in range(types)]
    path.write_text("".join(" ".join(names[i] for i in line) + "\n" for line in chosen.tolist()), "utf-8")
    return path


def run_words(
    environment: ledger.Record, device: torch.device, folder: Path, sizes: Sizes = FULL_SIZES
) -> Iterator[ledger.Record]:
    """Train skip-gram with gensim's defaults on a device; words/s are over the training time only."""
    path = write_text(folder / "words.txt", sizes.words, sizes.types)
    first, (call, trained, losses) = (_word2vec(path, device) for _ in range(2))
    yield _record(
        environment,
        "Word2Vec, skip-gram",
        f"{sizes.words} words, {sizes.types} types, {EPOCHS} epochs",
        f"ours on {device.type}",
        "words/s",
        sizes.words * EPOCHS / trained,
        call_seconds=round(call, 3),
        train_seconds=round(trained, 6),
        first_call_seconds=round(first[0], 3),
        losses=[round(float(loss), 4) for loss in losses],
    )


def _word2vec(path: Path, device: torch.device) -> tuple[float, float, list[float]]:
    """Return the seconds of the call, of its training, and the epochs' losses."""
    clock: list[float] = []

    class Stopwatch:
        def on_train_begin(self, model: Word2Vec) -> None:
            clock.append(time.perf_counter())

    started = time.perf_counter()
    model = Word2Vec(corpus_file=path, sg=1, epochs=EPOCHS, device=device.type, callbacks=[Stopwatch()])
    synchronize(device)
    ended = time.perf_counter()
    return ended - started, ended - clock[0], model.losses


# --- the CPU's kernels -----------------------------------------------------------------------------------


def warm_cpu() -> None:
    """Compile, or load from the cache, what the CPU's measurements need: bags and heads, in one call and separately."""
    cpu = torch.device("cpu")
    sizes = FULL._replace(documents=WARM_DOCUMENTS, cpu_batch=WARM_DOCUMENTS)
    for n_heads in (1, len(FAMILIES)):
        make_pass(Documents.make(WARM_DOCUMENTS), sizes, n_heads, WARM_DOCUMENTS, cpu).run()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in run_supervised(describe(), cpu, folder, Sizes(WARM_DOCUMENTS, 50)):
            pass


if __name__ == "__main__":
    typer.run(main)

"""Compile kernels while data is read: a second process trains on a few made-up rows with the options of the run.

On a machine that has never trained, compiling takes longer than all else. The run finds the kernels that the second
process compiles, and waits for one that is still being compiled there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TextIO

import numpy as np
import torch

from mt2st_fast.compiling import is_first_on, note_precompiled
from mt2st_fast.data import READERS, Corpus, Splits, TargetColumn, Vocabulary
from mt2st_fast.environment import usable_cpus
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment

UNITS, TOKENS_A_UNIT, WORDS = 64, 8, 40
MOST_BUCKETS = 100  # the same kernels are compiled for a small table


@contextmanager
def precompiling(config: Config) -> Iterator[None]:
    """Let another process compile what a run needs, if nothing of its kind was ever compiled here.

    The process ends with the block, and with this process, however that ends.
    """
    process = _begin(config) if is_worth_it(config) else None
    try:
        yield
    finally:
        if process is not None:
            _end(process)


def is_worth_it(config: Config) -> bool:
    """Whether a run has kernels to compile, and there is a core to do it on."""
    on_cpu = config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())
    by_kernels = config.engine == "fused" and config.backend in ("auto", "numba")
    return on_cpu and by_kernels and usable_cpus() > 1 and is_first_on(_level_of(config))


def precompile(config: Config) -> None:
    """Take the first steps of a run, and an evaluation, on made-up rows."""
    level = _level_of(config)
    buckets = min(config.buckets, MOST_BUCKETS)
    small: dict[str, Any] = {
        "init": None,
        "metric": None,  # the made-up classes may not have it, and none has a kernel of its own but the default
        "epochs": None,
        "batch_size": None,
        "buckets": buckets,
        "device": "cpu",
    }
    own = replace(config, main=None, aux=None, **small)
    Experiment.prepare(own, _made_up(level)).warm_up()
    note_precompiled(level)  # some options never compile the kernel that is looked for: precompile once only


def _level_of(config: Config) -> str:
    return READERS[config.data.partition(":")[0]].level


def _begin(config: Config) -> subprocess.Popen[bytes] | None:
    """Start the process; None where the system has no room for another one: the run then compiles by itself."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # the run itself reports wrong options
        )
    except OSError:
        return None
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(config.to_json()).encode() + b"\n")
        process.stdin.flush()  # stays open: its end tells the other process that it is no longer needed
    except OSError:  # the process has ended already
        _end(process)
        return None
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(OSError):  # raised for a pipe without a reader
        process.communicate()


def _made_up(level: str) -> Splits:
    """Return a small corpus of random words with a main and an auxiliary task of two classes."""
    random = np.random.Generator(np.random.PCG64(0))
    words = [f"word{i}" for i in range(WORDS)]
    tokens = random.integers(0, WORDS, UNITS * TOKENS_A_UNIT).astype(np.int32)
    bounds = np.arange(0, len(tokens) + 1, TOKENS_A_UNIT, dtype=np.int64)
    n_rows = len(tokens) if level == "token" else UNITS
    targets = {
        task: TargetColumn("classes", ("a", "b"), random.integers(0, 2, n_rows)) for task in ("main", "other")
    }
    corpus = Corpus(tokens, bounds, targets, level)
    vocabulary = Vocabulary(words, np.full(WORDS, len(tokens) // WORDS))
    return Splits(corpus, corpus, corpus, vocabulary, "made up", "main", ("other",))


def _end_with(stream: TextIO) -> None:
    """End this process when its parent ends, whatever it is doing: its lock on a kernel is released with it."""
    stream.read()
    os._exit(0)


def main() -> None:
    """Run the other process, which reads its configuration from standard input."""
    asked = Config.from_json(json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    precompile(asked)


if __name__ == "__main__":
    main()

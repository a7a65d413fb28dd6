"""Runs of processes that share the moments of a table; some lose a process within a step."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mt2st_fast import Callback, Classification, LazyAdam, MultiTaskHeads, Switch, Trainer, WindowEncoder
from mt2st_fast.data import Corpus, TokenBatches
from mt2st_fast.errors import LostProcessError
from mt2st_fast.training.engines import posted_steps
from mt2st_fast.training.engines.posted_steps import PostedSteps, Told
from mt2st_fast.training.processes import shared_state
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.processes.shared_state import SharedState
from tests.data.test_batches import classes
from tests.training.processes import runs

D = 64
FEW, MANY = (
    300,
    shared_state.LEAST_BYTES // (4 * D),
)  # rows of a table; as many share moments without any help
TRAP = "trap.json"
TRAP_AT = 12  # of a process's steps: after its first checkpoint


@contextmanager
def counting() -> Iterator[list[bool]]:
    """Yields, for every step by one message, whether the moments were shared."""
    call, found = PostedSteps.__call__, []

    def counted(self: PostedSteps, *args: Any, **options: Any) -> Any:
        losses_k = call(self, *args, **options)
        found.append(Told.SHARES in self.told())
        return losses_k

    PostedSteps.__call__ = counted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        PostedSteps.__call__ = call  # type: ignore[method-assign]


@contextmanager
def sharing_small_tables() -> Iterator[None]:
    before, shared_state.LEAST_BYTES = shared_state.LEAST_BYTES, 0
    try:
        yield
    finally:
        shared_state.LEAST_BYTES = before


def learnt(
    n_rows: int,
    n_words: int,
    *,
    epochs: int,
    batches: int = 10,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """What a tagger with a table of so many rows learns of a text of so many words, so many batches an epoch."""
    torch.manual_seed(3)
    chance = np.random.default_rng(4)
    tokens = np.minimum(chance.zipf(1.2, n_words) - 1, n_rows - 1).astype(np.int32)
    labels = {"main": classes((tokens % 4).astype(np.int64)), "aux": classes((tokens % 3).astype(np.int64))}
    text = Corpus(tokens, np.arange(0, n_words + 1, 10), labels, level="token")
    encoder = WindowEncoder(n_rows, D, window=1, hidden=8, sparse=True).to(dtype)
    heads = MultiTaskHeads(8, {"main": Classification(4), "aux": Classification(3)}, "main").to(dtype)
    fit = {
        name: options.pop(name) for name in ("checkpoint", "checkpoint_seconds", "resume") if name in options
    }
    trainer = Trainer(
        encoder, heads, optimizer=lambda p: LazyAdam(p, lr=0.01), device="cpu", log_every=3,
        **{"schedule": Switch(at=0.5)} | options,
    )  # fmt: skip
    with counting() as shared:
        trainer.fit(TokenBatches(text, n_words // batches, 1, "main"), epochs=epochs, **fit)
    return runs.learnt(trainer) | {"shared": shared}


# --- runs of several kinds -----------------------------------------------------------------------------------


def small(folder: Path, **options: Any) -> dict[str, Any]:
    with sharing_small_tables():
        return learnt(FEW, 600, epochs=2, **options)


def large(folder: Path) -> dict[str, Any]:
    return learnt(MANY, 20_000, epochs=2)


def with_other_threads(folder: Path) -> dict[str, Any]:
    """Every second process computes by two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 + runs.rank_and_count()[0] % 2)
    try:
        return large(folder)
    finally:
        torch.set_num_threads(before)


def _by_default_dtype(dtype: torch.dtype, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return run()
    finally:
        torch.set_default_dtype(before)


def doubles(folder: Path) -> dict[str, Any]:
    """Everything in float64, which no kernel computes."""
    return _by_default_dtype(torch.float64, lambda: small(folder, dtype=torch.float64))


def singles_beside_doubles(folder: Path) -> dict[str, Any]:
    """A model of float32 where torch makes float64."""
    return _by_default_dtype(torch.float64, lambda: small(folder))


def left_for_others(folder: Path) -> dict[str, Any]:
    """A checkpoint for another number of processes, after the switch."""
    path = folder / f"of-{runs.rank_and_count()[1]}.safetensors"
    return small(folder, checkpoint=path, callbacks=[runs.Stop(13)])


def taken_over(folder: Path) -> dict[str, Any]:
    """Goes on with each checkpoint that is there; a copy stays for the next."""
    return {
        path.stem: small(folder, checkpoint=_copy_of(path), resume=True)
        for path in sorted(folder.glob("of-*.safetensors"))
    }


def _copy_of(path: Path) -> Path:
    own = path.with_name(f"{runs.rank_and_count()[1]}-{path.name}")
    if runs.rank_and_count()[0] == 0:
        own.write_bytes(path.read_bytes())
    if dist.is_initialized():
        dist.barrier()
    return own


# --- killed within a step ------------------------------------------------------------------------------------


def _die(*args: Any, **options: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying(function: Callable[..., Any], is_time: Callable[[], bool], *, after: bool) -> Callable[..., Any]:
    def called(*args: Any, **options: Any) -> Any:
        if not after and is_time():
            _die()
        found = function(*args, **options)
        if after and is_time():
            _die()
        return found

    return called


# Where a process is killed: an object, the name of its function, and whether after it.
POINTS: dict[str, tuple[Any, str, bool]] = {
    "sharing": (Processes, "shared_memory", True),  # the others wait until the moments are copied
    "posting": (PostedSteps, "_exchanged", False),  # they wait for its gradients
    "moving": (posted_steps, "summed_step", False),  # they have moved their rows, and it has not
    "moved": (posted_steps, "summed_step", True),  # it has moved its own, and nobody knows them
    "taking": (posted_steps, "take_rows", False),  # all moments are new, but not its table
    "giving_back": (SharedState, "take_back", True),  # they have a copy of their own, or make one
}


class _Steps(Callback):
    """Counts this process's steps, takes its time, and says when it is going."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds, self.n = folder, seconds, 0

    def on_step(self, trainer: Any, *args: Any) -> None:
        self.n += 1
        if self.n == 5:
            (self.folder / f"going-{dist.get_rank()}").touch()
        time.sleep(self.seconds)


def _set_trap(folder: Path, steps: _Steps) -> None:
    if not (folder / TRAP).exists():
        return
    rank, point = json.loads((folder / TRAP).read_text())
    owner, name, after = POINTS[point]
    # Moments are shared in the first step, and given back in the last.
    at = {"sharing": 0, "giving_back": 1}.get(point, TRAP_AT)
    if rank == dist.get_rank():
        setattr(owner, name, _dying(getattr(owner, name), lambda: steps.n >= at, after=after))


def _until_lost(
    folder: Path, steps: _Steps, every_seconds: float, run: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """Goes on where there is a checkpoint, which is written every so many seconds."""
    path = folder / "last.safetensors"
    try:
        return run(callbacks=[steps], checkpoint=path, checkpoint_seconds=every_seconds, resume=path.exists())
    except LostProcessError as error:
        print(f"ended: {error}", flush=True)
        os._exit(3)


def trapped(folder: Path) -> dict[str, Any]:
    """A small table, and slow steps: killed where the trap says."""
    steps = _Steps(folder, 0.02)
    _set_trap(folder, steps)
    with sharing_small_tables():
        return _until_lost(folder, steps, 0.05, lambda **options: learnt(FEW, 600, epochs=6, **options))


def fast(folder: Path) -> dict[str, Any]:
    """A large table, and little but steps, so that whoever kills a process meets one of them."""
    steps = _Steps(folder, 0.0)

    def run(**options: Any) -> dict[str, Any]:
        return learnt(MANY, 40_000, batches=200, epochs=20, **options)

    return _until_lost(folder, steps, 0.4, run)

"""Runs of processes that share the state of a table, and of such that cannot; each returns what it learnt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mt2st_fast import Callback, LazyAdam, RowwiseAdagrad
from mt2st_fast.training.engines.posted_steps import PostedSteps
from mt2st_fast.training.processes import shared_state
from mt2st_fast.training.processes.group import Processes
from tests.training.processes import runs
from tests.training.processes.messages import with_constants


@contextmanager
def _sharing() -> Iterator[list[bool]]:
    """Share the state of every table within the block; yields, for every step, whether it was shared."""
    before, call, found = shared_state.LEAST_BYTES, PostedSteps.__call__, []

    def counted(self: PostedSteps, *args: Any, **options: Any) -> Any:
        losses_k = call(self, *args, **options)
        found.append(self.shares_state)
        return losses_k

    shared_state.LEAST_BYTES, PostedSteps.__call__ = 0, counted  # type: ignore[method-assign]
    try:
        yield found
    finally:
        shared_state.LEAST_BYTES, PostedSteps.__call__ = before, call  # type: ignore[method-assign]


def _learnt(**options: Any) -> dict[str, Any]:
    with _sharing() as found:
        return runs.words("token", **options) | {"shared": found}


def apart(folder: Path) -> dict[str, Any]:
    return runs.windows(folder)


def shared(folder: Path) -> dict[str, Any]:
    return _learnt()


def in_parts(folder: Path) -> dict[str, Any]:
    """With messages that hold no row beside the dense gradients."""
    with with_constants(SLOT=2048):
        return _learnt()


def refused(folder: Path) -> dict[str, Any]:
    """Where the processes cannot share more memory."""
    before = Processes.shared_memory
    Processes.shared_memory = lambda self, n_bytes: None  # type: ignore[method-assign]
    try:
        return _learnt()
    finally:
        Processes.shared_memory = before  # type: ignore[method-assign]


def with_numbers_alone(folder: Path) -> dict[str, Any]:
    """A rule that keeps a number per row: every process moves all rows."""
    return _learnt(make_optimizer=lambda p: RowwiseAdagrad(p, lr=0.1))


class _Hooked(Callback):
    """Has a hook in steps 5 to 8, which only autograd calls."""

    def on_step(self, trainer: Any, *args: Any) -> None:
        if trainer.step == 4:
            self.handle = trainer.encoder.register_forward_hook(lambda *args: None)
        if trainer.step == 8:
            self.handle.remove()


def hooked(folder: Path) -> dict[str, Any]:
    return _learnt(callbacks=[_Hooked()])


def hooked_apart(folder: Path) -> dict[str, Any]:
    return runs.words("token", callbacks=[_Hooked()])


class _Replaced(Callback):
    """Gives the table other state of the same values, as loading an optimizer's state does."""

    def on_step(self, trainer: Any, *args: Any) -> None:
        if trainer.step == 5:
            optimizer = trainer.run.optimizer
            optimizer.load_state_dict(optimizer.state_dict())


def replaced(folder: Path) -> dict[str, Any]:
    return _learnt(callbacks=[_Replaced()])


def stopped_then_resumed(folder: Path) -> dict[str, Any]:
    with _sharing():
        return {"windows": runs._resumed(folder / "shared", "windows")}


def own_afterwards(folder: Path) -> dict[str, Any]:
    """After a run every process has state of its own, which it may change."""
    held: list[Any] = []
    found = _learnt(make_optimizer=lambda p: held.append(LazyAdam(p, lr=0.01)) or held[0])
    states = [s for s in held[0].state.values() if "row_exp_avg" in s]
    assert len(states) == 1
    before = states[0]["row_exp_avg"].clone()
    states[0]["row_exp_avg"] += dist.get_rank() + 1
    dist.barrier()
    return found | {"added": states[0]["row_exp_avg"] - before}


def small(folder: Path) -> dict[str, Any]:
    """A table that fits into caches: its state is not shared."""
    before, found = PostedSteps.__call__, []

    def counted(self: PostedSteps, *args: Any, **options: Any) -> Any:
        losses_k = before(self, *args, **options)
        found.append(self.shares_state)
        return losses_k

    PostedSteps.__call__ = counted  # type: ignore[method-assign]
    try:
        return runs.windows(folder) | {"shared": torch.tensor(found)}
    finally:
        PostedSteps.__call__ = before  # type: ignore[method-assign]

"""Runs of processes that share the state of a table, and of such that cannot; each returns what it learnt."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mt2st_fast import Callback, LazyAdam, RowwiseAdagrad
from mt2st_fast.training.engines.posted_steps import PostedSteps, Told
from mt2st_fast.training.processes import shared_state
from mt2st_fast.training.processes.group import Processes
from tests.training.processes import runs
from tests.training.processes.messages import with_constants
from tests.training.test_host_work import own_calls


@contextmanager
def _sharing() -> Iterator[list[bool]]:
    """Share the state of every table within the block; yields, for every step, whether it was shared."""
    before, call, found = shared_state.LEAST_BYTES, PostedSteps.__call__, []

    def counted(self: PostedSteps, *args: Any, **options: Any) -> Any:
        losses_k = call(self, *args, **options)
        found.append(Told.SHARES in self.told())
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


class _HookedInOne(_Hooked):
    """Process 1 alone has it."""

    def on_step(self, trainer: Any, *args: Any) -> None:
        if dist.get_rank() == 1:
            super().on_step(trainer, *args)


class _Replaced(Callback):
    """Gives the table other state of the same values, as loading an optimizer's state does; but not in process 0."""

    def on_step(self, trainer: Any, *args: Any) -> None:
        if trainer.step == 5:
            optimizer = trainer.run.optimizer
            kept = copy.deepcopy(optimizer.state_dict())
            if dist.get_rank():
                optimizer.load_state_dict(kept)


class _OtherTable(Callback):
    """Puts another table into the encoder and the optimizer, which has no state of it."""

    def on_step(self, trainer: Any, *args: Any) -> None:
        if trainer.step == 5:
            encoder, optimizer = trainer.encoder, trainer.run.optimizer
            before, encoder.table = encoder.table, nn.Parameter(encoder.table.detach().clone())
            del optimizer.state[before]
            for group in optimizer.param_groups:
                group["params"] = [encoder.table if p is before else p for p in group["params"]]


class _FrozenTable(Callback):
    """Freezes the table after one process could not take part."""

    def on_step(self, trainer: Any, *args: Any) -> None:
        if dist.get_rank() == 1 and trainer.step == 1:
            self.handle = trainer.encoder.register_forward_hook(lambda *args: None)
        if trainer.step == 4:
            if dist.get_rank() == 1:
                self.handle.remove()
            trainer.encoder.table.requires_grad_(False)
        if trainer.step == 8:
            trainer.encoder.table.requires_grad_(True)


class _Unhelped(Callback):
    """From step 5 on, there is no memory to share, and one process has state of another origin."""

    def on_step(self, trainer: Any, *args: Any) -> None:
        if trainer.step == 5:
            if dist.get_rank():
                trainer.run.optimizer.load_state_dict(trainer.run.optimizer.state_dict())
            self.before, Processes.shared_memory = Processes.shared_memory, lambda self, n: None  # type: ignore

    def on_fit_end(self, trainer: Any, *args: Any) -> None:
        Processes.shared_memory = self.before  # type: ignore[method-assign]


DISTURBED = {
    "hooked": _Hooked,
    "hooked_in_one": _HookedInOne,
    "replaced": _Replaced,
    "other_table": _OtherTable,
    "frozen_table": _FrozenTable,
    "unhelped": _Unhelped,
}


def disturbed(folder: Path) -> dict[str, Any]:
    """Runs with each of these callbacks, with shared state and without."""
    return {
        name: {"shared": _learnt(callbacks=[make()]), "apart": runs.words("token", callbacks=[make()])}
        for name, make in DISTURBED.items()
    }


def hooked_alone(folder: Path) -> dict[str, Any]:
    return runs.words("token", callbacks=[_Hooked()])


def _mapped() -> int:
    """How many parts of memory this process shares with others."""
    gc.collect()
    with open("/proc/self/maps") as file:
        return sum("memfd:mt2st_fast" in line for line in file)


class _Kept(Callback):
    def __init__(self) -> None:
        self.mapped: list[int] = []

    def on_step(self, trainer: Any, *args: Any) -> None:
        self.trainer = trainer
        self.mapped.append(_mapped())


def given_back(folder: Path) -> dict[str, Any]:
    """How much is shared in every step, and after the run, of which everything is still there."""
    kept, before = _Kept(), _mapped()
    found = _learnt(callbacks=[kept, _Hooked()])
    assert kept.trainer.run.optimizer is not None
    return found | {"mapped": kept.mapped, "left": _mapped() - before}


def in_turns(folder: Path) -> dict[str, Any]:
    """Two runs at once, of which one has a hook for some steps; each learns what it learns alone."""
    with _sharing() as shared:
        both = [runs.begun_words(seed) for seed in (0, 1)]
        for step in range(8):
            if step in (3, 5):
                handle = both[0].encoder.register_forward_hook(lambda *args: None)
            for run in both:
                run.step()
            if step in (3, 5):
                handle.remove()
        for run in both:
            run.close()
    alone = []
    for seed in (0, 1):
        run = runs.begun_words(seed)
        for step in range(8):
            handle = None
            if seed == 0 and step in (3, 5):
                handle = run.encoder.register_forward_hook(lambda *args: None)
            run.step()
            if handle is not None:
                handle.remove()
        run.close()
        alone.append(run)
    return {"shared": shared, "both": [_state(run) for run in both], "alone": [_state(run) for run in alone]}


def _state(run: Any) -> dict[str, Any]:
    weights = {f"encoder/{name}": t for name, t in run.encoder.state_dict().items()}
    return {"weights": weights, "moments": [dict(sorted(s.items())) for s in run.optimizer.state.values()]}


def host_work(folder: Path) -> dict[str, Any]:
    """How many functions of this package a step enters."""
    with _sharing() as shared:
        run = runs.begun_words(0)
        run.step()
        found = own_calls(run.step)
        run.close()
    return {"shared": shared, "calls": found.total()}


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
        found.append(Told.SHARES in self.told())
        return losses_k

    PostedSteps.__call__ = counted  # type: ignore[method-assign]
    try:
        return runs.windows(folder) | {"shared": torch.tensor(found)}
    finally:
        PostedSteps.__call__ = before  # type: ignore[method-assign]

"""Encoders sharded by FSDP2, trained by the Trainer; each function is the same with whole ones in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from mt2st_fast import (
    AdaptiveSwitch,
    AlternateSteps,
    Callback,
    Classification,
    LazyAdam,
    MultiTask,
    MultiTaskHeads,
    RowwiseAdagrad,
    Switch,
    Trainer,
    Uncertainty,
)
from mt2st_fast.model.sharded import gathered, is_sharded
from tests.training.processes import runs
from tests.training.processes.runs import FEATURES, TASKS, Stop, batches, rank_and_count, rows


class Layers(nn.Module):
    """Widths that two and four processes cannot divide evenly; with a table, a row of which is read a row."""

    def __init__(self, vocabulary: int = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, FEATURES, sparse=True) if vocabulary else None
        self.within = nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh())
        self.out = nn.Linear(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is not None:
            x = x + self.table((x[:, 0].abs() * 10).long() % self.table.num_embeddings)
        return self.out(self.within(x))


def shard(encoder: nn.Module, *, whole: set[nn.Parameter] | None = None, count: int | None = None) -> None:
    """Its inner layers as one unit, and the rest as another."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (count or dist.get_world_size(),))
    if isinstance(encoder, Layers):
        fully_shard(encoder.within, mesh=mesh)
    fully_shard(encoder, mesh=mesh, ignored_params=whole)


def train(
    data: Any, *, vocabulary: int = 0, frozen: bool = False, tasks: Any = TASKS, **options: Any
) -> Trainer:
    """By one process with a whole encoder, by several with a sharded one, from the same weights."""
    torch.manual_seed(1)
    encoder, heads = Layers(vocabulary).requires_grad_(not frozen), MultiTaskHeads(8, tasks, "classes")
    if rank_and_count()[1] > 1:
        shard(encoder, whole={encoder.table.weight} if encoder.table is not None else None)
    fit = {name: options.pop(name) for name in ("val", "epochs", "checkpoint", "resume") if name in options}
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.5), "log_every": 2} | options
    trainer = Trainer(encoder, heads, device="cpu", **options)
    trainer.fit(data, **{"epochs": 1, **fit})
    return trainer


def learnt(trainer: Trainer) -> dict[str, Any]:
    """Whole weights and moments, and how much of the encoder this process holds."""
    found = runs.learnt(trainer)
    parameters = [*trainer.encoder.parameters()]
    held = sum(p.to_local().numel() if is_sharded(p) else p.numel() for p in parameters)  # type: ignore[attr-defined]
    moments = [{n: gathered(m) for n, m in of_one.items()} for of_one in found["moments"]]
    weights = {name: gathered(value) for name, value in found["weights"].items()}
    share = held / sum(p.numel() for p in parameters)
    return {**found, "weights": weights, "moments": moments, "share": share}


# --- what one process learns, too -------------------------------------------------------------------------


def over_a_switch(folder: Path) -> dict[str, Any]:
    """With a last batch that has one row, of which one process has none."""
    schedule = Switch(at=0.5, weights={"labels": 0.5, "robust": 2.0, "weighted": 1.0, "values": 1.0})
    return learnt(train([*batches(), rows(7, 1)], schedule=schedule, epochs=2))


def clipped_and_accumulated(folder: Path) -> dict[str, Any]:
    return learnt(train(batches(8), schedule=MultiTask(), accumulate=2, clip_norm=0.1, epochs=2))


def with_moments(folder: Path) -> dict[str, Any]:
    make = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)  # noqa: E731
    return learnt(train(batches(), schedule=Switch(at=0.5), optimizer=make, epochs=2))


def by_default(folder: Path) -> dict[str, Any]:
    """The Trainer's own optimizer is torch's fused one."""
    return learnt(train(batches(), schedule=Switch(at=0.5), optimizer=None, epochs=2))


def evaluated(folder: Path) -> dict[str, Any]:
    return learnt(train(batches(), val=batches(3), schedule=Switch(at=0.5), epochs=2))


def adaptive(folder: Path) -> dict[str, Any]:
    return learnt(train(batches(4), val=batches(3), schedule=AdaptiveSwitch(patience=2), epochs=8))


def beside_a_table(folder: Path) -> dict[str, Any]:
    """Row-sparse, and left whole."""
    return learnt(train(batches(), vocabulary=9, optimizer=LazyAdam, schedule=Switch(at=0.5), epochs=2))


# --- checkpoints --------------------------------------------------------------------------------------------


def _with_moments(**options: Any) -> Trainer:
    return train(batches(), schedule=Switch(at=0.5), optimizer=None, epochs=4, **options)


def resumed(folder: Path) -> dict[str, Any]:
    """Before and after the switch."""
    found = {"whole": learnt(_with_moments())}
    for at in (5, 17):
        path = folder / f"sharded-{at}.safetensors"
        _with_moments(checkpoint=path, callbacks=[Stop(at)])
        found[f"resumed {at}"] = learnt(_with_moments(checkpoint=path, resume=True))
    return found


def left_for_others(folder: Path) -> dict[str, Any]:
    _with_moments(checkpoint=folder / f"left-by-{rank_and_count()[1]}.safetensors", callbacks=[Stop(5)])
    return {}


def taken_over(folder: Path) -> dict[str, Any]:
    """From as many as this is not: two go on from one, one goes on from two."""
    path = folder / f"left-by-{3 - rank_and_count()[1]}.safetensors"
    return learnt(_with_moments(checkpoint=path, resume=True))


def loaded(folder: Path) -> dict[str, Any]:
    """Weights alone, of a checkpoint that one process has made."""
    torch.manual_seed(7)
    encoder, heads = Layers(), MultiTaskHeads(8, TASKS, "classes")
    if rank_and_count()[1] > 1:
        shard(encoder)
    trainer = Trainer(encoder, heads, device="cpu")
    trainer.load(folder / "left-by-1.safetensors")
    return {"weights": {name: gathered(value).clone() for name, value in encoder.state_dict().items()}}


def frozen_then_trained(folder: Path) -> dict[str, Any]:
    """A sharded encoder that is frozen at first, and read by a callback between steps: its parts are found again."""
    path = folder / f"thawed-{rank_and_count()[1]}.safetensors"
    options = {"schedule": MultiTask(), "optimizer": None, "epochs": 3, "frozen": True, "checkpoint": path}
    train([*batches(4), rows(7, 1)], callbacks=[Thaw(4), Stop(9)], **options)
    return learnt(train([*batches(4), rows(7, 1)], callbacks=[Thaw(4)], resume=True, **options))


class Thaw(Callback):
    """Trains the encoder from a step on, and looks at what it makes of some rows after every step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, trainer: Any) -> None:
        if trainer.step == self.at:
            trainer.encoder.requires_grad_(True)
        with torch.no_grad():
            trainer.encoder(rows(0)[0])


def seen_before(folder: Path) -> dict[str, Any]:
    """The encoder is called without gradients before it trains, as a whole unit of its own."""
    torch.manual_seed(1)
    encoder, heads = nn.Linear(FEATURES, 8), MultiTaskHeads(8, TASKS, "classes")
    if rank_and_count()[1] > 1:
        shard(encoder)
    trainer = Trainer(encoder, heads, device="cpu", schedule=MultiTask(), lr=0.1)
    for _ in range(2):
        with torch.no_grad():
            encoder(rows(0)[0])
        trainer.fit(batches(), epochs=1)
    return learnt(trainer)


def with_learnt_weights(folder: Path) -> dict[str, Any]:
    """From one loader a task."""
    data = {name: [(x, {name: t[name]}) for x, t in batches(4, 16)] for name in ("classes", "labels")}
    tasks = {name: TASKS[name] for name in data}
    return learnt(train(data, tasks=tasks, schedule=Uncertainty(), epochs=2))


# --- refused --------------------------------------------------------------------------------------------------


def _refused(encoder: nn.Module, heads: MultiTaskHeads | None = None, **options: Any) -> None:
    heads = heads or MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    fit = {name: options.pop(name) for name in ("val",) if name in options}
    trainer = Trainer(encoder, heads, device="cpu", **{"schedule": MultiTask(), **options})
    trainer.fit([(x, {"classes": t["classes"]}) for x, t in batches(2)], epochs=1, **fit)


def _sharded() -> Layers:
    encoder = Layers()
    shard(encoder)
    return encoder


def sharded_heads(folder: Path) -> None:
    heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    shard(heads)
    _refused(Layers(), heads)


def sharded_table(folder: Path) -> None:
    encoder = Layers(vocabulary=9)
    shard(encoder)
    _refused(encoder)


def not_over_all(folder: Path) -> None:
    """Every process trains alone on what is sharded over both."""
    _refused(_sharded(), distributed="none")


def own_loss_of_nothing(folder: Path) -> None:
    train(
        [(x, {"near": x[:, 0]}) for x, _ in (rows(1), rows(7, 1))],
        tasks={"classes": TASKS["classes"], "near": runs.Nearness()},
        schedule=MultiTask(),
    )


def moved_by_a_rule(folder: Path) -> None:
    _refused(_sharded(), optimizer=lambda p: RowwiseAdagrad(p, lr=0.1))


def tensor_parallel(folder: Path) -> None:
    encoder = Layers()
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(encoder, mesh, {"out": ColwiseParallel()})
    _refused(encoder)


def half_precision(folder: Path) -> None:
    _refused(_sharded(), precision="float16")


def in_turns(folder: Path) -> None:
    _refused(_sharded(), schedule=AlternateSteps(1, 1))


def other_val(folder: Path) -> None:
    mine = [(x, {"classes": t["classes"]}) for x, t in batches(1 + rank_and_count()[0])]
    _refused(_sharded(), val=mine)


class Endless:
    """Batches without a number."""

    def __iter__(self) -> Any:
        return iter(batches())


def endless_val(folder: Path) -> None:
    _refused(_sharded(), val=Endless())

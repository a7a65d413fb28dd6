"""Encoders sharded by FSDP2, trained by the Trainer; each function is the same with whole ones in one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from mt2st_fast import (
    AdaptiveSwitch,
    AlternateSteps,
    BagEncoder,
    Classification,
    LazyAdam,
    MultiTask,
    MultiTaskHeads,
    RowwiseAdagrad,
    Switch,
    Trainer,
    WindowEncoder,
    gather_rows,
    shard_rows,
)
from mt2st_fast.model.row_shards import shard_of
from mt2st_fast.training.processes.sharded import gathered, is_sharded
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


def train(data: Any, *, vocabulary: int = 0, sharded: bool = True, **options: Any) -> Trainer:
    """By one process with a whole encoder, by several with a sharded one, from the same weights."""
    torch.manual_seed(1)
    encoder, heads = Layers(vocabulary), MultiTaskHeads(8, TASKS, "classes")
    if sharded and rank_and_count()[1] > 1:
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


# --- tables divided by rows ---------------------------------------------------------------------------------


def of_words(level: str, **options: Any) -> dict[str, Any]:
    """As `runs.words`; by several processes with a table that they have divided, and whole again in what is found."""
    encoders: list[nn.Module] = []

    def divide(encoder: nn.Module) -> None:
        encoders.append(encoder)
        if rank_and_count()[1] > 1:
            shard_rows(encoder)

    found = runs.words(level, divide=divide, **options)
    (encoder,) = encoders
    shard, table = shard_of(encoder.table), encoder.table  # type: ignore[arg-type]
    # One kernel call makes them in another order than a step of the optimizer does.
    found["moments"].sort(key=lambda of_one: [(n, gathered(m, table).shape) for n, m in of_one.items()])
    if shard is None:
        return found | {"share": 1.0, "vectors": encoder.vectors()}  # type: ignore[operator]
    found["weights"]["encoder/table"] = gathered(table.detach(), table)
    found["moments"] = [{n: gathered(m, table) for n, m in of_one.items()} for of_one in found["moments"]]
    vectors = encoder.vectors()  # type: ignore[operator]
    gather_rows(encoder)
    assert type(encoder) in (BagEncoder, WindowEncoder)
    assert torch.equal(encoder.table, found["weights"]["encoder/table"])  # type: ignore[arg-type]
    return found | {"share": len(table) / shard.n_rows, "vectors": vectors}  # type: ignore[arg-type]


def divided_windows(folder: Path) -> dict[str, Any]:
    return of_words("token", n_rows=61)


def divided_bags(folder: Path) -> dict[str, Any]:
    return of_words("document", make_optimizer=lambda p: RowwiseAdagrad(p, lr=0.1))


def divided_types(folder: Path) -> dict[str, Any]:
    """A row a type, clipped and accumulated."""
    return of_words("token", n_rows=None, clip_norm=0.05, accumulate=2)


def never_whole(folder: Path) -> dict[str, Any]:
    """A table that begins without memory; with a padding row."""
    torch.manual_seed(5)
    rows_of_type = torch.arange(2000).view(1000, 2)
    encoder = BagEncoder(1000, 16, rows_of_type=rows_of_type, num_rows=2000, sparse=True, table_device="meta")
    shard_rows(encoder)
    return {"own": encoder.table.detach().clone(), "whole": gathered(encoder.table.detach(), encoder.table)}


def divided_resumed(folder: Path) -> dict[str, Any]:
    found = {"whole": of_words("token")}
    for at in (11, 50):
        path = folder / f"divided-{at}.safetensors"
        of_words("token", checkpoint=path, callbacks=[Stop(at)])
        found[f"resumed {at}"] = of_words("token", checkpoint=path, resume=True)
    return found


def divided_left_for_others(folder: Path) -> dict[str, Any]:
    path = folder / f"rows-left-by-{rank_and_count()[1]}.safetensors"
    of_words("token", checkpoint=path, callbacks=[Stop(11)])
    return {}


def divided_taken_over(folder: Path) -> dict[str, Any]:
    path = folder / f"rows-left-by-{3 - rank_and_count()[1]}.safetensors"
    return of_words("token", checkpoint=path, resume=True)


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


def words_beside_divided_rows(folder: Path) -> None:
    runs.words("token", similarity=True, divide=shard_rows)


def divided_alone(folder: Path) -> None:
    runs.words("token", divide=shard_rows, distributed="none")


def dense_rows(folder: Path) -> None:
    shard_rows(BagEncoder(9, 4))


def copied(folder: Path) -> None:
    encoder = BagEncoder(9, 4, sparse=True)
    shard_rows(encoder)
    copy.deepcopy(encoder).vectors()


def sharded_table(folder: Path) -> None:
    encoder = Layers(vocabulary=9)
    shard(encoder)
    _refused(encoder)


def not_over_all(folder: Path) -> None:
    """Every process trains alone on what is sharded over both."""
    _refused(_sharded(), distributed="none")


def half_precision(folder: Path) -> None:
    _refused(_sharded(), precision="float16")


def in_turns(folder: Path) -> None:
    _refused(_sharded(), schedule=AlternateSteps(1, 1))


def other_val(folder: Path) -> None:
    mine = [(x, {"classes": t["classes"]}) for x, t in batches(1 + rank_and_count()[0])]
    _refused(_sharded(), val=mine)


def endless_val(folder: Path) -> None:
    _refused(_sharded(), val=iter([]))

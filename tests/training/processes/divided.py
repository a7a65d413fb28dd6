"""Encoders whose table processes have divided by rows; each function is the same with a whole one in one process."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mt2st_fast import (
    AdaptiveSwitch,
    BagEncoder,
    Classification,
    LazyAdam,
    MultiTask,
    MultiTaskHeads,
    RowwiseAdagrad,
    Trainer,
    WindowEncoder,
    gather_rows,
    save_modules,
    shard_rows,
)
from mt2st_fast.model.row_shards import shard_of
from mt2st_fast.model.sharded import gathered
from tests.training.processes import runs
from tests.training.processes.runs import Stop, rank_and_count


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


def windows(folder: Path) -> dict[str, Any]:
    return of_words("token", n_rows=61)


def bags(folder: Path) -> dict[str, Any]:
    return of_words("document", make_optimizer=lambda p: RowwiseAdagrad(p, lr=0.1))


def adaptive(folder: Path) -> dict[str, Any]:
    return of_words("token", schedule=AdaptiveSwitch(patience=2), n_rows=61)


def few_rows(folder: Path) -> dict[str, Any]:
    """Batches in which a process has no row, whose rows have one owner, or that read nothing at all."""
    torch.manual_seed(3)
    n = 3  # rows of the table: with four processes one of them owns none
    encoder = BagEncoder(n, 8, sparse=True)
    if rank_and_count()[1] > 1:
        shard_rows(encoder)
    heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
    data = [
        ((torch.tensor(types), torch.tensor(offsets)), {"classes": torch.tensor(labels)})
        for types, offsets, labels in (
            ([0, 1, 2, 2], [0, 1, 3, 4], [1, 2, 3]),
            ([0, 0], [0, 1, 2], [0, 1]),
            ([1], [0, 1], [3]),
            ([], [0, 0, 0], [2, 3]),
        )
    ]
    rank, count = rank_and_count()
    mine = [_of_rank(batch, rank, count) for batch in data]
    trainer = Trainer(encoder, heads, optimizer=LazyAdam, device="cpu", schedule=MultiTask())
    trainer.fit(mine, epochs=4)
    vectors = encoder.vectors()
    return {
        "history": trainer.history.to_json(),
        "weights": {"vectors": vectors, **heads.state_dict()},
        "moments": [],
    }


def _of_rank(batch: Any, rank: int, count: int) -> Any:
    (types, offsets), targets = batch
    bags = [types[a:b] for a, b in itertools.pairwise(offsets)][rank::count]
    ends = torch.tensor([0, *(len(bag) for bag in bags)]).cumsum(0)
    mine = torch.cat(bags).int() if bags else torch.empty(0, dtype=torch.int32)
    return (mine, ends), {name: y[rank::count] for name, y in targets.items()}


def a_row_a_type(folder: Path) -> dict[str, Any]:
    """A row a type, clipped and accumulated."""
    return of_words("token", n_rows=None, clip_norm=0.05, accumulate=2)


def never_whole(folder: Path) -> dict[str, Any]:
    """A table that begins without memory; with a padding row."""
    torch.manual_seed(5)
    rows_of_type = torch.arange(2000).view(1000, 2)
    encoder = BagEncoder(1000, 16, rows_of_type=rows_of_type, num_rows=2000, sparse=True, table_device="meta")
    shard_rows(encoder)
    return {"own": encoder.table.detach().clone(), "whole": gathered(encoder.table.detach(), encoder.table)}


def resumed(folder: Path) -> dict[str, Any]:
    found = {"whole": of_words("token")}
    for at in (11, 50):
        path = folder / f"divided-{at}.safetensors"
        of_words("token", checkpoint=path, callbacks=[Stop(at)])
        found[f"resumed {at}"] = of_words("token", checkpoint=path, resume=True)
    return found


def left_for_others(folder: Path) -> dict[str, Any]:
    path = folder / f"rows-left-by-{rank_and_count()[1]}.safetensors"
    of_words("token", checkpoint=path, callbacks=[Stop(11)])
    return {}


def taken_over(folder: Path) -> dict[str, Any]:
    path = folder / f"rows-left-by-{3 - rank_and_count()[1]}.safetensors"
    return of_words("token", checkpoint=path, resume=True)


# --- refused --------------------------------------------------------------------------------------------------


def words_beside(folder: Path) -> None:
    runs.words("token", similarity=True, divide=shard_rows)


def trained_alone(folder: Path) -> None:
    runs.words("token", divide=shard_rows, distributed="none")


def dense_rows(folder: Path) -> None:
    shard_rows(BagEncoder(9, 4))


def divided_twice(folder: Path) -> None:
    encoder = BagEncoder(9, 4, sparse=True)
    shard_rows(encoder)
    shard_rows(encoder)


def never_divided(folder: Path) -> None:
    encoder = BagEncoder(9, 4, sparse=True, table_device="meta")
    Trainer(encoder, MultiTaskHeads(4, {"classes": Classification(4)}, "classes"), device="cpu")


def copied(folder: Path) -> None:
    encoder = BagEncoder(9, 4, sparse=True)
    shard_rows(encoder)
    copy.deepcopy(encoder).vectors()


def kept_in_parts(folder: Path) -> None:
    encoder = BagEncoder(9, 8, sparse=True)
    shard_rows(encoder)
    save_modules(folder / "parts", encoder, MultiTaskHeads(8, {"classes": Classification(4)}, "classes"))


def copied_and_trained(folder: Path) -> None:
    runs.words("token", divide=_copy_divided)


def _copy_divided(encoder: nn.Module) -> None:
    shard_rows(encoder)
    encoder.table = nn.Parameter(encoder.table.detach().clone())  # type: ignore[arg-type]

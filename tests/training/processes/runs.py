"""Runs that one process and several can make of the same data; each returns what it learnt, for comparison."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from mt2st_fast import (
    AdaptiveSwitch,
    AlternateSteps,
    BagEncoder,
    Callback,
    Classification,
    LazyAdam,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    OpenTask,
    Regression,
    RowwiseAdagrad,
    SingleTask,
    Switch,
    Trainer,
    WindowEncoder,
    WordSimilarity,
)
from mt2st_fast.data import BagBatches, Corpus, TargetColumn, TokenBatches, evaluation_batches
from mt2st_fast.data.word_batches import WordBatches
from tests.data.test_batches import classes

ROWS, FEATURES = 64, 5
TASKS = {
    "classes": Classification(4),
    "weighted": Classification(3, class_weights=(1.0, 3.0, 0.2), label_smoothing=0.1, ignore_index=9),
    "labels": MultiLabel(3, pos_weight=(1.0, 2.0, 0.5)),
    "values": Regression(2),
    "robust": Regression(1, huber_delta=0.3),
}


def rank_and_count() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def rows(seed: int, n: int = ROWS) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Rows of which many lack labels, the later ones nearly all; values only the first half has."""
    generator = torch.Generator().manual_seed(seed)
    rand = torch.rand(n, 6, generator=generator)
    x = torch.randn(n, FEATURES, generator=generator)
    missing = torch.rand(n, len(TASKS), generator=generator) < torch.linspace(0.2, 0.95, n)[:, None]
    missing[n // 2 :, 3] = True
    return x, {
        "classes": torch.where(missing[:, 0], -100, (rand[:, 0] * 4).long()),
        "weighted": torch.where(missing[:, 1], 9, (rand[:, 1] * 3).long()),
        "labels": torch.where(rand[:, :3] < 0.4, math.nan, (rand[:, 3:] > 0.5).float()),
        "values": torch.where(missing[:, 3:4], math.nan, rand[:, 2:4]),
        "robust": torch.where(missing[:, 4:5], math.nan, rand[:, 4:5] * 3),
    }


def learnt(trainer: Trainer) -> dict[str, Any]:
    modules = {"encoder": trainer.encoder, "heads": trainer.heads}
    weights = {f"{m}/{n}": t.clone() for m, module in modules.items() for n, t in module.state_dict().items()}
    state = trainer.run.optimizer.state
    return {
        "weights": weights,
        "history": trainer.history.to_json(),
        "step": trainer.step,
        "moments": [dict(sorted(of_one.items())) for of_one in state.values()],
    }


def dense(data: Any, **options: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    encoder, heads = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()), MultiTaskHeads(8, TASKS, "classes")
    fit = {
        name: options.pop(name)
        for name in ("val", "epochs", "steps", "checkpoint", "resume")
        if name in options
    }
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.5), "log_every": 2} | options
    trainer = Trainer(encoder, heads, device="cpu", **options)
    trainer.fit(data, **{"epochs": 1, **fit})
    return learnt(trainer)


def batches(n: int = 6, size: int = ROWS) -> list[Any]:
    return [rows(seed, size) for seed in range(n)]


# --- the same in every process: divided ----------------------------------------------------------------------


def of_a_list(folder: Path) -> dict[str, Any]:
    """With a last batch that has one row, of which one process has none."""
    schedule = Switch(at=0.5, weights={"labels": 0.5, "robust": 2.0, "weighted": 1.0, "values": 1.0})
    return dense([*batches(), rows(7, 1)], schedule=schedule, epochs=2)


def clipped_and_accumulated(folder: Path) -> dict[str, Any]:
    return dense(batches(8), schedule=MultiTask(), accumulate=2, clip_norm=0.1, epochs=2)


def with_moments(folder: Path) -> dict[str, Any]:
    """Weight decay and moments go on for what has a gradient anywhere, and for nothing else."""
    make = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)  # noqa: E731
    return dense(batches(), schedule=Switch(at=0.5), optimizer=make, epochs=2)


def evaluated(folder: Path) -> dict[str, Any]:
    return dense(batches(), val=batches(3), schedule=Switch(at=0.5), epochs=2)


def adaptive(folder: Path) -> dict[str, Any]:
    schedule = AdaptiveSwitch(patience=2)
    return dense(batches(4), val=batches(3), schedule=schedule, epochs=8)


def in_turns(folder: Path) -> dict[str, Any]:
    """With the moments of what has no turn left as they are."""
    make = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)  # noqa: E731
    return dense(batches(), schedule=AlternateSteps(1, 2), optimizer=make, epochs=2)


def corpus(level: str) -> Corpus:
    """Labels are functions of the words; most rows have no main label."""
    generator = np.random.default_rng(5)
    tokens = generator.integers(0, 40, 600).astype(np.int32)
    bounds = np.arange(0, 601, 10)
    of_row = tokens if level == "token" else tokens[bounds[:-1]]
    main = (of_row % 5).astype(np.int64)
    main[np.arange(len(main)) % 5 > 0] = -100
    score = (of_row / 40).astype(np.float32)[:, None].copy()
    score[::3] = np.nan
    columns = {"main": classes(main), "aux": classes((of_row % 3).astype(np.int64)),
               "score": TargetColumn("values", ("x",), score)}  # fmt: skip
    return Corpus(tokens, bounds, columns, level=level)


def words(
    level: str,
    make_optimizer: Any = None,
    similarity: bool = False,
    n_rows: int | None = 60,
    divide: Callable[[nn.Module], None] = lambda encoder: None,
    self_training: bool = False,
    **options: Any,
) -> dict[str, Any]:
    torch.manual_seed(2)
    text = corpus(level)
    rows_of_type = torch.randint(0, n_rows or 40, (40, 3), generator=torch.Generator().manual_seed(0))
    of_table = {} if n_rows is None else {"rows_of_type": rows_of_type, "num_rows": n_rows}
    of_table |= {"sparse": True}
    encoder: nn.Module
    if level == "token":
        encoder = WindowEncoder(40, 6, window=1, hidden=8, **of_table)
        data: Any = TokenBatches(text, 24, 1, "main", self_training=self_training)
    else:
        encoder = BagEncoder(40, 8, **of_table)
        data = BagBatches(text, 24, "main")
    tasks: dict[str, Any] = {"main": Classification(5), "aux": Classification(3), "score": Regression(1)}
    if similarity:
        tasks["similarity"] = WordSimilarity()
        pairs = np.random.default_rng(1).integers(0, 40, (30, 2))
        scores = np.linspace(0, 1, 30).astype(np.float32)
        data = {"main": list(data), "similarity": WordBatches(pairs, scores, "similarity", 8, 1, 9)}
    divide(encoder)
    heads = MultiTaskHeads(8, tasks, "main")
    fit = {name: options.pop(name) for name in ("checkpoint", "resume", "epochs") if name in options}
    trainer = Trainer(
        encoder, heads, optimizer=make_optimizer or (lambda p: LazyAdam(p, lr=0.01)), device="cpu", log_every=3,
        **{"schedule": Switch(at=0.5)} | options,
    )  # fmt: skip
    val = evaluation_batches(text, 64, 1 if level == "token" else None)
    trainer.fit(data, val=val, **{"epochs": 3, **fit})
    return learnt(trainer)


def windows(folder: Path) -> dict[str, Any]:
    return words("token")


def begun_words(seed: int) -> Any:
    """A run on windows that has not taken a step."""
    torch.manual_seed(seed)
    encoder = WindowEncoder(40, 6, window=1, hidden=8, sparse=True)
    heads = MultiTaskHeads(8, {"main": Classification(5), "aux": Classification(3)}, "main")
    trainer = Trainer(
        encoder, heads, optimizer=lambda p: LazyAdam(p, lr=0.01), schedule=MultiTask(), device="cpu"
    )
    return trainer.begin(TokenBatches(corpus("token"), 24, 1, "main"), epochs=9)


def bags(folder: Path) -> dict[str, Any]:
    return words("document", lambda p: RowwiseAdagrad(p, lr=0.1))


def with_own_labels(folder: Path) -> dict[str, Any]:
    return words("token", self_training=True)


def with_similarity(folder: Path) -> dict[str, Any]:
    return words("token", similarity=True)


class Uncertainty(nn.Module):
    """Weights that are learned, exp(-s), with the penalty sum(s)."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.full((len(TASKS),), 0.1))

    def task_weights(self, moment: Any, main: str, auxiliary: Any) -> dict[str, float]:
        return dict.fromkeys((main, *auxiliary), 1.0)

    def weights(self, active: Any) -> torch.Tensor:
        return torch.exp(-self.s[: len(active)])

    def penalty(self, active: Any) -> torch.Tensor:
        return self.s[: len(active)].sum()


def learnt_weights(folder: Path) -> dict[str, Any]:
    schedule = Uncertainty()
    found = dense([*batches(3), rows(8, 1)], schedule=schedule, accumulate=2, epochs=2)
    return found | {"weights": found["weights"] | {"s": schedule.s.detach()}}


class Nearness(OpenTask):
    """Mean squared distance of the first feature from a number."""

    def loss(self, features: torch.Tensor, targets: Any, mask: Any) -> torch.Tensor:
        return (features[:, 0] - targets).square().mean()

    def count(self, targets: Any) -> float:
        return float(len(targets))


class WordsBySum(nn.Module):
    """A table of torch's own, whose gradient repeats rows, beside one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.unused = nn.Embedding(12, 8, sparse=True), nn.Embedding(3, 8, sparse=True)

    def forward(self, types: torch.Tensor) -> torch.Tensor:
        return self.words(types).sum(1)


def tables_of_torch(folder: Path) -> dict[str, Any]:
    torch.manual_seed(4)
    heads = MultiTaskHeads(8, {"classes": Classification(4), "near": Nearness()}, "classes")
    optimizer = lambda p: torch.optim.SGD(p, lr=0.5)  # noqa: E731
    trainer = Trainer(
        WordsBySum(),
        heads,
        optimizer=optimizer,
        schedule=MultiTask(),
        device="cpu",
        clip_norm=0.5,
        log_every=2,
    )
    data = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        types = torch.randint(0, 12, (9, 4), generator=generator)
        data.append((types, {"classes": types[:, 0] % 4, "near": torch.rand(9, generator=generator)}))
    trainer.fit(data, epochs=3)
    return learnt(trainer)


def halves(folder: Path) -> dict[str, Any]:
    return _of_type(torch.bfloat16)


def doubles(folder: Path) -> dict[str, Any]:
    return _of_type(torch.float64)


def scaled(folder: Path) -> dict[str, Any]:
    """By float16 autocast, with loss scaling."""
    return dense(batches(), schedule=MultiTask(), precision="float16", clip_norm=1.0)


def _of_type(dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(1)
    encoder = nn.Linear(FEATURES, 8).to(dtype)
    heads = MultiTaskHeads(
        8, {"classes": TASKS["classes"], "weighted": TASKS["weighted"]}, "classes", backend="reference"
    )
    optimizer = lambda p: torch.optim.SGD(p, lr=0.5)  # noqa: E731
    trainer = Trainer(
        encoder, heads.to(dtype), optimizer=optimizer, schedule=MultiTask(), device="cpu", log_every=2
    )
    data = [(x.to(dtype), {n: t[n] for n in ("classes", "weighted")}) for x, t in batches()]
    trainer.fit(data, epochs=1)
    return learnt(trainer)


# --- every process its own ------------------------------------------------------------------------------------


def own_parts(folder: Path) -> dict[str, Any]:
    """Of a batch process 0 has 50 rows and the others share the rest; a task is missing in one process altogether."""
    rank, count = rank_and_count()
    if count == 1:
        return dense(batches(), schedule=Switch(at=0.5), epochs=2)
    bounds = [0, 50, *(50 + (ROWS - 50) * (r + 1) // (count - 1) for r in range(count - 1))]
    mine = []
    for x, targets in batches():
        part = slice(bounds[rank], bounds[rank + 1])
        left_out = ("values",) if rank else ()  # rows that have none of it
        mine.append((x[part], {n: t[part] for n, t in targets.items() if n not in left_out}))
    return dense(mine, schedule=Switch(at=0.5), epochs=2)


class _Passes:
    """A loader of one's own, of which nobody knows what other processes get."""

    def __init__(self, data: list[Any]) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


def alike(folder: Path) -> dict[str, Any]:
    """What the log says of a loader that is the same in all, and of one that is not."""
    said: dict[str, list[str]] = {"same": [], "other": []}
    handler = logging.Handler()
    logging.getLogger("mt2st_fast").addHandler(handler)
    for name, told in said.items():
        first = rank_and_count()[0] if name == "other" else 0
        handler.emit = lambda record, told=told: told.append(record.getMessage())  # type: ignore[method-assign]
        dense(_Passes([rows(first), rows(5)]), schedule=MultiTask(), epochs=None, steps=4)
    logging.getLogger("mt2st_fast").removeHandler(handler)
    return said


def uncounted(folder: Path) -> dict[str, Any]:
    """Process 0 has only rows of a class of weight 0, whose smoothed labels have a loss all the same."""
    rank, count = rank_and_count()
    task = Classification(4, class_weights=(0.0, 1.0, 3.0, 0.5), label_smoothing=0.2)
    x, _ = rows(5, 16)
    target = torch.tensor([0] * 8 + [1, 2, 3, 0, 1, 2, 3, -100])
    mine = slice(0, 16) if count == 1 else slice(0, 8) if rank == 0 else slice(8 * rank, 8 * rank + 8)
    torch.manual_seed(1)
    encoder, heads = nn.Linear(FEATURES, 8), MultiTaskHeads(8, {"uncounted": task}, "uncounted")
    optimizer = lambda p: torch.optim.SGD(p, lr=0.5)  # noqa: E731
    trainer = Trainer(encoder, heads, optimizer=optimizer, schedule=MultiTask(), device="cpu", log_every=2)
    trainer.fit([(x[mine], {"uncounted": target[mine]})], epochs=3)
    return learnt(trainer)


def distributed_sampler(folder: Path) -> dict[str, Any]:
    """The orders of two passes differ."""
    x, targets = rows(0)
    data = TensorDataset(x, targets["classes"])
    seen: list[list[float]] = []

    def collate(items: list[Any]) -> Any:
        inputs = torch.stack([item[0] for item in items])
        seen.append(inputs[:, 0].tolist())
        return inputs, {"classes": torch.stack([item[1] for item in items])}

    loader = DataLoader(data, batch_size=8, sampler=DistributedSampler(data), collate_fn=collate)
    torch.manual_seed(1)
    trainer = Trainer(
        nn.Linear(FEATURES, 8),
        MultiTaskHeads(8, {"classes": Classification(4)}, "classes"),
        schedule=SingleTask(),
        device="cpu",
    )
    trainer.fit(loader, epochs=2)
    return learnt(trainer) | {"seen": seen}


class Stop(Callback):
    def __init__(self, step: int, rank: int | None = None) -> None:
        self.at, self.rank = step, rank

    def on_step(self, trainer: Any) -> None:
        if trainer.step == self.at and self.rank in (None, rank_and_count()[0]):
            trainer.stop_requested = True


def stopped_by_one(folder: Path) -> dict[str, Any]:
    """One process alone asks to stop; all do, at that step."""
    return dense(batches(), schedule=MultiTask(), epochs=2, callbacks=[Stop(5, rank_and_count()[1] - 1)])


def unrecorded(folder: Path) -> dict[str, Any]:
    """The memory behind the losses of a step, which are kept until they are recorded."""
    torch.manual_seed(1)
    encoder, heads = nn.Linear(FEATURES, 1000), MultiTaskHeads(1000, TASKS, "classes")
    run = Trainer(encoder, heads, schedule=MultiTask(), device="cpu").begin(batches(2), epochs=1)
    losses = run.step()
    run.close()
    return {"bytes": losses.untyped_storage().nbytes()}


# --- resuming -------------------------------------------------------------------------------------------------


def stopped_then_resumed(folder: Path) -> dict[str, Any]:
    """Words with dropout, stopped after the switch: bit for bit as never stopped."""
    return {name: _resumed(folder / f"again-{name}", name) for name in ("windows", "own")}


def _resumed(folder: Path, name: str) -> dict[str, Any]:
    def once(**options: Any) -> dict[str, Any]:
        if name == "windows":
            return words("token", **options)
        rank, count = rank_and_count()
        x, targets = rows(3, 96)
        data = TensorDataset(x[rank::count], targets["classes"][rank::count])
        loader = DataLoader(data, batch_size=8, shuffle=True, collate_fn=_collated)
        torch.manual_seed(1)
        encoder = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(0.5))
        heads = MultiTaskHeads(8, {"classes": Classification(4)}, "classes")
        fit = {n: options.pop(n) for n in ("checkpoint", "resume") if n in options}
        trainer = Trainer(encoder, heads, schedule=SingleTask(), device="cpu", log_every=3, **options)
        trainer.fit(loader, epochs=3, **fit)
        return learnt(trainer)

    path = folder / "last.safetensors"
    whole = once()
    once(checkpoint=path, callbacks=[Stop(11)])
    return {"whole": whole, "resumed": once(checkpoint=path, resume=True)}


def _collated(items: list[Any]) -> Any:
    return torch.stack([item[0] for item in items]), {"classes": torch.stack([item[1] for item in items])}


def left_for_others(folder: Path) -> dict[str, Any]:
    """A checkpoint for another number of processes."""
    count = rank_and_count()[1]
    words("token", checkpoint=folder / f"of-{count}.safetensors", callbacks=[Stop(11)])
    own = [rows(rank_and_count()[0])] if count > 1 else [rows(0)]
    dense(
        own,
        schedule=MultiTask(),
        epochs=4,
        checkpoint=folder / f"own-of-{count}.safetensors",
        callbacks=[Stop(2)],
    )
    return {}


def taken_over(folder: Path) -> dict[str, Any]:
    """Goes on with the checkpoint of the other number of processes."""
    before = 2 if rank_and_count()[1] == 1 else 1
    return words("token", checkpoint=folder / f"of-{before}.safetensors", resume=True)


def own_taken_over(folder: Path) -> dict[str, Any]:
    """Cannot: the data was each process's own."""
    path = folder / "own-of-2.safetensors"
    return dense([rows(0)], schedule=MultiTask(), epochs=4, checkpoint=path, resume=True)

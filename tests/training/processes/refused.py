"""What several processes cannot do, or were given wrongly; every function ends with the error that it must."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from mt2st_fast import (
    FAMO,
    AdaTask,
    BagEncoder,
    Classification,
    ContextPrediction,
    LazyAdam,
    MultiTask,
    MultiTaskHeads,
    TaskAdaptedEncoder,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.data import TokenBatches
from mt2st_fast.data.word_batches import ContextBatches
from mt2st_fast.training.processes.group import Processes, the_processes
from tests.training.processes import runs


def _fit(encoder: nn.Module, data: Any, **options: Any) -> Trainer:
    heads = MultiTaskHeads(8, {"classes": Classification(4), "weighted": runs.TASKS["weighted"]}, "classes")
    fit = {name: options.pop(name) for name in ("val", "checkpoint") if name in options}
    trainer = Trainer(encoder, heads, device="cpu", **({"schedule": MultiTask()} | options))
    trainer.fit(data, epochs=2, **fit)
    return trainer


def _linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(runs.FEATURES, 8)


def _own(n: int = 3) -> list[Any]:
    return [
        (x, {"classes": t["classes"]}) for x, t in (runs.rows(100 * dist.get_rank() + i) for i in range(n))
    ]


def wrapped(folder: Path) -> None:
    _fit(nn.parallel.DistributedDataParallel(_linear()), _own())


def wrapped_in_fsdp1(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = FullyShardedDataParallel(_linear(), device_id=torch.device("cpu"), use_orig_params=True)
    _fit(encoder, _own())


def batch_norm(folder: Path) -> None:
    _fit(nn.Sequential(_linear(), nn.BatchNorm1d(8)), _own())


def fused(folder: Path) -> None:
    _fit(BagEncoder(9, 8, sparse=True), _own(), backward="fused", optimizer=LazyAdam)


def shuffled_alike(folder: Path) -> None:
    x, targets = runs.rows(0)
    data = TensorDataset(x, targets["classes"])
    _fit(_linear(), DataLoader(data, batch_size=8, shuffle=True, collate_fn=runs._collated))


def longer_in_one(folder: Path) -> None:
    _fit(_linear(), _own(3 + dist.get_rank()))


def another_scheduler(folder: Path) -> None:
    kind = (torch.optim.lr_scheduler.LinearLR, torch.optim.lr_scheduler.ConstantLR)[dist.get_rank()]
    _fit(_linear(), _own(), lr_scheduler=kind)


def own_metric(folder: Path) -> None:
    _fit(_linear(), _own(), metrics={"classes": lambda predictions, targets: 1.0})


def another_rate(folder: Path) -> None:
    _fit(_linear(), _own(), lr=0.1 * (1 + dist.get_rank()))


def another_weight_decay(folder: Path) -> None:
    _fit(
        _linear(), _own(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1 * dist.get_rank())
    )


def another_rate_of_the_optimizer(folder: Path) -> None:
    _fit(_linear(), _own(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1 * (1 + dist.get_rank())))


def other_class_weights(folder: Path) -> None:
    task = Classification(4, class_weights=(1.0, 1.0, 1.0, 1.0 + dist.get_rank()))
    heads = MultiTaskHeads(8, {"classes": task}, "classes")
    Trainer(_linear(), heads, schedule=MultiTask(), device="cpu").fit(_own(), epochs=1)


def another_dropout(folder: Path) -> None:
    _fit(nn.Sequential(_linear(), *[nn.Dropout(0.5)] * dist.get_rank()), _own())


def frozen_elsewhere(folder: Path) -> None:
    """Layers of one shape."""
    encoder = nn.Sequential(_linear(), nn.Linear(8, 8), nn.Linear(8, 8))
    encoder[1 + dist.get_rank()].requires_grad_(False)
    _fit(encoder, _own())


def slowed_in_one(folder: Path) -> None:
    class Slow(runs.Callback):
        def on_step(self, trainer: Any) -> None:
            if dist.get_rank():
                trainer.run.optimizer.param_groups[0]["lr"] = 1e-5

    _fit(_linear(), _own(), callbacks=[Slow()])


def validated_in_one(folder: Path) -> None:
    _fit(_linear(), _own(), val=_own() if dist.get_rank() else None)


def bags_without_rows(folder: Path) -> None:
    bags = (torch.zeros(6, dtype=torch.int32), torch.tensor([0, 2, 6]))
    _fit(BagEncoder(9, 8), [(bags, {"classes": torch.zeros(2, dtype=torch.int64)})] * 4)


def another_corpus(folder: Path) -> None:
    text = runs.corpus("token")
    data = TokenBatches(text, 24, 1, "main", seed=1 + dist.get_rank())
    heads = MultiTaskHeads(8, {"main": Classification(5)}, "main")
    encoder = WindowEncoder(40, 6, window=1, hidden=8)
    Trainer(encoder, heads, schedule=MultiTask(), device="cpu").fit(data, epochs=1)


def context(folder: Path) -> None:
    tokens = np.arange(40, dtype=np.int32) % 9
    text = ContextBatches(tokens, np.array([0, 40]), np.full(9, 5), words=20)
    heads = MultiTaskHeads(8, {"classes": Classification(4), "context": ContextPrediction(9, 8)}, "classes")
    trainer = Trainer(BagEncoder(9, 8, sparse=True), heads, schedule=MultiTask(), device="cpu")
    trainer.fit({"classes": _own(), "context": text}, epochs=1)


def by_losses(folder: Path) -> None:
    _fit(_linear(), _own(), schedule=FAMO())


def once_a_task(folder: Path) -> None:
    _fit(_linear(), _own(), schedule=AdaTask())


def layers_of_their_own(folder: Path) -> None:
    _fit(TaskAdaptedEncoder(_linear(), runs.batches()[0][1]), _own())


def unfrozen_in_one(folder: Path) -> None:
    encoder = nn.Sequential(_linear(), nn.Linear(8, 8))
    encoder[1].requires_grad_(False)

    class Unfreeze(runs.Callback):
        def on_step(self, trainer: Any) -> None:
            encoder[1].requires_grad_(dist.get_rank() == 0)

    _fit(encoder, _own(), callbacks=[Unfreeze()], log_every=1)


class Whim:
    """A schedule of somebody's own, which two processes decide otherwise."""

    def task_weights(self, moment: Any, main: str, auxiliary: Any) -> dict[str, float]:
        return {main: 1.0, **({"weighted": 0.5} if dist.get_rank() == 0 and moment.step < 3 else {})}


def whims(folder: Path) -> dict[str, Any]:
    """Goes by process 0."""
    trainer = _fit(_linear(), runs.batches(), schedule=Whim())
    return {"history": trainer.history.to_json()}


def apart(folder: Path) -> dict[str, Any]:
    """Each its own model, on purpose."""
    trainer = _fit(_linear(), _own(), distributed="none")
    return {"weights": trainer.encoder.weight.clone()}


class Counting(Processes):
    """Counts the bytes that this process sends to all."""

    sent = 0

    def gather(self, message: bytes) -> list[bytes]:
        self.sent += len(message)
        return super().gather(message)

    def gather_written(self, write: Any, lengths: Any, device: torch.device) -> list[torch.Tensor]:
        self.sent += lengths[self.rank]
        return super().gather_written(write, lengths, device)

    def gather_arrays(self, arrays: Any) -> Any:
        found = super().gather_arrays(arrays)
        if found is not None:  # else nothing was sent, as it did not fit
            self.sent += sum(each.nbytes for each in arrays)
        return found

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        self.sent += values.numel() * values.element_size()
        return super().add_up(values)


def bytes_of_rows(folder: Path) -> dict[str, Any]:
    """Steps on a table of a million rows."""
    rows, dim, size, steps = 1_000_000, 64, 512, 4
    torch.manual_seed(0)
    encoder = BagEncoder(rows, dim, sparse=True)
    data = []
    for seed in range(steps):
        generator = torch.Generator().manual_seed(10 * dist.get_rank() + seed)
        types = torch.randint(0, rows, (size * 4,), generator=generator, dtype=torch.int32)
        offsets = torch.arange(0, size * 4 + 1, 4)
        data.append(((types, offsets), {"classes": torch.randint(0, 4, (size,), generator=generator)}))
    heads = MultiTaskHeads(dim, {"classes": Classification(4)}, "classes")
    processes = the_processes()
    processes.__class__ = Counting
    trainer = Trainer(
        encoder, heads, schedule=MultiTask(), device="cpu", optimizer=lambda p: LazyAdam(p, lr=0.1)
    )
    run = trainer.begin(data, epochs=1)
    before = processes.sent
    run.step()
    sent = processes.sent - before
    run.step()
    run.close()
    processes.close()
    n_rows = len(data[0][0][0].unique())
    return {"sent": sent, "of rows": n_rows * (4 + 4 * dim), "table": encoder.table.detach()[:1000].clone()}

"""A window or a bag encoder under three heads, four batches an epoch: small runs that train parts in turns."""

from __future__ import annotations

import torch

from mt2st_fast import (
    SGD,
    BagEncoder,
    Classification,
    LazyAdam,
    MultiTaskHeads,
    Regression,
    RowwiseAdagrad,
    Trainer,
    WindowEncoder,
)

TASKS = {"main": Classification(7), "wide": Classification(40), "score": Regression(2)}
PER_EPOCH, N, V = 4, 60, 90


def targets_of(seed, n=N):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, task in TASKS.items():
        if task.head.kind.takes_classes:
            found[name] = torch.randint(0, task.head.size, (n,), generator=generator)
            found[name][seed % 3 :: 3] = -100
        else:
            found[name] = torch.rand(n, task.head.size, generator=generator)
    return found


def windows(seed):
    return torch.randint(-1, V, (N, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def bags(seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (N,), generator=generator)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return torch.randint(0, V, (int(starts[-1]),), generator=generator), starts


def batches(kind):
    make = windows if kind == "window" else bags
    return [(make(seed), targets_of(seed)) for seed in range(PER_EPOCH)]


def trainer_of(kind, optimizer, **options):
    torch.manual_seed(4)
    if kind == "window":
        encoder = WindowEncoder(V, 12, window=2, hidden=20, sparse=True)
    else:
        encoder = BagEncoder(V, 20, sparse=True)
    heads = MultiTaskHeads(20, TASKS, "main")
    return Trainer(encoder, heads, optimizer=optimizer, device="cpu", log_every=3, **options)


def parameters_of(trainer):
    modules = {"encoder": trainer.encoder, "heads": trainer.heads}
    return {f"{part}/{n}": p.detach().clone() for part, m in modules.items() for n, p in m.named_parameters()}


OPTIMIZERS = {
    "adam": lambda p: LazyAdam(p, lr=0.02, weight_decay=0.1),
    "adagrad": lambda p: RowwiseAdagrad(p, lr=0.05),
    "sgd": lambda p: SGD(p, lr=0.1),
}

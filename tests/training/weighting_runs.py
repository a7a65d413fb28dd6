"""A tanh encoder under a head of every kind, trained by SGD: small enough to be computed again in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mt2st_fast import Classification, MultiLabel, MultiTaskHeads, Regression, Trainer

TASKS = {
    "tag": Classification(4),
    "feats.Number": MultiLabel(3),
    "squared": Regression(2),
    "huber": Regression(1, huber_delta=1.0),
}
LOSSES = {
    "tag": F.cross_entropy,
    "feats.Number": F.binary_cross_entropy_with_logits,
    "squared": F.mse_loss,
    "huber": F.huber_loss,
}
RATE = 0.1


def encoder_and_heads():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh()), MultiTaskHeads(8, TASKS, "tag")


def data(n_batches=3, rows=24):
    generator = torch.Generator().manual_seed(2)

    def batch():
        targets = {
            "tag": torch.randint(0, 4, (rows,), generator=generator),
            "feats.Number": torch.rand(rows, 3, generator=generator).round(),
            "squared": torch.randn(rows, 2, generator=generator),
            "huber": torch.randn(rows, 1, generator=generator) * 2,
        }
        return torch.randn(rows, 5, generator=generator), targets

    return [batch() for _ in range(n_batches)]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


def trained(schedule, epochs, data_of_run=None, kind=Trainer, **options):
    encoder, heads = encoder_and_heads()
    options = {"optimizer": sgd, "device": "cpu", "log_every": 2} | options
    trainer = kind(encoder, heads, schedule=schedule, **options)
    return trainer, trainer.fit(data_of_run or data(), epochs=epochs)


def losses_of(encoder, heads, batch):
    """(K,) by torch's own losses, with gradient."""
    inputs, targets = batch
    features = encoder(inputs)
    return torch.stack([LOSSES[name](heads.logits(features, name), targets[name]) for name in TASKS])


def assert_same_model(trainer, encoder, heads):
    for ours, theirs in zip(
        [*trainer.encoder.parameters(), *trainer.heads.parameters()],
        [*encoder.parameters(), *heads.parameters()],
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def without(batch, *names):
    """A batch without the targets of these tasks."""
    inputs, targets = batch
    return inputs, {name: target for name, target in targets.items() if name not in names}

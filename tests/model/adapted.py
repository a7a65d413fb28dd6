"""Small encoders whose layers tasks make their own, and rows for them."""

from __future__ import annotations

import torch
from torch import nn

from mt2st_fast import Classification, MultiTaskHeads, Regression, TaskAdaptedEncoder

TASKS = {"a": Classification(4), "feats.b": Classification(3), "c": Regression(2)}
NAMES = tuple(TASKS)


class Tokens(nn.Module):
    """(N, T, 8) features, and a mask of what is real."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 8)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return self.layer(inputs).tanh(), inputs[..., 0] > 0


def rows(n=12):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 5, generator=generator)
    targets = {
        "a": torch.randint(0, 4, (n,), generator=generator),
        "feats.b": torch.randint(0, 3, (n,), generator=generator),
        "c": torch.randn(n, 2, generator=generator),
    }
    return inputs, targets


def model(**options):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 8), nn.Tanh())
    heads = MultiTaskHeads(8, TASKS, "a")
    return TaskAdaptedEncoder(encoder, heads.names, **options), heads


def residual(encoder, layer):
    (found,) = encoder.encoder.get_submodule(layer).parametrizations.weight
    return found


def differ(encoder):
    """Give every task's layers a difference."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in encoder.named_parameters():
        if ".difference." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

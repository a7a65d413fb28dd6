"""What the tests of norms in an MLP share: models, their batches, and what dropout beside a norm must do."""

from __future__ import annotations

import torch
from torch import nn

from mt2st_fast import MultiTaskHeads
from mt2st_fast.kernels.step.on_numba.dropout import drop_of, factors_of
from mt2st_fast.training.engines.kernel_calls.stack_training import StackTraining
from tests.training.engines.kernel_calls.test_stack_training import TASKS, WEIGHTS, batch, parameters

V = 40
OF_WORDS = ("of bags", "of vectors side by side")  # encoders whose inputs are indices
NORMS = nn.LayerNorm | nn.RMSNorm | nn.BatchNorm1d


def made(make_encoder):
    """Other weights than the ones and zeros that a norm begins with."""
    torch.manual_seed(0)
    encoder = make_encoder()
    for module in encoder:
        if isinstance(module, NORMS):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -1.0, 2.0)
    return encoder, MultiTaskHeads(33, TASKS, "a")


def buffers(encoder):
    return [buffer.clone() for buffer in encoder.buffers()]


def inputs_of(encoder, N, seed):
    draw = torch.Generator().manual_seed(seed)
    if encoder in OF_WORDS:
        return torch.randint(V, (N, 3), generator=draw)
    return torch.randn(N, 33 if encoder == "without a linear layer" else 7, generator=draw) * 2 + 1


def batches_of(encoder, sizes):
    return [(inputs_of(encoder, N, seed), batch(N, seed=seed)[1]) for seed, N in enumerate(sizes)]


def assert_dropout_is_that_of_its_keys(norm, N):
    """On both sides of norms, in a step of N rows: autograd's step with the factors of the step's keys."""
    parts = [
        (nn.Dropout(0.1),), (norm(7), nn.Dropout(0.4)), (nn.Linear(7, 20), norm(20), nn.GELU(), nn.Dropout(0.3)),
        (nn.Linear(20, 33), nn.ReLU(), nn.Dropout(0.3)), (norm(33), nn.Dropout(0.2)),
    ]  # fmt: skip
    encoder, heads = nn.Sequential(*(part for some in parts for part in some)), MultiTaskHeads(33, TASKS, "a")
    optimizer = torch.optim.SGD([*encoder.parameters(), *heads.parameters()], lr=0.1)
    training, before = StackTraining(encoder, heads, optimizer), parameters(encoder, heads)
    inputs, targets = batch(N)
    losses = training(inputs, targets, WEIGHTS)
    moved = parameters(encoder, heads)
    with torch.no_grad():
        for parameter, value in zip([*encoder.parameters(), *heads.parameters()], before, strict=True):
            parameter.copy_(value)
    x = inputs
    for some, dropout in zip(parts, training._dropped, strict=True):
        x = nn.Sequential(*some[:-1])(x)
        drop = drop_of(dropout)
        x = x * torch.from_numpy(factors_of(*x.shape, drop.key, drop.threshold, drop.kept))
    out = heads(x, targets, WEIGHTS)
    out.total.backward()
    optimizer.step()
    torch.testing.assert_close(losses, out.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved, parameters(encoder, heads), rtol=1e-4, atol=1e-5)

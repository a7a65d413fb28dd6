"""Random stacks of torch's layers, by one kernel call and by torch, in float32 and in float64."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
import torch
from torch import nn

from mt2st_fast import MultiTaskHeads
from tests.kernels.step.test_activations import MODULES
from tests.training.engines.kernel_calls.test_stack_training import (
    ADAMW,
    TASKS,
    batch,
    eager,
    largest_error,
    optimizer_of,
    stepped,
)

ACTIVATIONS = [*MODULES.values(), nn.ReLU(), nn.Identity()]


def norm_of(draw, width):
    kind = draw.randrange(5)
    if kind == 0:
        return nn.LayerNorm(width, eps=0.1, elementwise_affine=draw.random() < 0.7)
    if kind == 1:
        return nn.RMSNorm(width, eps=0.1, elementwise_affine=draw.random() < 0.7)
    # Not too small an eps: a column of a few rows may be all but constant.
    options = {"affine": draw.random() < 0.7, "track_running_stats": draw.random() < 0.7}
    norm = nn.BatchNorm1d(width, eps=0.1, momentum=draw.choice([None, 0.0, 0.1, 1.0]), **options)
    return norm.eval() if draw.random() < 0.2 else norm


def encoder_of(draw):
    """(encoder, its inputs, its outputs)."""
    n_inputs = width = draw.choice([1, 5, 16, 40])
    parts = [norm_of(draw, width)] if draw.random() < 0.3 else []
    for _ in range(draw.randint(1, 4)):
        outputs = draw.choice([1, 7, 16, 33, 100])
        parts.append(nn.Linear(width, outputs, bias=draw.random() < 0.7))
        width = outputs
        before, after = draw.random() < 0.4, draw.random() < 0.3
        parts += [norm_of(draw, width)] if before else []
        parts.append(deepcopy(draw.choice(ACTIVATIONS)))
        parts += [norm_of(draw, width)] if after else []
    encoder = nn.Sequential(*parts)
    for module in encoder:
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.BatchNorm1d):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, 0.3, 1.5)
    return encoder, n_inputs, width


@pytest.mark.parametrize("seed", range(60))
def test_it_is_as_accurate_as_torch(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    encoder, n_inputs, width = encoder_of(draw)
    heads = MultiTaskHeads(width, TASKS, "a")
    for parameter in encoder.parameters():
        parameter.requires_grad_(draw.random() < 0.9)
    N, clip_norm = draw.choice([2, 9, 50, 200, 300]), draw.choice([None, 0.05, 10.0])
    runs = []
    for dtype, run in ((torch.float64, eager), (torch.float32, eager), (torch.float32, stepped)):
        model = [deepcopy(part).to(dtype) for part in (encoder, heads)]
        # A bias before a BatchNorm has a gradient of rounding alone, which a small eps would make a whole step of.
        held = optimizer_of(lambda p: torch.optim.AdamW(p, **ADAMW | {"lr": 0.005, "eps": 0.1}), *model)
        found = run(*model, held, [batch(N, n_inputs, seed=each) for each in range(3)], clip_norm=clip_norm)
        runs.append((*found, list(model[0].buffers())))
    truth, of_torch, ours = runs
    for wanted, their, own in zip(truth, of_torch, ours, strict=True):
        if len(wanted):
            error, theirs = largest_error(own, wanted), largest_error(their, wanted)
            size = max(1.0, max(float(each.abs().max()) for each in wanted))
            assert error <= 3 * theirs + 1e-6 * size, (encoder, N, error, theirs)

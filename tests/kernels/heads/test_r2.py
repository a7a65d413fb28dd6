"""R² over many batches: as scikit-learn says, whatever the size of the targets, and undefined where they are equal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from mt2st_fast.kernels import HeadSpec, Kind

GENERATOR = torch.Generator().manual_seed(0)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def r2(
    values: torch.Tensor, targets: torch.Tensor, rows_of_batch: int = 512, kind: Kind = Kind.SQUARED
) -> float:
    """The metric of a head, its sums added up over batches as an evaluation does."""
    head = HeadSpec(kind, targets.shape[1])
    sums = sum(
        torch.stack([part.double() for part in kind.metric.sums(*batch, head)])
        for batch in zip(values.split(rows_of_batch), targets.split(rows_of_batch), strict=True)
    )
    return kind.metric.value(*sums.tolist())


@pytest.mark.parametrize("rows", [1, 10, 33, 301, 3000])
@pytest.mark.parametrize("constant", [0.1, 0.7, -19.99, 37.2, 1e6 + 0.5, 1.7e9, 1e-20])
def test_targets_that_are_all_equal_have_none(constant, rows):
    targets = torch.full((rows, 1), constant)
    values = targets + torch.randn(rows, 1, generator=GENERATOR)
    for rows_of_batch in (rows, 7):
        assert math.isnan(r2(values, targets, rows_of_batch))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [Kind.SQUARED, Kind.HUBER], ids=repr)
@pytest.mark.parametrize(
    ("mean", "spread"), [(0, 1), (-3, 1e-6), (1e6, 2), (1.7e9, 300), (1e20, 1e15), (1e-20, 1e-22)]
)
def test_it_is_what_scikit_learn_says(mean, spread, kind, device):
    noise = torch.randn(2, 3000, 1, generator=GENERATOR)
    targets = (mean + spread * noise[0].double()).float()
    values = (targets.double() + spread * noise[1] / 2).float()
    found = r2(values.to(device), targets.to(device), kind=kind)
    assert found == pytest.approx(r2_score(targets.double(), values.double()), rel=1e-9)


def test_sizes_far_apart_and_missing_targets():
    targets = torch.randn(2000, 2, generator=GENERATOR).exp() ** torch.tensor([12.0, 1.0])
    targets[::3, 0] = math.nan
    values = targets.nan_to_num() + 1
    known = ~targets[:, 0].isnan()
    expected = [
        r2_score(targets[known, 0].double(), values[known, 0].double()),
        r2_score(targets[:, 1].double(), values[:, 1].double()),
    ]
    assert r2(values, targets) == pytest.approx(np.mean(expected), rel=1e-9)


def test_the_one_that_differs_counts():
    targets = torch.full((3000, 1), 16777216.0)
    targets[1234] += 2  # the next float32
    assert r2(targets, targets) == 1
    assert r2(targets[[1234] * 3000], targets) == pytest.approx(
        r2_score(targets.double(), targets[[1234] * 3000].double())
    )


def test_infinite_targets_have_none():
    assert math.isnan(r2(torch.zeros(3, 1), torch.tensor([[1.0], [math.inf], [2.0]])))

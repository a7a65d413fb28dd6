"""Macro and micro F1 over many batches: as scikit-learn says, for classes and for sets of labels."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import f1_score

from mt2st_fast import Classification, MultiLabel
from mt2st_fast.model.tasks import metric_of

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def measured(task, logits, targets, rows_of_batch=37):
    """The task's metric, its sums added up over batches as an evaluation does."""
    sums = [
        torch.stack([part.double() for part in metric_of(task).sums(*batch, task.head)])
        for batch in zip(logits.split(rows_of_batch), targets.split(rows_of_batch), strict=True)
    ]
    return metric_of(task).value(*sum(sums).tolist())


def problem(C, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(300, C, generator=generator), generator


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("occurring", [9, 3, 1])
def test_macro_f1_of_classes_is_scikit_learns(occurring, device):
    logits, generator = problem(9)
    targets = torch.randint(occurring, (300,), generator=generator)
    targets[::4] = -100
    known = targets != -100
    expected = f1_score(targets[known], logits.argmax(1)[known], average="macro")
    found = measured(Classification(9, metric="macro_f1"), logits.to(device), targets.to(device))
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_class_that_neither_occurs_nor_is_predicted_does_not_count():
    logits, targets = torch.tensor([[3.0, 0, 0], [0, 3, 0]]), torch.tensor([0, 1])
    assert measured(Classification(3, metric="macro_f1"), logits, targets) == 1.0
    assert math.isnan(measured(Classification(3, metric="macro_f1"), logits, torch.full((2,), -100)))


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_f1_of_sets_of_labels_is_scikit_learns(average):
    logits, generator = problem(5)
    targets = (torch.rand(300, 5, generator=generator) > torch.linspace(0.1, 0.9, 5)).float()
    task = MultiLabel(5, metric=f"{average}_f1")
    assert measured(task, logits, targets) == pytest.approx(f1_score(targets, logits > 0, average=average))
    targets[::3, 1] = math.nan  # other rows than those of the other labels
    known = ~targets[:, 1].isnan()
    one = f1_score(targets[known, 1], logits[known, 1] > 0)
    assert measured(MultiLabel(1, metric=f"{average}_f1"), logits[:, 1:2], targets[:, 1:2]) == pytest.approx(
        one
    )


@pytest.mark.parametrize(("make", "available"), [(Classification, "accuracy"), (MultiLabel, "micro_f1")])
def test_a_metric_of_another_kind_is_refused(make, available):
    with pytest.raises(ValueError, match=f"metric 'r2' is unknown .*available: {available}, macro_f1"):
        make(3, metric="r2")

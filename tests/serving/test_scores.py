"""What `mt2st-fast test` measures: the numbers of scikit-learn, and those of training."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, r2_score
from torch import nn

from mt2st_fast import Classification, MultiTaskHeads, Regression, Trainer
from mt2st_fast.data import Corpus, Splits, TargetColumn, Vocabulary
from mt2st_fast.serving.scores import scores
from mt2st_fast.serving.text_model import Labels


def measured(values: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """R² (of `test`, of an evaluation while training), for a model that says `values` (N, C) of N units of one word."""
    N, C = targets.shape
    vocabulary = Vocabulary([str(i) for i in range(N)], np.ones(N, np.int64))
    column = TargetColumn("values", tuple("abcdef"[:C]), targets)
    corpus = Corpus(np.arange(N, dtype=np.int32), np.arange(N + 1), {"y": column}, "document")
    heads = MultiTaskHeads(C, {"y": Regression(C)}, "y")
    with torch.no_grad():
        heads.linear("y").weight.copy_(torch.eye(C))
        heads.linear("y").bias.zero_()
    model = SimpleNamespace(
        heads=heads,
        labels={"y": Labels("values", column.class_names)},
        outputs=lambda units, tasks: {"y": torch.from_numpy(values[[int(word) for (word,) in units]])},
    )
    splits = Splits(corpus, corpus, corpus, vocabulary, "made up", "y")
    (score,) = scores(model, splits, ("test",), ("y",))
    batches = [
        (torch.from_numpy(values[a : a + 100]), {"y": torch.from_numpy(targets[a : a + 100])})
        for a in range(0, N, 100)
    ]
    return score.value, Trainer(nn.Identity(), heads, device="cpu").evaluate(batches)["y"]


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (1e6, 2), (98.6, 0.01)])
def test_r2_is_that_of_training_and_of_scikit_learn(mean, spread, columns):
    rng = np.random.default_rng(0)
    targets = (mean + spread * rng.normal(size=(3000, columns)) * [1, 1000][:columns]).astype(np.float32)
    values = (targets + spread * rng.normal(size=(3000, columns))).astype(np.float32)
    expected = r2_score(targets.astype(np.float64), values.astype(np.float64))
    assert measured(values, targets) == pytest.approx((expected, expected), rel=1e-9)


def test_targets_that_are_all_equal_have_no_r2():
    targets = np.full((3000, 1), 0.1, np.float32)
    values = (targets + np.random.default_rng(0).normal(size=targets.shape)).astype(np.float32)
    assert all(map(math.isnan, measured(values, targets)))
    assert all(map(math.isnan, measured(values, np.full_like(targets, np.nan))))


def test_macro_f1_counts_a_class_that_the_model_does_not_know_as_0():
    names, gold, found = ("a", "b", "new"), np.array([0, 1, 1, 2, 0]), np.array([0, 1, 0, 0, 0])
    column = TargetColumn("classes", names, gold)
    corpus = Corpus(np.zeros(5, np.int32), np.arange(6), {"y": column}, "document")
    heads = MultiTaskHeads(2, {"y": Classification(2, metric="macro_f1")}, "y")
    model = SimpleNamespace(
        heads=heads,
        labels={"y": Labels("classes", names[:2])},
        outputs=lambda units, tasks: {"y": nn.functional.one_hot(torch.from_numpy(found), 2).float()},
    )
    splits = Splits(corpus, corpus, corpus, Vocabulary(["w"], np.ones(1, np.int64)), "made up", "y")
    (score,) = scores(model, splits, ("test",), ("y",))
    assert (score.metric, score.unseen) == ("macro_f1", 1)
    assert score.value == pytest.approx(f1_score(gold, found, average="macro"))

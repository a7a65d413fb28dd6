"""Evaluation: the metrics by hand, and nothing of the model moved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mt2st_fast import Trainer
from tests.training.weights import weights_of


def test_evaluation_leaves_the_mode_and_the_weights_alone(toy):
    trainer = Trainer(toy.encoder(dropout=0.5), toy.heads())
    for training in (True, False):
        trainer.encoder.train(training)
        before = weights_of(trainer)
        first = trainer.evaluate(toy.batches(3))
        assert trainer.evaluate(toy.batches(3)) == first  # no dropout
        assert trainer.encoder.training is training
        torch.testing.assert_close(weights_of(trainer), before, rtol=0, atol=0)


def test_parts_that_a_user_has_set_to_evaluate_stay_so(toy):
    trainer = Trainer(nn.Sequential(toy.encoder(), nn.Dropout(0.5), nn.Dropout(0.1)), toy.heads())
    trainer.encoder[1].eval()
    trainer.fit(toy.batches(3), val=toy.batches(2), epochs=2)
    assert [part.training for part in trainer.encoder] == [True, False, True]
    trainer.encoder.eval()
    trainer.fit(toy.batches(3), epochs=1)
    assert all(part.training for part in trainer.encoder)


def test_an_iterator_of_held_out_batches_is_refused(toy):
    trainer = Trainer(toy.encoder(), toy.heads())
    with pytest.raises(TypeError, match="val is an iterator, which is exhausted after one evaluation"):
        trainer.fit(toy.batches(3), val=iter(toy.batches(2)), epochs=1)


def test_metrics_by_hand(toy):
    heads = toy.heads(features=8)
    with torch.no_grad():
        for name in toy.tasks:
            linear = heads.linear(name)
            linear.weight.copy_(torch.eye(8)[: len(linear.weight)])
            linear.bias.zero_()
    trainer = Trainer(nn.Identity(), heads)
    features = torch.tensor(
        [[3.0, 1, 0, 0, 0, 0, 0, 0], [-1, 2, 1, 0, 0, 0, 0, 0], [1, 0, -5, 9, 0, 0, 0, 0]]
    )
    nan = math.nan
    targets = {
        "tag": torch.tensor([0, 2, -100]),  # right, wrong, ignored
        "feats.Number": torch.tensor([[1.0, 0, 0], [1, 1, nan], [0, 0, 0]]),  # tp 2, fp 2, fn 1
        "score": torch.tensor([2.0, -2.0, nan]),  # errors 1 and 1; variation 8
    }
    metrics = trainer.evaluate([(features, targets)])
    assert metrics == pytest.approx({"tag": 0.5, "feats.Number": 4 / 7, "score": 1 - 2 / 8})
    nothing = {"tag": torch.tensor([-100] * 3)}
    assert all(math.isnan(value) for value in trainer.evaluate([(features, nothing)]).values())


def test_tasks_that_cannot_be_measured_are_named(toy):
    trainer = Trainer(toy.encoder(), toy.heads(), device="cpu")
    with pytest.raises(ValueError, match="xpos"):
        trainer.evaluate(toy.batches(1), ["xpos"])
    with pytest.raises(
        TypeError, match=r"tasks must be a list of names, not the string 'tag'; pass \['tag'\]"
    ):
        trainer.evaluate(toy.batches(1), "tag")

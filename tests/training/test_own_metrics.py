"""Metrics of a user's own: functions by hand, and the objects of torchmetrics where that is installed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, InputError, MultiTaskHeads, OpenTask, Trainer
from tests.training.small_runs import batches, trainer_of

NAN = math.nan


def identity(toy, **options):
    """A trainer whose predictions are its inputs."""
    heads = toy.heads(features=8)
    with torch.no_grad():
        for name in toy.tasks:
            linear = heads.linear(name)
            linear.weight.copy_(torch.eye(8)[: len(linear.weight)])
            linear.bias.zero_()
    return Trainer(nn.Identity(), heads, device="cpu", **options)


FEATURES = torch.tensor([[3.0, 1, 0, 0, 0, 0, 0, 0], [-1, 2, 1, 0, 0, 0, 0, 0], [1, 0, -5, 9, 0, 0, 0, 0]])
TARGETS = {
    "tag": torch.tensor([0, 2, -100]),
    "feats.Number": torch.tensor([[1.0, 0, 0], [1, 1, NAN], [0, 0, 0]]),
    "score": torch.tensor([2.0, -2.0, NAN]),
}


def test_a_function_is_given_the_rows_that_have_a_label_all_at_once(toy):
    told = {}

    def metric(name):
        def measure(predictions, targets):
            assert name not in told
            told[name] = predictions, targets
            return len(targets)

        return measure

    trainer = identity(toy, metrics={name: metric(name) for name in toy.tasks})
    parts = (slice(0, 1), slice(1, 3))
    found = trainer.evaluate([(FEATURES[p], {n: t[p] for n, t in TARGETS.items()}) for p in parts])
    assert found == {"tag": 2, "feats.Number": 2, "score": 2}
    torch.testing.assert_close(told["tag"][0], FEATURES[:2, :4].softmax(1))
    assert told["tag"][1].tolist() == [0, 2]
    torch.testing.assert_close(told["feats.Number"][0], FEATURES[[0, 2], :3].sigmoid())
    assert told["feats.Number"][1].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert told["feats.Number"][1].dtype == told["tag"][1].dtype == torch.int64
    torch.testing.assert_close(told["score"], (FEATURES[:2, 0], TARGETS["score"][:2]))


def test_a_metric_of_ones_own_stands_in_the_history_and_says_which_is_best():
    values = iter([0.25, 0.75, 0.5])
    trainer = trainer_of(metrics={"a": lambda predictions, targets: next(values)})
    history = trainer.fit(batches(), val=batches()[:2], epochs=3)
    assert [evaluation.metrics["a"] for evaluation in history.evaluations] == [0.25, 0.75, 0.5]
    assert history.best.step == 16
    nothing = [(x, {"a": torch.full_like(t["a"], -100)}) for x, t in batches()[:1]]
    assert math.isnan(trainer.evaluate(nothing)["a"])
    assert math.isnan(trainer.evaluate([])["a"])


def test_a_resumed_run_measures_by_what_it_was_measured_by(tmp_path):
    def right(predictions, targets):
        return (predictions.argmax(1) == targets).float().mean()

    def fit(metrics, **options):
        return trainer_of(metrics=metrics).fit(batches(), val=batches(), checkpoint=tmp_path / "c", **options)

    fit({"a": right}, epochs=1)
    with pytest.raises(
        InputError, match="made with metrics right of a, this run has the tasks' own; use metrics"
    ):
        fit({}, epochs=2, resume=True)
    assert len(fit({"a": right}, epochs=2, resume=True).evaluations) == 2


def test_torchmetrics_are_told_batch_by_batch_and_begin_anew_every_time(toy):
    classification = pytest.importorskip("torchmetrics.classification")
    regression = pytest.importorskip("torchmetrics.regression")
    f1 = classification.MulticlassF1Score(4, average="macro")
    own = {
        "tag": f1,
        "feats.Number": classification.MultilabelAUROC(3),
        "score": regression.R2Score(),
    }
    trainer = identity(toy, metrics=own)
    inputs = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    noisy = inputs + torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    targets = {
        "tag": noisy[:, :4].argmax(1),
        "feats.Number": (noisy[:, :3] > 0).float(),
        "score": noisy[:, 0],
    }
    data = [
        (inputs[i : i + 16], {name: target[i : i + 16] for name, target in targets.items()})
        for i in (0, 16, 32)
    ]
    first, again = trainer.evaluate(data), trainer.evaluate(data)
    assert first == again
    fresh = classification.MulticlassF1Score(4, average="macro")
    assert first["tag"] == pytest.approx(float(fresh(inputs[:, :4], targets["tag"])))
    auroc = classification.MultilabelAUROC(3)(inputs[:, :3].sigmoid(), targets["feats.Number"].long())
    assert first["feats.Number"] == pytest.approx(float(auroc))
    assert first["score"] == pytest.approx(trainer.evaluate(data, ["score"])["score"])
    assert first["score"] == pytest.approx(identity(toy).evaluate(data)["score"], rel=1e-5)
    assert not f1.update_called  # what was given is left as it was
    half = trainer.evaluate(data[:1])
    assert half["tag"] == pytest.approx(float(fresh(inputs[:16, :4], targets["tag"][:16])))


def test_torchmetrics_that_cannot_serve_are_named(toy):
    classification = pytest.importorskip("torchmetrics.classification")
    regression = pytest.importorskip("torchmetrics.regression")
    with pytest.raises(InputError, match="the metric of score, MeanSquaredError, is better when lower"):
        identity(toy, metrics={"score": regression.MeanSquaredError()})
    trainer = identity(toy, metrics={"tag": classification.MulticlassF1Score(4, average=None)})
    with pytest.raises(
        InputError, match=r"the metric of tag, MulticlassF1Score, must give one number, not \(4,\)"
    ):
        trainer.evaluate([(FEATURES, TARGETS)])
    trainer = identity(toy, metrics={"tag": classification.MulticlassF1Score(9)})
    with pytest.raises(InputError, match="the metric of tag, MulticlassF1Score, failed: ValueError: "):
        trainer.evaluate([(FEATURES, TARGETS)])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"c": len}, "metrics has an entry for c, which is not a task; available: a, b"),
        (
            {"a": "f1"},
            "the metric of a must be an object of torchmetrics or a function .*, not 'f1'; pass lambda",
        ),
        ({"a": dict}, r"not <class 'dict'>; pass dict\(\)"),
    ],
)
def test_what_is_no_metric_is_refused(metrics, message):
    with pytest.raises(InputError, match=message):
        trainer_of(metrics=metrics)


def test_what_a_function_does_wrong_is_said_in_one_line():
    def broken(predictions, targets):
        raise KeyError("no\nway")

    with pytest.raises(InputError, match=r"the metric of a, broken, failed: KeyError: 'no\\nway'"):
        trainer_of(metrics={"a": broken}).evaluate(batches())
    with pytest.raises(InputError, match="the metric of a, <lambda>, must give one number, not a dict"):
        trainer_of(metrics={"a": lambda predictions, targets: {}}).evaluate(batches())


def test_a_task_with_a_loss_of_its_own_has_its_own_metric():
    class Nothing(OpenTask):
        def loss(self, features, target, mask=None):
            return features.sum() * 0

    heads = MultiTaskHeads(4, {"a": Classification(3), "own": Nothing()}, "a")
    with pytest.raises(InputError, match="metrics has an entry for own, which has no predictions to measure"):
        Trainer(nn.Linear(3, 4), heads, metrics={"own": len}, device="cpu")

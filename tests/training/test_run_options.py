"""The options of a run: each does what it says, and a bad one is named."""

from __future__ import annotations

import math

import pytest
import torch

from mt2st_fast import Callback, Diminish, InputError, Trainer
from tests.training.weights import weights_of


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_clip_norm_bounds_the_step(toy, precision):
    moved = {}
    for clip_norm in (None, 1e-2):
        torch.manual_seed(3)
        trainer = Trainer(
            toy.encoder(), toy.heads(), optimizer=sgd(1.0), clip_norm=clip_norm, precision=precision
        )
        before = weights_of(trainer)
        trainer.fit(toy.batches(1), epochs=1)
        steps = [(value - before[key]).norm() for key, value in weights_of(trainer).items()]
        moved[clip_norm] = torch.stack(steps).norm().item()
    assert moved[None] > 0.1
    assert moved[1e-2] == pytest.approx(1e-2, rel=1e-3)


def test_the_learning_rate_falls_to_zero_where_asked(toy):
    rates = {}
    for lr_decay in ("none", "linear"):
        trainer = Trainer(toy.encoder(), toy.heads(), lr=0.5, lr_decay=lr_decay, log_every=1)
        rates[lr_decay] = [record.learning_rate for record in trainer.fit(toy.batches(2), epochs=2).steps]
    assert rates["none"] == [0.5] * 4
    assert rates["linear"] == pytest.approx([0.5, 0.375, 0.25, 0.125])


def test_weight_decay_belongs_to_the_default_optimizer(toy):
    norms = []
    for weight_decay in (0.0, 1.0):
        torch.manual_seed(3)
        trainer = Trainer(toy.encoder(), toy.heads(), lr=1e-2, weight_decay=weight_decay)
        trainer.fit(toy.batches(4), epochs=4)
        norms.append(sum(p.norm().item() for p in trainer.encoder.parameters()))
    assert norms[1] < 0.95 * norms[0]


def test_weights_are_those_of_the_schedule(toy):
    schedule = Diminish(eta=1.0, floor=0.4)
    history = Trainer(toy.encoder(), toy.heads(), schedule=schedule, log_every=1).fit(
        toy.batches(4), epochs=2
    )
    for record in history.steps:
        t = (record.step - 1) / 4
        expected = {"tag": 1.0} | (
            {name: math.exp(-t) for name in ("feats.Number", "score")} if t < 0.9 else {}
        )
        assert record.weights == pytest.approx(expected)
        assert record.total == pytest.approx(sum(expected[n] * record.losses[n] for n in expected))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be positive"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, not 0"),
        ({"log_every": 0}, "log_every must be a whole number of at least 1, not 0"),
        ({"backward": False}, "backward must be 'auto', 'autograd' or 'fused', not False"),
        ({"precision": "int8"}, "precision int8 is unknown; available: float32, bfloat16, float16"),
        ({"lr_decay": "cosine"}, "lr_decay cosine is unknown"),
    ],
)
def test_a_bad_option_is_named(toy, options, message):
    with pytest.raises(ValueError, match=message):
        Trainer(toy.encoder(), toy.heads(), **options)


def adamw(parameters, **options):
    return torch.optim.AdamW(parameters, **options)


def test_weight_decay_is_refused_beside_another_optimizer(toy):
    with pytest.raises(
        InputError, match=r"weight_decay=0\.1 is of the default optimizer, but optimizer is given"
    ):
        Trainer(toy.encoder(), toy.heads(), optimizer=adamw, weight_decay=0.1)


def test_a_rate_that_another_optimizer_does_not_have_is_told(toy, caplog):
    def told(optimizer, **given):
        caplog.clear()
        Trainer(toy.encoder(), toy.heads(), optimizer=optimizer, **given).fit(toy.batches(1), epochs=1)
        return [r.getMessage() for r in caplog.records if "has no effect" in r.getMessage()]

    assert "lr=0.5 is of the default optimizer" in told(adamw, lr=0.5)[0]
    assert "was made with 0.001; set the rate there" in told(adamw, lr=0.5)[0]
    # No contradiction.
    assert not told(lambda parameters: adamw(parameters, lr=0.5), lr=0.5)
    assert not told(lambda parameters: adamw(parameters, lr=0.5))


def test_a_function_that_makes_no_optimizer_is_named(toy):
    trainer = Trainer(toy.encoder(), toy.heads(), optimizer=lambda parameters: None)
    with pytest.raises(
        InputError, match=r"optimizer must return a torch.optim.Optimizer, not an instance of NoneType"
    ):
        trainer.fit(toy.batches(1), epochs=1)


def test_an_option_that_is_set_within_a_run_says_that_it_waits(toy, caplog):
    class Sets(Callback):
        def on_step(self, trainer):
            if trainer.step == 2:
                trainer.log_every, trainer.clip_norm = 1, 0.5

    trainer = Trainer(toy.encoder(), toy.heads(), callbacks=[Sets()], log_every=99)
    assert len(trainer.fit(toy.batches(6), epochs=1).steps) == 5  # log_every counts at once
    assert [r.getMessage() for r in caplog.records if "within a run" in r.getMessage()] == [
        "clip_norm is set within a run, which keeps the one that it began with: the new one counts from the next on"
    ]
    caplog.clear()
    trainer.accumulate = 2  # between two runs
    assert not caplog.records


def test_held_out_data_without_a_batch_is_named(toy):
    with pytest.raises(ValueError, match="val has no batches; leave it out"):
        Trainer(toy.encoder(), toy.heads()).fit(toy.batches(1), epochs=1, val=[])


@pytest.mark.parametrize(
    ("train", "options", "error", "message"),
    [
        (lambda toy: toy.batches(1), {"epochs": 0}, ValueError, "epochs must be positive"),
        (
            lambda toy: toy.batches(1),
            {"epochs": 1e300},
            ValueError,
            r"epochs=1e\+300 would be 1.0e\+300 steps",
        ),
        (lambda toy: toy.batches(1), {"steps": 2**54}, ValueError, "steps must be at most"),
        (lambda toy: toy.batches(1), {"resume": True}, ValueError, "resume needs the checkpoint"),
        (lambda toy: [], {}, ValueError, "train has no batches"),
        (
            lambda toy: iter(toy.batches(1)),
            {},
            TypeError,
            "train must be an iterable of batches with a length",
        ),
        (lambda toy: {"xpos": toy.batches(1)}, {}, ValueError, "loader for xpos, which is not a task"),
        (lambda toy: {"score": toy.batches(1)}, {}, ValueError, "no loader for the main task tag"),
        (lambda toy: {"tag": toy.batches(1), "score": []}, {}, ValueError, r"train\[score\] has no batches"),
    ],
)
def test_train_that_cannot_serve_is_named(toy, train, options, error, message):
    with pytest.raises(error, match=message):
        Trainer(toy.encoder(), toy.heads()).fit(train(toy), **options)


def test_an_option_that_is_set_anew_is_checked_and_counts_from_the_next_run_on(toy):
    trainer = Trainer(toy.encoder(), toy.heads())
    trainer.lr, trainer.accumulate = 0.5, 2
    assert (trainer.options.lr, trainer.options.accumulate) == (0.5, 2)
    assert len(trainer.fit(toy.batches(4), steps=2).steps) == 1
    assert {group["lr"] for group in trainer.run.optimizer.param_groups} == {0.5}
    for name, value, message in (
        ("accumulate", 0, "accumulate must be a whole number of at least 1, not 0"),
        ("precision", "int8", "precision int8 is unknown"),
        ("schedule", "switch", "schedule"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            setattr(trainer, name, value)
    assert trainer.accumulate == 2

"""Held-out targets that a trained window encoder's own kernel counts: those that the logits hit, of every task."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score

from mt2st_fast import Callback, Classification, InputError, MultiTask, Switch, Trainer
from mt2st_fast.kernels.step.on_numba import text_step
from tests.training.engines.kernel_calls.test_text_training import BATCHES, KINDS, TASKS, batch, model

HELD_OUT = [batch(n, seed=40 + n) for n in (1, 333, 70, 1200)]  # fewer rows than a step has, and more


def trained(tasks=TASKS, *, batches=BATCHES, schedule=None, **options):
    encoder, heads = model(tasks, dropout=0.3)
    training = Trainer(encoder, heads, schedule=schedule or MultiTask(), lr=0.01, device="cpu", **options)
    training.fit(batches, epochs=2)
    assert training.history.phases[-1].engine == "one kernel call"
    return training


def hits_by_logits(training, types, targets):
    training.encoder.eval()
    with torch.no_grad():
        features = training.encoder(types)
        found = {}
        for name, target in targets.items():
            right = (training.heads.logits(features, name).argmax(1) == target) & (target != -100)
            found[name] = [right.sum().item(), (target != -100).sum().item(), 0]
    training.encoder.train()
    return found


@pytest.mark.parametrize("number", range(len(HELD_OUT)))
def test_they_are_those_of_the_logits(number):
    training = trained()
    types, targets = HELD_OUT[number]
    found = training.run.engine.count_correct(types, targets)
    assert {name: pair.tolist() for name, pair in found.items()} == hits_by_logits(training, types, targets)
    one = training.run.engine.count_correct(types, {"wide": targets["wide"]})
    assert torch.equal(one["wide"], found["wide"])
    assert list(one) == ["wide"]


def test_many_rows_are_looked_at_in_parts(monkeypatch):
    training = trained()
    types, targets = HELD_OUT[3]
    whole = training.run.engine.count_correct(types, targets)
    features = training.run.engine.features(types)
    parts = []
    call = text_step._call
    monkeypatch.setattr(text_step, "MOST_FLOATS", 0)  # there is no memory for more than a step has
    monkeypatch.setattr(
        text_step, "_call", lambda model, *args: (parts.append(args[1].n_rows), call(model, *args))
    )
    again = trained().run.engine
    parts.clear()
    found = again.count_correct(types, targets)
    assert parts == [512, 512, 176]
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    torch.testing.assert_close(again.features(types), features, rtol=1e-5, atol=1e-6)


def test_windows_without_a_word_are_the_bias_alone():
    training = trained()
    types = torch.full((60, HELD_OUT[0][0].shape[1]), -1, dtype=torch.int32)
    features = training.run.engine.features(types)
    torch.testing.assert_close(features, training.encoder.hidden.bias.relu().expand(60, -1))


def test_an_evaluation_takes_them_and_asks_no_encoder(monkeypatch):
    training = trained()
    monkeypatch.setattr(type(training.run.engine), "features", lambda *_: pytest.fail("logits were made"))
    found = training.evaluate(HELD_OUT)
    pairs = [hits_by_logits(training, *each) for each in HELD_OUT]
    for name, value in found.items():
        right, n = (sum(pair[name][i] for pair in pairs) for i in range(2))
        assert value == right / n


def test_a_task_without_a_target_in_some_rows_counts_none_of_them():
    training = trained()
    types, targets = HELD_OUT[3]
    alone = {name: torch.full_like(target, -100) for name, target in targets.items()}
    alone["main"][700:] = targets["main"][700:]
    found = training.run.engine.count_correct(types, alone)
    assert {name: pair.tolist() for name, pair in found.items()} == hits_by_logits(training, types, alone)
    assert found["binary"].tolist() == [0, 0, 0]


def test_what_it_cannot_count_is_counted_from_logits():
    types, targets = HELD_OUT[1]
    training = trained()
    outside = targets | {"binary": torch.full_like(targets["binary"], 5)}  # a class that there is not
    assert training.run.engine.count_correct(types, outside) is None
    with pytest.raises(InputError, match=r"held-out targets of binary: each of \d+ lies outside \[0, 2\)"):
        training.evaluate([(types, outside)])
    kinds = trained(KINDS, batches=[batch(70, KINDS, seed) for seed in range(3)])
    assert kinds.run.engine.count_correct(*batch(70, KINDS, 9)) is None
    switched = trained(schedule=Switch(at=0.5))
    assert set(switched.run.engine.count_correct(types, {"main": targets["main"]})) == {"main"}
    assert switched.run.engine.count_correct(types, targets) is None  # of retired heads it holds nothing
    assert trained().evaluate(HELD_OUT, ["main"]).keys() == {"main"}


def test_own_metrics_see_logits():
    seen = []

    def metric(logits, target):
        seen.append(logits.shape)
        return 0.25

    training = trained(metrics={"main": metric})
    assert training.evaluate([HELD_OUT[1]])["main"] == 0.25
    assert seen


def test_an_evaluation_within_a_run_changes_no_bit_of_it():
    def weights(**options):
        encoder, heads = model(dropout=0.3)
        training = Trainer(encoder, heads, schedule=MultiTask(), lr=0.01, device="cpu", **options)
        training.fit(BATCHES, epochs=3)
        return [p.detach().clone() for p in (*encoder.parameters(), *heads.parameters())]

    class Evaluates(Callback):
        def on_step(self, trainer):
            trainer.evaluate(HELD_OUT)

    for with_it, without in zip(weights(callbacks=[Evaluates()]), weights(), strict=True):
        assert torch.equal(with_it, without)


def test_a_task_with_another_metric_is_measured_by_it():
    task = Classification(TASKS["wide"].classes, metric="macro_f1")
    training = trained({**TASKS, "wide": task})
    types, targets = HELD_OUT[3]
    assert training.run.engine.count_correct(types, targets) is None
    training.encoder.eval()
    with torch.no_grad():
        predicted = training.heads.logits(training.encoder(types), "wide").argmax(1)
    known = targets["wide"] != -100
    expected = f1_score(targets["wide"][known], predicted[known], average="macro")
    parts = [(types[a : a + 500], {"wide": targets["wide"][a : a + 500]}) for a in (0, 500, 1000)]
    assert training.evaluate(parts)["wide"] == pytest.approx(expected, rel=1e-12)
    wrong = targets["wide"].clone()
    wrong[7] = task.classes
    with pytest.raises(InputError, match="held-out targets of wide: one lies outside"):
        training.evaluate([(types, {"wide": wrong})])

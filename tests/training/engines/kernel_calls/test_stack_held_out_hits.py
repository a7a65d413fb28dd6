"""Held-out targets that the kernel of a stack of layers counts: those that the logits hit, of every task."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, InputError, MultiTask, MultiTaskHeads, Regression, Switch, Trainer
from mt2st_fast.kernels.step.on_numba import stack_step

TASKS = {"main": Classification(7), "wide": Classification(40), "binary": Classification(2)}


def features(n):
    return torch.randn(n, 12, dtype=torch.float32)


def mlp():
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 16), nn.LayerNorm(16))


def normed():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU())


def indices(n):
    return torch.randint(1, 60, (n, 5))


def bags():
    return nn.Sequential(nn.EmbeddingBag(60, 24, padding_idx=0), nn.Linear(24, 16), nn.Tanh())


def batch(inputs, seed, rows=None):
    torch.manual_seed(seed)
    rows = inputs.shape[:-1] if rows is None else rows
    targets = {name: torch.randint(task.classes, rows) for name, task in TASKS.items()}
    targets["wide"].flatten()[::3] = -100
    return inputs, targets


def trained(make, inputs_of, **options):
    torch.manual_seed(0)
    heads = MultiTaskHeads(16, TASKS, "main")
    options = {"schedule": MultiTask(), **options}
    training = Trainer(make(), heads, lr=0.01, device="cpu", **options)
    training.fit([batch(inputs_of(48), seed) for seed in range(4)], epochs=2)
    assert training.history.phases[-1].engine == "one kernel call"
    return training


@torch.no_grad()
def hits_by_logits(training, inputs, targets):
    training.encoder.eval()
    made, found = training.encoder(inputs), {}
    training.encoder.train()
    for name, target in targets.items():
        right = training.heads.logits(made, name).argmax(-1) == target
        found[name] = [right.sum().item(), (target != -100).sum().item(), 0]
    return found


def counted(training, inputs, targets):
    found = training.run.engine.count_correct(inputs, targets)
    return None if found is None else {name: sums.tolist() for name, sums in found.items()}


@pytest.mark.parametrize(("make", "inputs_of"), [(mlp, features), (bags, indices)])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_they_are_those_of_the_logits(make, inputs_of, clip_norm):
    training = trained(make, inputs_of, clip_norm=clip_norm)
    for n in (1, 33, 1100):  # fewer rows than a step has, and several parts
        held_out = batch(inputs_of(n), n)
        assert counted(training, *held_out) == hits_by_logits(training, *held_out)


def test_rows_are_counted_in_parts(monkeypatch):
    training, parts, step = trained(mlp, features), [], stack_step.step
    monkeypatch.setattr(
        stack_step, "step", lambda model, updates, inputs, *rest: (
            parts.append(len(inputs)), step(model, updates, inputs, *rest))[1],
    )  # fmt: skip
    counted(training, *batch(features(1100), 3))
    assert parts == [512, 512, 76]


def test_sequences_are_rows_one_after_another():
    training = trained(mlp, features)
    held_out = batch(features(66).view(11, 6, 12), 5)
    assert counted(training, *held_out) == hits_by_logits(training, *held_out)


def test_an_evaluation_takes_them_and_asks_no_encoder(monkeypatch):
    training, held_out = trained(mlp, features), [batch(features(n), n) for n in (40, 70)]
    pairs = [hits_by_logits(training, *each) for each in held_out]
    monkeypatch.setattr(type(training.run.engine), "features", lambda *_: pytest.fail("logits were made"))
    for name, value in training.evaluate(held_out).items():
        right, n = (sum(pair[name][i] for pair in pairs) for i in range(2))
        assert value == right / n


def test_what_it_cannot_count_is_counted_from_logits():
    inputs, targets = batch(features(50), 8)
    of_batch = trained(normed, features)
    assert counted(of_batch, inputs, targets) is None  # its training kernel takes the statistics of a batch
    hits = hits_by_logits(of_batch, inputs, targets)
    assert of_batch.evaluate([(inputs, targets)])["main"] == hits["main"][0] / 50
    training = trained(mlp, features)
    outside = targets | {"binary": torch.full_like(targets["binary"], 5)}
    assert counted(training, inputs, outside) is None
    with pytest.raises(InputError, match=r"held-out targets of binary: each of 50 lies outside \[0, 2\)"):
        training.evaluate([(inputs, outside)])
    assert counted(training, inputs.double(), targets) is None
    switched = trained(mlp, features, schedule=Switch(at=0.5))
    assert counted(switched, inputs, targets) is None  # of retired heads it holds nothing
    assert set(counted(switched, inputs, {"main": targets["main"]})) == {"main"}


def test_other_metrics_are_made_from_logits():
    tasks = {"main": Classification(3), "size": Regression()}
    training = Trainer(mlp(), MultiTaskHeads(16, tasks, "main"), schedule=MultiTask(), device="cpu")
    rows = features(30), {"main": torch.randint(3, (30,)), "size": torch.randn(30, dtype=torch.float32)}
    training.fit([rows], epochs=1)
    assert training.run.engine.count_correct(*rows) is None
    assert training.evaluate([rows]).keys() == {"main", "size"}


def test_an_evaluation_within_a_run_changes_no_bit_of_it():
    weights = []
    for every in (1, 10**6):
        torch.manual_seed(0)
        training = Trainer(mlp(), MultiTaskHeads(16, TASKS, "main"), schedule=MultiTask(), device="cpu")
        batches = [batch(features(n), n) for n in (48, 30, 64)]
        training.fit(batches, val=[batch(features(700), 9)], epochs=3, evaluate_every=every)
        weights.append([p.detach().clone() for p in training.encoder.parameters()])
    assert all(map(torch.equal, *weights))

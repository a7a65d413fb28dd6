"""The training loop: it learns, it names what went wrong, and it calls back in order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mt2st_fast import (
    Callback,
    Diminish,
    InputError,
    MultiTask,
    MultiTaskHeads,
    NonFiniteLossError,
    SingleTask,
    Switch,
    Trainer,
)


class Rows:
    """A dataset of the toy problem's rows, for a plain DataLoader."""

    def __init__(self, batches):
        self.inputs = torch.cat([inputs for inputs, _ in batches])
        self.targets = {name: torch.cat([t[name] for _, t in batches]) for name in batches[0][1]}

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, row):
        return self.inputs[row], {name: target[row] for name, target in self.targets.items()}


# --- it learns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [SingleTask(), MultiTask(0.3), Switch(), Diminish(eta=1.0)], ids=repr)
def test_it_learns(toy, schedule):
    train, val = toy.batches(20), toy.batches(5, seed=7)
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=schedule, lr=1e-2)
    before = trainer.evaluate(val)
    history = trainer.fit(train, val=val, epochs=8)
    assert before["tag"] < 0.5
    assert history.best.metrics["tag"] > 0.85
    assert history.steps[-1].losses["tag"] < 0.5 * history.steps[0].losses["tag"]
    assert trainer.evaluate(val, ["tag"])["tag"] == history.evaluations[-1].metrics["tag"]


def test_auxiliary_tasks_are_learnt_too(toy):
    val = toy.batches(5, seed=7)
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=MultiTask(), lr=1e-2)
    metrics = trainer.fit(toy.batches(20), val=val, epochs=8).evaluations[-1].metrics
    assert metrics["feats.Number"] > 0.85
    assert metrics["score"] > 0.7


def test_a_data_loader_serves(toy):
    loader = DataLoader(Rows(toy.batches(10)), batch_size=32, shuffle=True)
    history = Trainer(toy.encoder(), toy.heads(), lr=1e-2).fit(loader, epochs=4)
    assert history.steps[-1].step == 40
    assert history.steps[-1].losses["tag"] < 0.7 * history.steps[0].losses["tag"]


def test_a_loader_a_task_each_with_its_own_inputs(toy):
    batches = toy.batches(6)
    train = {
        "tag": [(x, {"tag": y["tag"]}) for x, y in batches],
        "score": [(x[:7], {"score": y["score"][:7]}) for x, y in batches[:2]],
    }
    trainer = Trainer(toy.encoder(), toy.heads(only=("tag", "score")), lr=1e-2)
    history = trainer.fit(train, epochs=10)
    assert history.steps[-1].step == 60  # the main task's loader says what an epoch is
    assert history.steps[-1].losses["tag"] < 0.7 * history.steps[0].losses["tag"]


def test_an_encoder_of_sequences_serves(toy):
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(toy.features, 8, batch_first=True)

        def forward(self, inputs):
            return self.gru(inputs)[0]  # (N, T, D)

    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(12, 9, toy.features, generator=generator)
    targets = {
        "tag": inputs[..., :4].argmax(-1),
        "feats.Number": (inputs[..., :3] > 0).float(),
        "score": inputs[..., 5],
    }
    trainer = Trainer(Sequences(), toy.heads(), schedule=MultiTask(), lr=1e-2)
    history = trainer.fit([(inputs, targets)], val=[(inputs, targets)], epochs=60)
    assert history.steps[-1].total < 0.6 * history.steps[0].total
    assert history.best.metrics["tag"] > 0.6


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_runs_in_autocast(toy, precision):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = toy.encoder()

        def forward(self, inputs):
            features = self.inner(inputs)
            seen.append(features.dtype)
            return features

    trainer = Trainer(Spy(), toy.heads(), lr=1e-2, precision=precision)
    history = trainer.fit(toy.batches(10), val=toy.batches(2, seed=7), epochs=4)
    assert set(seen) == {getattr(torch, precision)}
    assert history.steps[-1].losses["tag"] < 0.7 * history.steps[0].losses["tag"]
    assert all(p.dtype == torch.float32 for p in trainer.heads.parameters())


def test_an_encoder_that_holds_the_heads_trains_them_once(toy):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = toy.encoder()
            self.heads = nn.ModuleDict({"tag": nn.Linear(8, 4), "score": nn.Linear(8, 1)})

        def forward(self, inputs):
            return self.body(inputs)

    model = Model()
    heads = MultiTaskHeads.from_modules(model.heads, {n: toy.tasks[n] for n in model.heads}, "tag")
    trainer = Trainer(model, heads, schedule=Switch(at=0.5), lr=1e-2)
    trainer.fit(toy.batches(4), epochs=2)
    assert not model.heads["score"].weight.requires_grad


# --- what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad_step", [0, 3, 4, 6])
def test_a_loss_that_is_not_finite_names_task_and_step(toy, bad_step):
    batches = toy.batches(8)
    batches[bad_step][1]["score"][5] = math.inf
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=MultiTask(), log_every=5)
    with pytest.raises(
        NonFiniteLossError,
        match=rf"the loss of score is (inf|nan) at step {bad_step}: in epoch 0\.\d+ at a rate of 0\.002;",
    ):
        trainer.fit(batches, epochs=1)


def test_a_batch_without_an_active_task_is_refused(toy):
    batches = toy.batches(4)
    batches[2] = (batches[2][0], {"score": batches[2][1]["score"]})
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=SingleTask())
    with pytest.raises(
        InputError, match=r"a batch at step 2 has no target of any active task \(tag\); it has score"
    ):
        trainer.fit(batches, epochs=1)


# --- callbacks and history -----------------------------------------------------------------------------


class Log(Callback):
    def __init__(self):
        self.calls = []

    def on_fit_start(self, trainer):
        self.calls.append(("fit_start", trainer.step))

    def on_phase(self, trainer, phase):
        assert trainer.history.phases[-1] is phase
        self.calls.append(("phase", trainer.step))

    def on_step(self, trainer):
        self.calls.append(("step", trainer.step))

    def on_record(self, trainer, record):
        assert trainer.history.steps[-1] is record
        self.calls.append(("record", record.step))

    def on_evaluation(self, trainer, evaluation):
        assert trainer.history.evaluations[-1] is evaluation
        self.calls.append(("evaluation", evaluation.step))

    def on_epoch_end(self, trainer):
        self.calls.append(("epoch_end", trainer.step))

    def on_fit_end(self, trainer):
        self.calls.append(("fit_end", trainer.step))


def test_callbacks_are_called_in_order(toy):
    log = Log()
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=Switch(at_step=3), log_every=2, callbacks=[log])
    trainer.fit(toy.batches(4), val=toy.batches(1, seed=7), epochs=1.5)
    assert log.calls == [
        ("fit_start", 0),
        ("phase", 0),
        ("step", 1),
        ("step", 2),
        ("record", 2),
        ("step", 3),
        ("record", 3),  # a record never spans two phases
        ("phase", 3),
        ("step", 4),
        ("record", 4),
        ("evaluation", 4),
        ("epoch_end", 4),
        ("step", 5),
        ("step", 6),
        ("record", 6),
        ("evaluation", 6),
        ("epoch_end", 6),
        ("fit_end", 6),
    ]


def test_fit_again_starts_anew(toy):
    trainer = Trainer(toy.encoder(), toy.heads(), schedule=Switch(at_step=1))
    trainer.fit(toy.batches(2), epochs=1)
    assert trainer.heads.active == ("tag",)
    history = trainer.fit(toy.batches(2), epochs=1)
    assert [phase.first_step for phase in history.phases] == [0, 1]
    assert len(history.phases[0].active) == 3

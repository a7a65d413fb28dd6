"""Self-training in a run: the model's own labels are what it says when the main task's phase begins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast import (
    BagEncoder,
    Callback,
    Classification,
    MultiTask,
    MultiTaskHeads,
    SingleTask,
    Switch,
    TaskAdaptedEncoder,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.data import MISSING, BagBatches, TokenBatches
from tests.training.processes.runs import corpus

LEVELS = ("token", "document")


class AtPhases(Callback):
    """Notes, when a phase begins, what the model says of every row, and the targets that its batches have."""

    def __init__(self, batches, inputs):
        self._batches, self._inputs = batches, inputs
        self.said, self.targets = [], []

    @torch.no_grad()
    def on_phase(self, trainer, phase):
        trainer.encoder.eval()
        logits = trainer.heads.logits(trainer.encoder(self._inputs), "main")
        trainer.encoder.train()
        self.said.append(logits.argmax(1).numpy())
        self.targets.append(self._batches.active_columns()["main"].copy())


def fitted(level, *, wrap=lambda encoder: encoder, self_training=True, schedule=None, **options):
    torch.manual_seed(0)
    text = corpus(level)
    tasks = {"main": Classification(5), "aux": Classification(3)}
    if level == "token":
        encoder: nn.Module = WindowEncoder(40, 6, window=1, hidden=8, dropout=0.3, sparse=True)
        batches: TokenBatches | BagBatches = TokenBatches(
            text, 24, 1, "main", tasks=tuple(tasks), self_training=self_training
        )
    else:
        encoder = BagEncoder(40, 8, dropout=0.3, sparse=True)
        batches = BagBatches(text, 24, "main", tasks=tuple(tasks), self_training=self_training)
    heads = MultiTaskHeads(8, tasks, "main")
    told = AtPhases(batches, batches._inputs(np.arange(text.n_rows)))
    schedule = Switch(at=0.5) if schedule is None else schedule
    trainer = Trainer(
        wrap(encoder), heads, schedule=schedule, lr=0.01, device="cpu", callbacks=[told], **options
    )
    history = trainer.fit(batches, epochs=4)
    return history, told, text


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("backward", ["auto", "autograd"])
def test_rows_without_a_label_train_with_the_models_own(level, backward):
    history, told, text = fitted(level, backward=backward)
    labels = text.column("main").values
    own = (told.targets[1] != MISSING) & (labels == MISSING)
    assert [phase.own_labels for phase in history.phases] == [0, own.sum()]
    assert own.sum() > 10
    np.testing.assert_array_equal(told.targets[0], labels)
    np.testing.assert_array_equal(told.targets[1][own], told.said[1][own])
    np.testing.assert_array_equal(told.targets[1][~own], labels[~own])
    assert len(set(told.targets[1][own])) > 1


def test_layers_of_a_tasks_own_label_as_well():
    _, told, text = fitted("token", wrap=lambda encoder: TaskAdaptedEncoder(encoder, ("main", "aux")))
    labels = text.column("main").values
    assert (told.targets[1] != MISSING).sum() > (labels != MISSING).sum()
    assert (told.targets[1][labels != MISSING] == labels[labels != MISSING]).all()


@pytest.mark.parametrize(
    ("self_training", "schedule"), [(False, None), (True, SingleTask()), (True, MultiTask())], ids=str
)
def test_nothing_is_labelled_unless_the_main_task_ends_alone_after_others(self_training, schedule):
    history, told, text = fitted("token", self_training=self_training, schedule=schedule)
    assert not any(phase.own_labels for phase in history.phases)
    assert all((targets == text.column("main").values).all() for targets in told.targets)


def test_the_time_of_labelling_is_time_of_training(monkeypatch):
    from mt2st_fast.training.phases.self_training import SelfTraining

    label = SelfTraining.label
    monkeypatch.setattr(SelfTraining, "label", lambda self, steps: (label(self, steps)[0], 1000.0))
    history, *_ = fitted("token")
    assert history.train_seconds > 1000

"""skorch's loop with our heads as its criterion: trained, searched over, kept; skipped where it is not installed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast import Classification, MultiTaskHeads, PhaseController, Switch

skorch = pytest.importorskip("skorch")
base = pytest.importorskip("sklearn.base")

pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of what is to come there

TASKS = {"sign": Classification(2), "size": Classification(2)}
X = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
Y = {
    "sign": (X[:, 0] > 0).astype(np.int64),
    "size": (np.linalg.norm(X, axis=1) > 2).astype(np.int64),
}


class Net(skorch.NeuralNet):
    """The one line that skorch needs: its criterion gives several losses."""

    def get_loss(self, y_pred, y_true, *args, **kwargs):
        return super().get_loss(y_pred, y_true, *args, **kwargs).total


class Phases(skorch.callbacks.Callback):
    """Lets tasks go by the batches that were trained."""

    def __init__(self, schedule):
        self.schedule = schedule

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        self.controller_ = PhaseController(net.criterion_, self.schedule, net.optimizer_)
        self.step_, self.per_epoch_ = 0, -(-len(X) // net.batch_size)

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        if training:
            self.controller_.step(self.step_, net.max_epochs * self.per_epoch_, self.per_epoch_)
            self.step_ += 1


def small(epochs=10, schedule=None):
    torch.manual_seed(0)
    return Net(
        nn.Linear, module__in_features=4, module__out_features=8, criterion=MultiTaskHeads, criterion__in_features=8,
        criterion__tasks=TASKS, criterion__main="sign", optimizer=torch.optim.AdamW, lr=0.1, batch_size=16, verbose=0,
        train_split=None, iterator_train__shuffle=False, max_epochs=epochs,
        callbacks=[] if schedule is None else [("phases", Phases(schedule))],
    )  # fmt: skip


def said(net, task="sign"):
    with torch.no_grad():
        return net.criterion_.logits(net.forward(X), task).argmax(1).numpy()


def test_its_losses_are_those_of_a_loop_by_hand_over_a_switch():
    net = small(epochs=3, schedule=Switch(at_step=6)).fit(X, Y)
    torch.manual_seed(0)
    encoder, heads = nn.Linear(4, 8), MultiTaskHeads(8, TASKS, "sign")
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=0.1)
    controller = PhaseController(heads, Switch(at_step=6), optimizer)
    losses = []
    for step in range(12):
        controller.step(step, 12, 4)
        rows = slice(16 * (step % 4), 16 * (step % 4 + 1))
        targets = {name: torch.from_numpy(y[rows]) for name, y in Y.items()}
        loss = heads(encoder(torch.from_numpy(X[rows])), targets).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    told = [batch["train_loss"] for epoch in net.history for batch in epoch["batches"]]
    assert told == pytest.approx(losses, abs=1e-5)
    assert net.criterion_.active == ("sign",)
    retired = [*net.criterion_.linear("size").parameters()]
    assert all(not p.requires_grad and p not in net.optimizer_.state for p in retired)


def test_it_learns_and_is_copied_and_kept():
    net = small().fit(X, Y)
    assert (said(net) == Y["sign"]).mean() > 0.9
    assert (said(pickle.loads(pickle.dumps(net))) == said(net)).all()
    torch.manual_seed(0)
    again = base.clone(net).set_params(max_epochs=1).fit(X, Y)
    assert len(again.history) == 1
    assert again.criterion_.tasks == TASKS

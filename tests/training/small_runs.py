"""A run that takes milliseconds: a linear encoder, two tasks, eight batches."""

from __future__ import annotations

import torch
from torch import nn

from mt2st_fast import Callback, Classification, MultiTaskHeads, SingleTask, Trainer

N, ROWS = 64, 8
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 3, (N,), generator=torch.Generator().manual_seed(2))


class Stop(Callback):
    def __init__(self, step):
        self.at = step

    def on_step(self, trainer):
        trainer.stop_requested = trainer.stop_requested or trainer.step == self.at


class ActAfter(Callback):
    """Calls act(trainer) once, after so many steps."""

    def __init__(self, step, act):
        self.at, self.act = step, act

    def on_step(self, trainer):
        if trainer.step == self.at:
            self.act(trainer)


def trainer_of(encoder=None, **options):
    torch.manual_seed(3)
    heads = MultiTaskHeads(4, {"a": Classification(3), "b": Classification(3)}, "a")
    options = {"schedule": SingleTask(), "device": "cpu", "log_every": 3, "lr": 0.05} | options
    return Trainer(nn.Linear(3, 4) if encoder is None else encoder, heads, **options)


def batches(x=X, y=Y, rows=ROWS):
    return [(x[i : i + rows], {"a": y[i : i + rows]}) for i in range(0, len(x), rows)]


def parameters_of(trainer):
    return {**trainer.encoder.state_dict(), **trainer.heads.state_dict()}


def assert_same(one, other):
    for (name, ours), theirs in zip(parameters_of(one).items(), parameters_of(other).values(), strict=True):
        assert torch.equal(ours, theirs), name


def assert_goes_on_with_the_same_bits(run, stop, folder):
    """run: gives a trainer and its history, from callbacks and options of `fit`. Returns both trainers."""
    whole, history = run()
    run(callbacks=[Stop(stop)], checkpoint=folder / "c")
    resumed, again = run(checkpoint=folder / "c", resume=True)
    assert again == history
    assert_same(whole, resumed)
    return whole, resumed


def assert_same_on_threads(run):
    """Assert that run(), which returns (losses, list of parameters), gives the same bits on 1, 2 and 4 threads."""
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 4, 2):
            torch.set_num_threads(n_threads)
            found.append(run())
    finally:
        torch.set_num_threads(before)
    for losses, moved in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert all(map(torch.equal, moved, found[0][1]))

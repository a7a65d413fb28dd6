"""Where a step is not captured there is a reason, it runs eagerly as it would have, and nothing is left behind."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

from mt2st_fast import MultiTask, Trainer
from mt2st_fast.training.engines.graphs.cuda_graph import optimizer_obstacle
from mt2st_fast.training.engines.graphs.graphed_steps import WARM_UP_STEPS
from tests.training.graphs_on_cpu import RATE, EagerOnCpu, GraphedOnCpu, Recorder


def test_a_cpu_cannot_honour_it(toy):
    with pytest.raises(
        ValueError, match="graph=True needs a CUDA device to capture graphs on; this trainer's is cpu"
    ):
        Trainer(toy.encoder(), toy.heads(), device="cpu", graph=True)


@pytest.mark.parametrize(
    ("capturer", "reason"),
    [
        (
            lambda: Recorder(error=RuntimeError("operation not permitted when stream is capturing\nmore")),
            "not captured: RuntimeError: operation not permitted when stream is capturing",
        ),
        (
            lambda: Recorder(obstacle="the step waits for the device at encoder.py:7"),
            "not captured: the step waits for the device at encoder.py:7",
        ),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_says_why_once(toy, caplog, capturer, reason):
    caplog.set_level(logging.WARNING)
    torch.manual_seed(3)
    eager = Trainer(toy.encoder(), toy.heads(), lr=RATE, log_every=4, precision="float16", clip_norm=1.0)
    expected = eager.fit(toy.batches(6), epochs=4)
    caplog.clear()
    torch.manual_seed(3)
    trainer = GraphedOnCpu(
        toy.encoder(),
        toy.heads(),
        lr=RATE,
        log_every=4,
        precision="float16",
        clip_norm=1.0,
        capturer=capturer(),
    )
    history = trainer.fit(toy.batches(6), epochs=4)
    assert history == expected
    assert trainer.capturer.replayed == 0
    assert trainer.capturer.captured <= 2  # one attempt a phase
    assert [phase.graph for phase in history.phases] == [reason, reason]
    said = [record for record in caplog.records if "CUDA graph" in record.message]
    assert len(said) == 1


def test_a_capture_that_breaks_off_half_way_leaves_nothing_behind(toy):
    class HalfWay(Recorder):
        def capture(self, run):
            self.captured += 1
            trainer = holder[0]
            for parameter in trainer.encoder.parameters():  # as after a backward pass that never ran
                parameter.grad = torch.full_like(parameter, math.nan)
            raise RuntimeError("half-way")

    torch.manual_seed(3)
    expected = EagerOnCpu(toy.encoder(), toy.heads(), lr=RATE).fit(toy.batches(6), epochs=2)
    torch.manual_seed(3)
    holder = [GraphedOnCpu(toy.encoder(), toy.heads(), lr=RATE, capturer=HalfWay())]
    assert holder[0].fit(toy.batches(6), epochs=2) == expected


def test_graphs_are_made_again_after_a_capture_that_failed(toy):
    class FailsOnce(Recorder):
        def capture(self, run):
            if self.captured == 1:
                self.error = RuntimeError("once")
            return super().capture(run) if self.error is None else self.fail()

        def fail(self):
            self.captured, error, self.error = self.captured + 1, self.error, None
            raise error

    batches = toy.batches(6)
    batches[5] = (batches[5][0][:7], {name: target[:7] for name, target in batches[5][1].items()})
    torch.manual_seed(3)
    expected = EagerOnCpu(toy.encoder(), toy.heads(), schedule=MultiTask(), lr=RATE).fit(batches, epochs=6)
    torch.manual_seed(3)
    trainer = GraphedOnCpu(toy.encoder(), toy.heads(), schedule=MultiTask(), lr=RATE, capturer=FailsOnce())
    assert trainer.fit(batches, epochs=6) == expected
    assert trainer.capturer.captured == 3  # the whole batch, the small one in vain, the whole batch again
    assert trainer.history.phases[0].graph == "captured, except where: RuntimeError: once"


def test_an_error_of_the_step_itself_is_raised(toy):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.calls = toy.encoder(), 0

        def forward(self, inputs):
            self.calls += 1
            if self.calls > WARM_UP_STEPS:
                raise KeyError("broken encoder")
            return self.inner(inputs)

    class Runs(Recorder):
        def capture(self, run):
            run()
            raise AssertionError("the step did not raise")

    trainer = GraphedOnCpu(Broken(), toy.heads(), schedule=MultiTask(), capturer=Runs())
    with pytest.raises(KeyError, match="broken encoder"):
        trainer.fit(toy.batches(6), epochs=1)


def optimizer_of(kind, **options):
    return kind([nn.Parameter(torch.ones(2))], **options)


@pytest.mark.parametrize(
    ("optimizer", "changes", "scaling", "reason"),
    [
        (lambda: optimizer_of(torch.optim.SGD, lr=0.1, momentum=0.9), False, False, None),
        (lambda: optimizer_of(torch.optim.AdamW, capturable=True), False, False, None),
        (
            lambda: optimizer_of(torch.optim.AdamW, lr=torch.tensor(0.1), capturable=True, fused=True),
            True,
            True,
            None,
        ),
        (
            lambda: optimizer_of(torch.optim.AdamW),
            False,
            False,
            "the optimizer AdamW is not capturable: build it with capturable=True",
        ),
        (
            lambda: optimizer_of(torch.optim.Adagrad),
            False,
            False,
            "the optimizer Adagrad is not capturable: take AdamW(capturable=True)",
        ),
        (
            lambda: optimizer_of(torch.optim.SGD, lr=0.1),
            True,
            False,
            "the rate changes in every step",
        ),
        (
            lambda: optimizer_of(torch.optim.AdamW, lr=0.1, capturable=True),
            True,
            False,
            "the rate changes in every step",
        ),
        (lambda: optimizer_of(torch.optim.AdamW, capturable=True), False, True, "float16 loss scaling waits"),
        (lambda: optimizer_of(torch.optim.SGD, lr=0.1), False, True, "float16 loss scaling waits"),
    ],
)
def test_an_optimizer_that_cannot_be_captured_is_named(optimizer, changes, scaling, reason):
    found = optimizer_obstacle(optimizer(), lr_changes=changes, loss_scaling=scaling)
    assert found is None if reason is None else found.startswith(reason)


def test_the_optimizers_reason_stands_in_the_history(toy):
    trainer = GraphedOnCpu(toy.encoder(), toy.heads(), optimizer=torch.optim.Adagrad)
    history = trainer.fit(toy.batches(6), epochs=1)
    assert trainer.capturer.captured == trainer.capturer.warmed_up == 0
    reason = "not captured: the optimizer Adagrad is not capturable: take AdamW(capturable=True)"
    assert [phase.graph for phase in history.phases] == [reason, reason]

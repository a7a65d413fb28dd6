"""Runs in which one kernel call takes the steps of an MLP: those of autograd, resumed, and where it gives way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import AlternateSteps, Callback, MultiTask, MultiTaskHeads, Switch, Trainer
from tests.training.small_runs import Stop, assert_same
from tests.training.test_stack_training import OPTIMIZERS, TASKS, batch, model, parameters


def trainer(backward="auto", callbacks=(), **options):
    encoder, heads = model(dropout=options.pop("dropout", 0.0))
    options = {"schedule": Switch(at=0.5), "optimizer": OPTIMIZERS["AdamW"]} | options
    return Trainer(encoder, heads, backward=backward, callbacks=list(callbacks), device="cpu", **options)


def loader():
    return [batch(N, seed=N) for N in (31, 2, 64, 90)]


@pytest.mark.parametrize("options", [
    {}, {"schedule": AlternateSteps()}, {"lr_scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)},
    {"optimizer": None, "lr": 0.02, "weight_decay": 0.3}, {"optimizer": OPTIMIZERS["SGD"]},
])  # fmt: skip
def test_a_run_takes_it_and_is_that_of_autograd(options):
    runs = [trainer(backward, **options) for backward in ("auto", "autograd")]
    for run in runs:
        run.fit(loader(), epochs=3)
    assert {phase.engine for phase in runs[0].history.phases} == {"one kernel call"}
    assert {phase.engine for phase in runs[1].history.phases} == {"eager"}
    ours, theirs = (parameters(run.encoder, run.heads) for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", [3, 9])
def test_a_resumed_run_goes_on_with_the_same_bits(stop, tmp_path):
    whole = trainer(dropout=0.2)
    torch.manual_seed(1)
    whole.fit(loader(), epochs=4)
    stopped = trainer(dropout=0.2, callbacks=[Stop(stop)])
    torch.manual_seed(1)
    stopped.fit(loader(), epochs=4, checkpoint=tmp_path / "c")
    resumed = trainer(dropout=0.2)
    resumed.fit(loader(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    assert resumed.history.phases[-1].engine == "one kernel call"
    assert_same(whole, resumed)


@pytest.mark.parametrize("first", ["auto", "autograd"])
def test_another_engine_takes_over_a_run(first, tmp_path):
    other = {"auto": "autograd", "autograd": "auto"}[first]
    whole = trainer("autograd")
    whole.fit(loader(), epochs=4)
    trainer(first, callbacks=[Stop(5)]).fit(loader(), epochs=4, checkpoint=tmp_path / "c")
    resumed = trainer(other)
    resumed.fit(loader(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    ours, theirs = (parameters(run.encoder, run.heads) for run in (resumed, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_single_linear_layer_is_an_encoder_too():
    torch.manual_seed(0)
    run = Trainer(nn.Linear(7, 33), MultiTaskHeads(33, TASKS, "a"), schedule=MultiTask(), device="cpu")
    assert run.fit(loader(), epochs=1).phases[0].engine == "one kernel call"


@pytest.mark.parametrize(("options", "reason"), [
    ({"clip_norm": 1.0}, "clip_norm needs the gradients"), ({"accumulate": 2}, "several batches"),
    ({"precision": "bfloat16"}, "autocast"),
])  # fmt: skip
def test_a_run_that_needs_gradients_goes_on_without_it(options, reason):
    run = trainer(**options)
    phase = run.fit(loader(), epochs=1).phases[0]
    assert reason in phase.passed_over["one kernel call"]


class Once(Callback):
    def __init__(self, step, act):
        self.at, self.act = step, act

    def on_step(self, trainer):
        if trainer.step == self.at:
            self.act(trainer)


def set_option(trainer):
    trainer.run.optimizer.param_groups[0]["maximize"] = True


@pytest.mark.parametrize(("act", "reason"), [
    (lambda trainer: trainer.encoder.append(nn.Softmax(1)), "has a Softmax"), (set_option, "maximize"),
    (lambda trainer: trainer.encoder[1].register_forward_hook(lambda *_: None), "has hooks"),
    (lambda trainer: trainer.encoder[1].weight.register_hook(lambda g: g), "a parameter has hooks"),
])  # fmt: skip
def test_what_a_callback_changes_is_noticed_in_the_next_step(act, reason):
    run = trainer(schedule=MultiTask(), callbacks=[Once(2, act)])
    phase = run.fit(loader(), epochs=1).phases[0]
    assert phase.engine == "one kernel call"
    assert reason in phase.passed_over["one kernel call"]


@pytest.mark.parametrize("act", [
    lambda encoder: encoder.append(nn.Linear(33, 33)), lambda encoder: encoder.insert(1, nn.Linear(7, 7)),
    lambda encoder: setattr(encoder, "3", nn.Linear(20, 33)),
    lambda encoder: setattr(encoder[1], "weight", nn.Parameter(torch.ones(20, 7))),
    lambda encoder: setattr(encoder[1], "bias", None),
])  # fmt: skip
def test_other_layers_are_trained_from_the_next_step_on(act):
    def change(trainer):
        torch.manual_seed(3)
        act(trainer.encoder)

    runs = [trainer(way, schedule=MultiTask(), callbacks=[Once(2, change)]) for way in ("auto", "autograd")]
    for run in runs:
        run.fit(loader(), epochs=2)
    assert not runs[0].history.phases[0].passed_over
    ours, theirs = (parameters(run.encoder, run.heads) for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_inputs_that_it_does_not_take_are_taken_by_another_engine():
    inputs, targets = batch(24)
    rows = {name: target.view(4, 6, *target.shape[1:]) for name, target in targets.items()}
    others = [(inputs.view(4, 6, 7), rows), (inputs.clone().requires_grad_(), targets)]
    for each, reason in zip(others, ("takes inputs (N, 7)", "want a gradient"), strict=True):
        run = trainer(schedule=MultiTask())
        phase = run.fit([(inputs, targets), each], epochs=1).phases[0]
        assert phase.engine == "one kernel call"
        assert reason in phase.passed_over["one kernel call"]
    assert others[1][0].grad is not None


def test_tasks_without_labels_or_targets_and_empty_batches_are_as_in_eager_steps():
    inputs, targets = batch(12)
    nothing = {"a": torch.full((12,), -100), "c": torch.full((12, 3), float("nan"))}
    batches = [(inputs, {"b": targets["b"]}), (inputs, nothing), batch(0), (inputs, targets)]
    found = []
    for backward in ("auto", "autograd"):
        run = trainer(backward, schedule=MultiTask())
        run.fit(batches, epochs=2)
        found.append(parameters(run.encoder, run.heads))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

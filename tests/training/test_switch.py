"""After the switch a retired task costs nothing, and a step is the single-task step, operator by operator."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from mt2st_fast import Callback, Diminish, MultiTask, SingleTask, Switch, Trainer
from mt2st_fast.training.inputs.sources import Source
from mt2st_fast.training.optimizers.faded_moments import FADE_STEPS, drop_faded_moments

AUXILIARY = ("feats.Number", "score")


class At(Callback):
    """Calls a function once `step` steps are done."""

    def __init__(self, step, function):
        self.at, self.function = step, function

    def on_step(self, trainer):
        if trainer.step == self.at:
            self.function(trainer)


class OnPhase(Callback):
    def __init__(self, function):
        self.function = function

    def on_phase(self, trainer, phase):
        self.function(trainer, phase)


def retired(trainer, tasks=AUXILIARY):
    return [p for name in tasks for p in trainer.heads.linear(name).parameters()]


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2, weight_decay=0.1),
    "groups": lambda parameters: torch.optim.AdamW(
        [{"params": [p]} for p in parameters], lr=1e-2, weight_decay=0.1
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_has_retired_is_never_touched_again(toy, optimizer):
    at_switch = {}

    def keep(trainer, phase):
        if phase.first_step:
            at_switch.update({id(p): p.detach().clone() for p in retired(trainer)})
            assert [p.grad for p in retired(trainer)] == [None] * 4

    trainer = Trainer(
        toy.encoder(),
        toy.heads(),
        schedule=Switch(at_step=5),
        optimizer=OPTIMIZERS[optimizer],
        callbacks=[OnPhase(keep)],
    )
    initial = [p.detach().clone() for p in retired(trainer)]
    trainer.fit(toy.batches(5), epochs=4)
    kept = {id(p) for group in trainer.run.optimizer.param_groups for p in group["params"]}
    for before, parameter in zip(initial, retired(trainer), strict=True):
        assert not torch.equal(parameter, before)  # it did learn before the switch
        assert torch.equal(parameter, at_switch[id(parameter)])
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert id(parameter) not in kept
        assert parameter not in trainer.run.optimizer.state
    assert len(trainer.run.optimizer.state) == len(kept) == 6  # encoder and main head


def test_tasks_may_retire_one_after_the_other(toy):
    seen = []
    schedule = Diminish(eta={"feats.Number": 2.0, "score": 0.5}, floor=0.3)
    trainer = Trainer(
        toy.encoder(), toy.heads(), schedule=schedule, callbacks=[OnPhase(lambda t, p: seen.append(p))]
    )
    history = trainer.fit(toy.batches(10), epochs=4)
    # ln(1/0.3) = 1.204: after 0.602 and 2.408 epochs of 10 steps
    assert [(p.first_step, p.active) for p in seen] == [
        (0, ("tag", "feats.Number", "score")),
        (7, ("tag", "score")),
        (25, ("tag",)),
    ]
    assert history.phases == seen
    assert history.steps[-1].weights == {"tag": 1.0}


class Loader:
    """Batches by a generator that says when it was closed."""

    def __init__(self, batches):
        self.batches, self.closed, self.read = batches, 0, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        try:
            for batch in self.batches:
                self.read += 1
                yield batch
        finally:
            self.closed += 1


def loaders_by_task(toy, n_batches):
    batches = toy.batches(n_batches)
    return {name: Loader([(x, {name: y[name]}) for x, y in batches]) for name in toy.tasks}


def test_the_loader_of_a_retired_task_is_let_go(toy):
    loaders = loaders_by_task(toy, 8)
    source = Source(loaders, "tag", tuple(toy.tasks))
    for step in range(3):
        source.next_step(step)
    labels, score = loaders["feats.Number"], weakref.ref(loaders["score"])
    loaders.clear()
    source.enter_phase(("tag",))
    gc.collect()
    assert score() is None
    assert (labels.read, labels.closed) == (3, 1)
    ((_, targets),) = source.next_step(3)[0]
    assert list(targets) == ["tag"]
    assert labels.read == 3


def test_no_label_of_a_retired_task_is_read(toy):
    loaders = loaders_by_task(toy, 6)
    Trainer(toy.encoder(), toy.heads(), schedule=Switch(at_step=4)).fit(loaders, epochs=2)
    assert {name: loader.read for name, loader in loaders.items()} == {
        "tag": 12,
        "feats.Number": 4,
        "score": 4,
    }
    assert loaders["score"].closed == 1


def operators_of_a_step(toy, schedule, step, **options):
    """(operator, shapes of its inputs) of everything that one step runs, in order."""
    torch.manual_seed(0)
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True)
    callbacks = [At(step, lambda _: profiler.start()), At(step + 1, lambda _: profiler.stop())]
    trainer = Trainer(
        toy.encoder(dropout=0.1),
        toy.heads(),
        schedule=schedule,
        log_every=1000,
        callbacks=callbacks,
        backward="autograd",
        **options,
    )
    trainer.fit(toy.batches(20), epochs=1)
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    return [(event.name, str(event.input_shapes)) for event in events if event.name != "[memory]"]


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_norm": 1.0, "weight_decay": 0.1}, {"precision": "bfloat16"}, {"lr_decay": "linear"}],
    ids=str,
)
def test_a_step_after_the_switch_runs_the_operators_of_a_single_task_step(toy, options):
    single = operators_of_a_step(toy, SingleTask(), 10, **options)
    switched = operators_of_a_step(toy, Switch(at_step=8), 10, **options)
    before = operators_of_a_step(toy, Switch(at_step=15), 10, **options)
    assert switched == single
    assert before != single  # the kernels of several heads are no operators of torch
    if not options:  # clipping stacks norms
        assert "aten::cat" not in [name for name, _ in before + switched]
    assert any("adamw" in name for name, _ in switched)


def test_a_diminished_run_ends_in_the_single_task_step_too(toy):
    diminished = operators_of_a_step(toy, Diminish(eta=20.0), 10)
    assert diminished == operators_of_a_step(toy, SingleTask(), 10)
    assert diminished != operators_of_a_step(toy, MultiTask(), 10)


def test_moments_fade_to_zero_and_never_to_subnormal_numbers():
    """Rows that only auxiliary batches used get no gradient after the switch; their moments decay."""
    table = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([table], fused=True)
    smallest = torch.finfo(torch.float32).tiny
    seen = []
    for step in range(1, 4 * FADE_STEPS + 1):
        table.grad = torch.zeros(2, 3)
        table.grad[0] = 1.0
        if step == 1:
            table.grad[1] = 1.0
        optimizer.step()
        if step % FADE_STEPS == 0:
            drop_faded_moments(optimizer)
        moment = optimizer.state[table]["exp_avg"][1]
        seen.append(moment.abs().max().item())
    assert all(value == 0.0 or value >= smallest for value in seen)
    assert seen[FADE_STEPS] > 0.0
    assert seen[-1] == 0.0
    assert (optimizer.state[table]["exp_avg"][0] > 0.9).all()


def test_small_gradients_do_not_fade():
    # Their squares are small as well, but are all that scales them where eps is smaller still.
    weights, others = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
    ours, theirs = (torch.optim.AdamW([p], lr=0.1, eps=1e-15) for p in (weights, others))
    for step in range(4):
        for parameter, optimizer in ((weights, ours), (others, theirs)):
            parameter.grad = torch.tensor([1e-13, -3e-13, 1e-14, 1.0]) * (step + 1)
            optimizer.step()
        drop_faded_moments(ours)
    assert torch.equal(weights, others)

"""Shared and task parameters in turns: what moves, what is computed, and that every engine does the same."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mt2st_fast import (
    Classification,
    MultiTask,
    MultiTaskHeads,
    OpenTask,
    Trainer,
)
from mt2st_fast.kernels import Moves
from mt2st_fast.kernels.heads import known
from mt2st_fast.kernels.heads.on_numba import tile
from mt2st_fast.kernels.step.dense_model import HEAD, LAYER
from mt2st_fast.training.engines.kernel_calls.text_training import TextTraining
from mt2st_fast.training.schedules import Alternate, AlternateSteps
from tests.training.graphs_on_cpu import assert_same, both
from tests.training.small_runs import assert_goes_on_with_the_same_bits
from tests.training.turn_runs import (
    OPTIMIZERS,
    PER_EPOCH,
    batches,
    parameters_of,
    targets_of,
    trainer_of,
    windows,
)

SCHEDULES = {"epochs": Alternate(1, 1), "unlike epochs": Alternate(2, 1, 0.5), "steps": AlternateSteps(1, 2)}


def states_of(trainer):
    """Copies of what the optimizer remembers of every parameter, by its name."""
    modules = {"encoder": trainer.encoder, "heads": trainer.heads}
    names = {p: f"{part}/{n}" for part, m in modules.items() for n, p in m.named_parameters()}
    return {names[p]: copy.deepcopy(dict(state)) for p, state in trainer.run.optimizer.state.items()}


@pytest.mark.parametrize("backward", ["auto", "autograd"])
@pytest.mark.parametrize("kind", ["window", "bag"])
def test_a_turn_leaves_the_other_part_and_its_optimizer_state_as_they_are(kind, backward):
    optimizer = OPTIMIZERS["adam" if kind == "window" else "adagrad"]
    trainer = trainer_of(kind, optimizer, schedule=Alternate(1, 1), backward=backward)
    run = trainer.begin(batches(kind), epochs=4)
    for epoch in range(4):
        if epoch == 1:
            before_states = states_of(trainer)
        before, still = parameters_of(trainer), "heads" if epoch % 2 == 0 else "encoder"
        states = states_of(trainer)
        for _ in range(PER_EPOCH):
            run.step()
        for name, then in before.items():
            moved = not torch.equal(parameters_of(trainer)[name], then)
            assert moved != name.startswith(still), name
        for name, state in states_of(trainer).items():
            if name.startswith(still) and name in states:
                for key, value in states[name].items():
                    assert torch.equal(state[key], value), (name, key)
    assert before_states.keys() >= {"encoder/table"}
    assert all(p.requires_grad for p in [*trainer.encoder.parameters(), *trainer.heads.parameters()])


class Operators(TorchDispatchMode):
    """Counts the operators that run, matrix products by the shape of their result."""

    def __init__(self):
        super().__init__()
        self.names, self.products = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func).split(".")[1]
        self.names[name] += 1
        if name in ("mm", "addmm"):
            self.products[tuple(out.shape)] += 1
        return out


def operators_of(schedule, steps):
    """What the last of so many eager steps runs, of an encoder 6 -> 16 -> 9 under heads with 12 outputs, in 32 rows."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 9))
    heads = MultiTaskHeads(9, {"a": Classification(5), "b": Classification(7)}, "a", backend="reference")
    trainer = Trainer(encoder, heads, schedule=schedule, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    data = [
        (torch.randn(32, 6), {"a": torch.randint(0, 5, (32,)), "b": torch.randint(0, 7, (32,))})
        for _ in range(2)
    ]
    run = trainer.begin(data, epochs=2)
    for _ in range(steps - 1):
        run.step()
    with Operators() as found:
        run.step()
    return found


WEIGHTS_OF_HEADS, WEIGHTS_OF_ENCODER, FEATURES = [(5, 9), (7, 9)], [(16, 6), (9, 16)], (32, 9)


def test_a_shared_turn_computes_no_weight_gradient_of_heads():
    everything, shared = operators_of(MultiTask(), 1), operators_of(AlternateSteps(1, 1), 1)
    assert all(everything.products[shape] == shared.products[shape] == 1 for shape in WEIGHTS_OF_ENCODER)
    assert all(everything.products[shape] == 1 for shape in WEIGHTS_OF_HEADS)
    assert not any(shared.products[shape] for shape in WEIGHTS_OF_HEADS)
    assert shared.products.total() == everything.products.total() - 2


def test_a_task_turn_has_no_backward_pass_of_the_encoder():
    everything, tasks = operators_of(MultiTask(), 1), operators_of(AlternateSteps(1, 1), 2)
    assert everything.names["threshold_backward"] == 1
    assert not tasks.names["threshold_backward"]
    assert all(tasks.products[shape] == 1 for shape in WEIGHTS_OF_HEADS)
    assert not any(tasks.products[shape] for shape in WEIGHTS_OF_ENCODER)
    assert (everything.products[FEATURES], tasks.products[FEATURES]) == (3, 1), "a gradient of the features"


def test_the_fused_heads_are_asked_for_the_gradients_that_are_needed(monkeypatch):
    asked = []
    at_once = tile.at_once
    monkeypatch.setattr(tile, "at_once", lambda *args: asked.append(args[3]) or at_once(*args))
    monkeypatch.setattr(known, "_known", {})  # calls of before keep what they found
    torch.manual_seed(0)
    heads = MultiTaskHeads(9, {"a": Classification(5)}, "a", backend="numba", plan="tile")
    trainer = Trainer(nn.Linear(6, 9), heads, schedule=AlternateSteps(1, 1))
    run = trainer.begin([(torch.randn(32, 6), {"a": torch.randint(0, 5, (32,))})], epochs=2)
    run.step()
    run.step()
    assert asked == [(True, False, False), (False, True, True)]


def test_the_window_kernel_writes_no_gradient_that_a_turn_does_not_need():
    trainer = trainer_of("window", OPTIMIZERS["adam"])
    optimizer = OPTIMIZERS["adam"]([*trainer.encoder.parameters(), *trainer.heads.parameters()])
    training = TextTraining(trainer.encoder, trainer.heads, optimizer)
    inputs, targets = windows(0), targets_of(0)
    training(inputs, targets, torch.ones(3))
    (model,) = training._models
    buffers = model.memory.buffers
    below_the_logits = ("d_a", "d_x", "d_vectors", "d_hidden_bias", "backward")

    def poison():
        for name in below_the_logits:
            getattr(buffers, name).fill(float("nan"))

    poison()
    training(inputs, targets, torch.ones(3), Moves(shared=False))
    assert all(bool((getattr(buffers, n) != getattr(buffers, n)).all()) for n in below_the_logits)
    training(inputs, targets, torch.ones(3), Moves(heads=False))
    assert not any(bool((getattr(buffers, n) != getattr(buffers, n)).all()) for n in below_the_logits)
    # A weight gradient of heads is computed by the pieces that are handed over: there are none of them.
    assert set(model.moving(Moves(heads=False)).dense.pieces["of"].tolist()) == set(LAYER)
    assert set(model.moving(Moves(shared=False)).dense.pieces["of"].tolist()) == set(HEAD)


@pytest.mark.parametrize("schedule", [Alternate(1, 1), AlternateSteps(2, 1)], ids=repr)
def test_graphs_replay_every_part(toy, schedule):
    eager, graphed, trainer = both(
        toy, toy.batches(5), epochs=8, schedule=schedule, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    )
    assert_same(eager, graphed)
    assert trainer.capturer.captured == 2, "one graph a part"
    assert trainer.capturer.replayed > 20
    assert graphed[0].phases[0].graph == "captured"


@pytest.mark.parametrize("schedule", [Alternate(1, 1), Alternate(1, 2), AlternateSteps(2, 3)], ids=repr)
@pytest.mark.parametrize("stop", [2, 4, 7, 13])
def test_a_resumed_run_ends_with_the_same_bits(schedule, stop, tmp_path):
    def run(callbacks=(), **options):
        trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=schedule, callbacks=list(callbacks))
        return trainer, trainer.fit(batches("window"), epochs=4, **options)

    assert_goes_on_with_the_same_bits(run, stop, tmp_path)


def test_what_is_frozen_by_the_user_stays_frozen_and_callers_see_no_turn():
    trainer = trainer_of("window", OPTIMIZERS["adam"], schedule=AlternateSteps(1, 1), backward="autograd")
    frozen = trainer.heads.linear("wide").weight.requires_grad_(False)
    before = frozen.detach().clone()
    run = trainer.begin(batches("window"), epochs=3)
    for _ in range(3 * PER_EPOCH):
        run.step()
        assert not frozen.requires_grad
        assert trainer.heads.linear("main").weight.requires_grad
    assert torch.equal(frozen, before)


class Lengths(OpenTask):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, features, targets, mask):
        del mask
        return ((features.norm(dim=-1) * self.scale - targets) ** 2).mean()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_of_their_own_loaders_and_micro_batches(accumulate):
    torch.manual_seed(0)
    heads = MultiTaskHeads(4, {"a": Classification(3), "length": Lengths()}, "a")
    trainer = Trainer(
        nn.Linear(3, 4), heads, schedule=Alternate(1, 1), accumulate=accumulate, clip_norm=1.0, lr=0.05
    )
    a = [(torch.randn(8, 3), {"a": torch.randint(0, 3, (8,))}) for _ in range(4)]
    length = [(torch.randn(8, 3), {"length": torch.rand(8)}) for _ in range(4)]
    run = trainer.begin({"a": a, "length": length}, epochs=2)
    own = [p.detach().clone() for p in heads.parameters()]
    for _ in range(run.steps_per_epoch):
        run.step()
    assert all(torch.equal(p, then) for p, then in zip(heads.parameters(), own, strict=True))
    shared = [p.detach().clone() for p in trainer.encoder.parameters()]
    for _ in range(run.steps_per_epoch):
        run.step()
    assert all(torch.equal(p, then) for p, then in zip(trainer.encoder.parameters(), shared, strict=True))
    assert not any(torch.equal(p, then) for p, then in zip(heads.parameters(), own, strict=True))


class NoParameters(OpenTask):
    """A loss that only the features can lower."""

    def loss(self, features, targets, mask):
        del targets, mask
        return features.square().mean()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_batch_whose_tasks_have_nothing_of_their_own_moves_nothing_in_a_task_turn(precision):
    torch.manual_seed(0)
    heads = MultiTaskHeads(4, {"a": Classification(3), "small": NoParameters()}, "a")
    trainer = Trainer(
        nn.Linear(3, 4), heads, schedule=Alternate(1, 1), precision=precision, lr=0.05, clip_norm=1.0
    )
    a = (torch.randn(8, 3), {"a": torch.randint(0, 3, (8,))})
    run = trainer.begin([a, (torch.randn(8, 3), {"small": torch.zeros(8)})], epochs=2)
    for _ in range(3):
        run.step()
    before = parameters_of(trainer)
    losses = run.step()
    assert losses[1] > 0
    assert all(torch.equal(parameters_of(trainer)[name], then) for name, then in before.items())

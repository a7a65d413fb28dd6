"""What is frozen in a step of one kernel call stays, all else moves as beside it, and nothing is computed for it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from mt2st_fast import (
    SGD,
    AdaTask,
    BagEncoder,
    Classification,
    InputError,
    LazyAdam,
    MultiTask,
    MultiTaskHeads,
    RowwiseAdagrad,
    SingleTask,
    Switch,
    Trainer,
)
from mt2st_fast.kernels import EVERYTHING, NOTHING, Moves
from mt2st_fast.kernels.step.dense_model import HEAD, LAYER
from mt2st_fast.training.engines.kernel_calls.bag_training import BagTraining
from mt2st_fast.training.engines.kernel_calls.text_training import TextTraining
from tests.training.engines.kernel_calls import test_bag_training as bag
from tests.training.engines.kernel_calls import test_text_training as window

OPTIMIZERS = {"adam": LazyAdam, "adagrad": RowwiseAdagrad, "sgd": SGD}
SOME_ROWS = torch.arange(window.V) % 3 > 0


def freeze(encoder, heads, optimizer, what):
    """By names: of parameters, "rows", and "head" of the main task."""
    for name in what:
        if name == "rows":
            optimizer.freeze_rows(encoder.table, SOME_ROWS[: len(encoder.table)])
        elif name == "head":
            heads.linear(heads.main).requires_grad_(False)
        else:
            encoder.get_parameter(name).requires_grad_(False)


def two_tasks(schedule, backward, frozen):
    """A trainer of bags and tasks a and b, with these modules frozen."""
    torch.manual_seed(0)
    encoder = BagEncoder(9, 4, sparse=True)
    heads = MultiTaskHeads(4, {"a": Classification(3), "b": Classification(2)}, "a")
    for name in frozen:
        (encoder if name == "encoder" else heads.linear(name)).requires_grad_(False)
    return Trainer(
        encoder, heads, schedule=schedule, optimizer=lambda p: SGD(p, lr=0.1), device="cpu", log_every=1,
        backward=backward,
    )  # fmt: skip


def bag_of(**targets):
    return (torch.arange(9), torch.tensor([0, 4, 9])), {n: torch.tensor(t) for n, t in targets.items()}


@pytest.mark.parametrize("backward", ["auto", "autograd"])
@pytest.mark.parametrize("schedule", [MultiTask(), AdaTask()])
def test_a_batch_that_reaches_only_what_is_frozen_moves_nothing(schedule, backward):
    trainer = two_tasks(schedule, backward, frozen=["encoder", "b"])
    run = trainer.begin([bag_of(b=[0, 1]), bag_of(a=[0, 2], b=[0, 1])], epochs=1)
    before = [p.detach().clone() for p in trainer.heads.parameters()]
    assert run.step()[1] > 0
    assert all(map(torch.equal, before, trainer.heads.parameters()))
    run.step()
    moved = [not torch.equal(*pair) for pair in zip(before, trainer.heads.parameters(), strict=True)]
    assert moved == [True, True, False, False]


@pytest.mark.parametrize("backward", ["auto", "autograd"])
@pytest.mark.parametrize(("schedule", "step"), [(Switch(at_step=1), 1), (SingleTask(), 0)])
def test_a_phase_in_which_nothing_would_train_is_refused(schedule, step, backward):
    trainer = two_tasks(schedule, backward, frozen=["encoder", "a"])
    message = f"from step {step} on only a would train, but every parameter of the encoder and of these tasks"
    with pytest.raises(InputError, match=message):
        trainer.fit([bag_of(a=[0, 2], b=[0, 1])] * 2, epochs=1)


# --- what is frozen, and sides of the model that take turns ----------------------------------------------------

TURNS = {"all": EVERYTHING, "shared": Moves(heads=False), "tasks": Moves(shared=False)}


def assert_that_moves_what_autograd_moves(make, step, steps_by_autograd, what, turn):
    """make: encoder, heads and optimizer; step: of one kernel call, made of these and of what moves."""
    found = []
    for fused in (False, True):
        encoder, heads, optimizer = make()
        parameters = [*encoder.parameters(), *heads.parameters()]
        before = window.parameters(encoder, heads)
        freeze(encoder, heads, optimizer, what)
        if fused:
            losses = step(encoder, heads, optimizer, TURNS[turn])
        else:
            if turn != "all":  # the side that has no turn holds still
                (heads if turn == "shared" else encoder).requires_grad_(False)
            losses = steps_by_autograd(encoder, heads, optimizer)
            still = [not p.requires_grad for p in parameters]
        after = window.parameters(encoder, heads)
        assert list(map(torch.equal, before, after)) == still
        if "rows" in what:
            assert torch.equal(*(table[SOME_ROWS[: len(table)]] for table in (before[0], after[0])))
        found.append([losses, *after])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("what", "turn"),
    [
        (("table",), "all"), (("hidden.weight",), "all"), (("hidden.bias",), "all"), (("rows",), "all"),
        (("hidden.weight", "hidden.bias"), "all"), (("head",), "all"), (("rows", "hidden.weight"), "all"),
        (("table", "hidden.weight", "hidden.bias"), "all"), (("rows", "head"), "all"), (("table", "head"), "all"),
        (("table",), "shared"), (("hidden.weight",), "shared"), (("hidden.weight", "hidden.bias"), "shared"),
        (("table", "hidden.weight"), "shared"), (("rows", "head"), "shared"), (("table", "head"), "tasks"),
        (("hidden.weight", "head"), "tasks"), (("rows",), "tasks"),
    ],
    ids=str,
)  # fmt: skip
def test_a_window_step_moves_what_is_not_frozen_as_autograd_does(what, turn, optimizer):
    weights = torch.tensor([1.0, 0.5, 0.25])
    batches = [window.batch(150, seed=seed) for seed in range(4)]

    def make():
        encoder, heads = window.model()
        return encoder, heads, window.optimizer_of(partial(OPTIMIZERS[optimizer], lr=0.01), encoder, heads)

    def step(encoder, heads, stepping, part):
        training = TextTraining(encoder, heads, stepping)
        return torch.stack([training(types, targets, weights, part) for types, targets in batches])

    by_autograd = partial(window.eager_steps, batches=batches, weights=weights)
    assert_that_moves_what_autograd_moves(make, step, by_autograd, what, turn)


@pytest.mark.parametrize("make", [SGD, RowwiseAdagrad])
@pytest.mark.parametrize(
    ("what", "turn"),
    [
        (("table",), "all"), (("rows",), "all"), (("head",), "all"), (("rows", "head"), "all"),
        (("rows", "head"), "shared"), (("rows",), "tasks"), (("table",), "tasks"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("B", "most_words"), [(37, 30), (700, 20), (333, 100)])
def test_a_bag_step_moves_what_is_not_frozen_as_autograd_does(what, turn, make, B, most_words):
    inputs, targets = bag.batch(B, ("topic",), most_words=most_words)

    def step(encoder, heads, optimizer, part):
        return BagTraining(encoder, heads, optimizer)(inputs, targets, torch.ones(1), part)[None]

    assert_that_moves_what_autograd_moves(
        partial(bag.model, tasks=("topic",), make=make),
        step,
        partial(window.eager_steps, batches=[(inputs, targets)], weights=torch.ones(1)),
        what,
        turn,
    )


@pytest.mark.parametrize(
    ("what", "moves"),
    [
        ((), NOTHING),
        (("head",), TURNS["tasks"]),
        (("table", "hidden.weight", "hidden.bias"), TURNS["shared"]),
    ],
)
def test_a_step_that_moves_nothing_gives_its_losses(what, moves):
    (types, targets), weights = window.batch(150), torch.ones(1)
    targets = {"main": targets["main"]}
    encoder, heads = window.model()
    heads.set_active(["main"])
    optimizer = window.optimizer_of(lambda p: LazyAdam(p, lr=0.01), encoder, heads)
    freeze(encoder, heads, optimizer, what)
    training, before = TextTraining(encoder, heads, optimizer), window.parameters(encoder, heads)
    first = training(types, targets, weights, moves)
    assert torch.equal(first, training(types, targets, weights, moves))
    assert all(map(torch.equal, before, window.parameters(encoder, heads)))
    torch.testing.assert_close(first.sum(), heads(encoder(types), targets).total, rtol=1e-5, atol=1e-6)


# --- what is computed ------------------------------------------------------------------------------------

MARK = np.float32(12345)  # no NaN: what is computed from one is one, and looks as if it had been left alone


def array_of(buffers, name):
    return getattr(buffers if hasattr(buffers, name) else buffers.dense, name)


def mark(buffers, names):
    for name in names:
        array_of(buffers, name)[...] = MARK


def is_marked(buffers, name):
    return bool((array_of(buffers, name) == MARK).all())


@pytest.mark.parametrize(
    ("what", "untouched", "made"),
    [
        (("table",), ("d_x", "d_vectors", "backward"), ("d_a", "d_hidden_bias")),
        (
            ("table", "hidden.weight", "hidden.bias"),
            ("d_x", "d_vectors", "backward", "d_a", "d_hidden_bias"),
            ("d_head_bias",),
        ),
    ],
)
def test_nothing_is_computed_for_a_frozen_table_and_layer(what, untouched, made):
    encoder, heads = window.model()
    optimizer = window.optimizer_of(lambda p: LazyAdam(p, lr=0.01), encoder, heads)
    freeze(encoder, heads, optimizer, what)
    training = TextTraining(encoder, heads, optimizer)
    training(*window.batch(), torch.ones(3))
    (model,) = training._models
    mark(model.memory.buffers, (*untouched, *made))
    training(*window.batch(seed=1), torch.ones(3))
    buffers = model.memory.buffers
    assert [name for name in untouched if not is_marked(buffers, name)] == []
    assert [name for name in made if is_marked(buffers, name)] == []
    kinds = {int(piece["of"]) for piece in model.moving(EVERYTHING).dense.pieces}
    # Gradients are made of these alone.
    assert kinds == ({*LAYER, *HEAD} if len(what) == 1 else set(HEAD))


def test_frozen_rows_are_not_looked_at_and_types_of_them_alone_have_no_gradient():
    encoder, heads = window.model()
    optimizer = window.optimizer_of(lambda p: LazyAdam(p, lr=0.01), encoder, heads)
    types, targets = window.batch()
    of_type = encoder.rows_of_type[5]
    frozen = torch.zeros(window.V, dtype=torch.bool)
    frozen[of_type[of_type >= 0].long()] = True
    frozen[::2] = True
    optimizer.freeze_rows(encoder.table, frozen)
    training = TextTraining(encoder, heads, optimizer)
    types[0, 0] = 5
    training(types, targets, torch.ones(3))
    (model,) = training._models
    index, buffers = model.memory.batch, model.memory.buffers
    mark(buffers, ("d_vectors",))
    training(types, targets, torch.ones(3))
    used = torch.from_numpy(index.rows[: index.counts[1]].copy()).long()
    every = encoder.rows_of_type[types.unique()[1:].long()].unique()
    assert sorted(used.tolist()) == [r for r in every.tolist() if r >= 0 and not frozen[r]]
    number = int(index.slots[0])
    assert (buffers.d_vectors[number] == MARK).all()
    assert not (buffers.d_vectors[: index.counts[0]] == MARK).all()


def test_a_frozen_head_beside_a_trained_one_goes_the_other_way():
    encoder, heads, optimizer = bag.model(tasks=("topic", "tone"))
    heads.linear("tone").weight.requires_grad_(False)
    reason = "some heads are frozen while others are trained"
    assert BagTraining.obstacle(encoder, heads, optimizer) == reason
    heads.linear("tone").weight.requires_grad_(True)
    training = BagTraining(encoder, heads, optimizer)
    assert training.declines() is None
    heads.linear("tone").weight.requires_grad_(False)
    assert training.declines() == reason


def test_what_is_frozen_and_trained_again_between_steps_is_followed():
    encoder, heads = window.model()
    training = TextTraining(encoder, heads, window.optimizer_of(lambda p: SGD(p, lr=0.1), encoder, heads))
    moved = []
    for trained in (True, False, True):
        encoder.hidden.weight.requires_grad_(trained)
        assert training.declines() is None
        before = encoder.hidden.weight.detach().clone()
        training(*window.batch(), torch.ones(3))
        moved.append(not torch.equal(before, encoder.hidden.weight))
    assert moved == [True, False, True]


@pytest.mark.parametrize("make", OPTIMIZERS.values())
def test_frozen_rows_are_kept_with_the_state(make):
    encoder, heads = window.model()
    optimizer = window.optimizer_of(lambda p: make(p, lr=0.01), encoder, heads)
    assert optimizer.frozen_rows(encoder.table) is None
    optimizer.freeze_rows(encoder.table, SOME_ROWS)
    other = window.optimizer_of(lambda p: make(p, lr=0.01), encoder, heads)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.frozen_rows(encoder.table), SOME_ROWS)
    other.freeze_rows(encoder.table, None)
    assert other.frozen_rows(encoder.table) is None
    with pytest.raises(ValueError, match=r"frozen rows must be \(500,\) bool, not \(3,\) torch.bool"):
        optimizer.freeze_rows(encoder.table, torch.ones(3, dtype=torch.bool))

"""A whole training step in one kernel call, against the same step in float64, and where the trainer takes it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from mt2st_fast import (
    SGD,
    BagEncoder,
    Classification,
    LazyAdam,
    MultiLabel,
    MultiTaskHeads,
    Regression,
    RowwiseAdagrad,
    Trainer,
)
from mt2st_fast.kernels import (
    BagModel,
    HeadLayout,
    HeadSpec,
    Kind,
    RowRule,
    RowState,
    Trained,
    TrainedHead,
    bag_step,
    prepare_bags,
)
from mt2st_fast.kernels.bags.rules import SGD as SGD_RULE
from mt2st_fast.kernels.machine.team import PARALLEL_FLOATS
from mt2st_fast.training.callbacks.callback import Callback
from mt2st_fast.training.engines.kernel_calls.bag_training import BagTraining

TASKS = {
    "topic": Classification(7, label_smoothing=0.1),
    "tone": Classification(2),
    "tags": MultiLabel(3),
    "stars": Regression(1),
}
V = 300


def model(dim=100, mode="mean", bias=True, tasks=("topic",), make=RowwiseAdagrad, lr=0.1):
    torch.manual_seed(0)
    encoder = BagEncoder(V, dim, mode=mode, sparse=True)
    heads = MultiTaskHeads(dim, {name: TASKS[name] for name in tasks}, tasks[0], bias=bias)
    optimizer = make([*encoder.parameters(), *heads.parameters()], lr=lr)
    return encoder, heads, optimizer


def batch(B, tasks, seed=0, most_words=30):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, most_words, (B,), generator=generator)  # some bags are empty
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.randint(-1, V, (int(starts[-1]),), generator=generator, dtype=torch.int32)
    ids[torch.rand(len(ids), generator=generator) < 0.3] = 5  # a frequent word
    targets = {}
    for name in tasks:
        head = TASKS[name].head
        if head.kind is Kind.SOFTMAX:
            target = torch.randint(0, head.size, (B,), generator=generator)
            target[torch.rand(B, generator=generator) < 0.2] = -100
        else:
            target = torch.rand(B, head.size, generator=generator).round(decimals=1)
            target[torch.rand(B, generator=generator) < 0.2] = float("nan")
        targets[name] = target
    return (ids, starts), targets


def parameters(encoder, heads):
    return [p.detach().clone() for module in (encoder, heads) for p in module.parameters()]


def stepped_by_torch(encoder, heads, inputs, targets, weights, optimizer, dtype):
    """Losses, parameters and sums after a step of plain torch in `dtype`."""
    encoder, heads = copy.deepcopy(encoder).to(dtype), copy.deepcopy(heads).to(dtype)
    for module in (encoder, heads):
        module.backend = "reference"
    encoder.sparse = False
    out = heads(encoder(inputs), {k: t.to(dtype) if t.is_floating_point() else t for k, t in targets.items()},
                weights.to(dtype))  # fmt: skip
    out.total.backward()
    group = optimizer.param_groups[0]
    moved = []
    for parameter in [*encoder.parameters(), *heads.parameters()]:
        gradient = parameter.grad
        rate = torch.full(parameter.shape[:1], group["lr"], dtype=dtype)
        if isinstance(optimizer, RowwiseAdagrad):
            sums = gradient.reshape(len(gradient), -1).square().mean(1)
            rate = rate / (sums.sqrt() + group["eps"])
        moved.append(parameter.detach() - rate.reshape(-1, *[1] * (parameter.dim() - 1)) * gradient)
    return out.losses, moved


@pytest.mark.parametrize("make", [SGD, RowwiseAdagrad])
@pytest.mark.parametrize("mode", ["mean", "sum"])
@pytest.mark.parametrize(
    ("dim", "B", "tasks", "most_words"),
    [
        (3, 40, ("topic",), 30),
        (16, 1, ("topic", "tone"), 30),
        (100, 37, ("tone", "topic", "tags", "stars"), 30),
        (100, 700, ("topic", "tone", "stars"), 20),  # in parallel
        (100, 333, ("topic", "tone", "stars"), 100),  # in parallel, and threads pool rows of their own
        (128, 65, ("tags",), 30),
        (300, 50, ("topic", "tone"), 30),
        (300, 150, ("topic",), 80),
    ],
)
def test_a_step_is_as_exact_as_that_of_torch(make, mode, dim, B, tasks, most_words):
    encoder, heads, optimizer = model(dim, mode, tasks=tasks, make=make, bias="stars" in tasks)
    inputs, targets = batch(B, tasks, most_words=most_words)
    weights = torch.linspace(1.0, 0.3, len(tasks))
    exact_losses, exact = stepped_by_torch(encoder, heads, inputs, targets, weights, optimizer, torch.float64)
    _, of_torch = stepped_by_torch(encoder, heads, inputs, targets, weights, optimizer, torch.float32)
    before = parameters(encoder, heads)
    losses = BagTraining(encoder, heads, optimizer)(inputs, targets, weights)
    torch.testing.assert_close(losses.double(), exact_losses.detach(), rtol=1e-5, atol=1e-6)
    for ours, theirs, truth, old in zip(parameters(encoder, heads), of_torch, exact, before, strict=True):
        moved = (truth - old).abs().max()
        assert (ours - truth).abs().max() <= 2 * (theirs - truth).abs().max() + 1e-5 * moved + 1e-7
        assert torch.equal(ours, old) == (moved == 0)


@pytest.mark.parametrize("most_words", [20, 100])
def test_the_same_steps_give_the_same_bits(most_words):
    found = []
    for _ in range(2):
        encoder, heads, optimizer = model(tasks=("topic", "tone"))
        training = BagTraining(encoder, heads, optimizer)
        for seed in range(3):
            training(*batch(600, ("topic", "tone"), seed, most_words), torch.ones(2))
        found.append(parameters(encoder, heads))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_table_moves_the_same_on_any_number_of_threads():
    """Where threads do not pool rows of their own."""
    threads = torch.get_num_threads()
    found = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            encoder, heads, optimizer = model()
            BagTraining(encoder, heads, optimizer)(*batch(600, ("topic",), most_words=20), torch.ones(1))
            found.append(encoder.table.detach().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_absent_and_weightless_tasks_stay_as_they_are():
    tasks = ("topic", "tone", "tags")
    encoder, heads, optimizer = model(tasks=tasks)
    inputs, targets = batch(50, tasks)
    del targets["tone"]
    before = {name: heads.linear(name).weight.detach().clone() for name in tasks}
    losses = BagTraining(encoder, heads, optimizer)(inputs, targets, torch.tensor([1.0, 1.0, 0.0]))
    assert losses[0] > 0
    assert losses[1] == 0
    assert not torch.equal(heads.linear("topic").weight, before["topic"])
    for name in ("tone", "tags"):
        assert torch.equal(heads.linear(name).weight, before[name])


def test_a_batch_without_any_label_moves_nothing():
    encoder, heads, optimizer = model()
    inputs, targets = batch(20, ("topic",))
    before = parameters(encoder, heads)
    losses = BagTraining(encoder, heads, optimizer)(
        inputs, {"topic": torch.full_like(targets["topic"], -100)}, torch.ones(1)
    )
    assert losses.tolist() == [0.0]
    assert all(torch.equal(a, b) for a, b in zip(parameters(encoder, heads), before, strict=True))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ids, starts, target: ids.__setitem__(3, V), f"id {V} at position 3 lies outside"),
        (lambda ids, starts, target: ids.__setitem__(0, -2), "id -2 at position 0 lies outside"),
        (lambda ids, starts, target: starts.__setitem__(1, -4), "starts must ascend"),
        (lambda ids, starts, target: target.__setitem__(2, 7), r"targets of topic: 7 lies outside \[0, 7\)"),
    ],
)
def test_bad_batches_are_refused_with_nothing_moved(spoil, message):
    encoder, heads, optimizer = model()
    (ids, starts), targets = batch(50, ("topic",))
    spoil(ids, starts, targets["topic"])
    training = BagTraining(encoder, heads, optimizer)
    before = parameters(encoder, heads)
    with pytest.raises(ValueError, match=message):
        training((ids, starts), targets, torch.ones(1))
    assert all(torch.equal(a, b) for a, b in zip(parameters(encoder, heads), before, strict=True))


def test_a_tensor_of_two_rows_is_no_pair():
    encoder, heads, optimizer = model()
    bags = torch.tensor([[0, 1, 2], [0, 1, 3]])
    with pytest.raises(ValueError, match=r"not one tensor \(2, 3\)"):
        BagTraining(encoder, heads, optimizer)(bags, {"topic": torch.tensor([0, 1])}, torch.ones(1))


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("B", "most_words"), [(37, 30), (900, 20), (300, 100)])
def test_prepared_bags_hold_every_id_by_bag_and_by_row(n_threads, B, most_words):
    (ids, starts), _ = batch(B, (), most_words=most_words)
    expected = [sorted(bag[bag >= 0].tolist()) for bag in torch.tensor_split(ids, starts[1:-1])]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        bags = prepare_bags(torch.zeros(V, 100), ids, starts)
    finally:
        torch.set_num_threads(threads)
    n_parts = n_threads if len(ids) * 100 >= PARALLEL_FLOATS else 1
    assert len(bags.parts) == n_parts + 1
    assert len(bags.starts) == (n_parts if len(ids) >= 8 * B * n_parts else 1)
    by_bag, by_row = [[] for _ in range(B)], [[] for _ in range(B)]
    for starts_of_pool in bags.starts:
        for bag in range(B):
            of_bag = bags.ids[starts_of_pool[bag] : starts_of_pool[bag + 1]]
            by_bag[bag] += of_bag[of_bag >= 0].tolist()
    for u, row in enumerate(bags.rows.tolist()):
        for bag in bags.bags[bags.begins[u] : bags.begins[u + 1]].tolist():
            by_row[bag].append(row)
    assert [sorted(bag) for bag in by_bag] == [sorted(bag) for bag in by_row] == expected
    assert len(set(bags.rows.tolist())) == len(bags.rows) == bags.parts[-1]
    of_part = {
        row: p for p in range(n_parts) for row in bags.rows[bags.parts[p] : bags.parts[p + 1]].tolist()
    }
    blocks = {(row // 16, p) for row, p in of_part.items() if row >= 64}
    assert len(blocks) == len({block for block, _ in blocks})
    if len(bags.starts) > 1:
        for p, starts_of_pool in enumerate(bags.starts):
            pool = bags.ids[starts_of_pool[0] : starts_of_pool[-1]]
            assert {of_part[row] for row in pool.tolist()} == {p}


@pytest.mark.parametrize(
    ("B", "V", "n_weights", "message"),
    [
        (19, 7, 1, r"targets of task 0 have shape \(19,\), but there are 20 bags"),
        (20, 7, 2, "there are 1 heads, but 1 targets and 2 weights"),
        (20, 8, 1, "prepared for 8 rows, but the table has 7"),
    ],
)
def test_batches_that_do_not_fit_are_refused(B, V, n_weights, message):
    bags = prepare_bags(torch.zeros(V, 5), torch.zeros(20, dtype=torch.int32), torch.arange(21))
    targets = [torch.zeros(B, dtype=torch.int64)]
    with pytest.raises(ValueError, match=message):
        bag_step(small_model(C=3), [RowRule(SGD_RULE, 0.1)], bags, targets, torch.ones(n_weights))


def small_model(C, n_heads=1):
    table = Trained(torch.zeros(7, 5), RowState(), rule=0)
    head = TrainedHead(Trained(torch.zeros(C, 5), RowState(), rule=0), None)
    return BagModel(table, [head] * n_heads, HeadLayout((HeadSpec(Kind.SOFTMAX, 3),)))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"the weight of task 0 is \(4, 5\), not \(3, 5\)"):
        small_model(C=4)
    with pytest.raises(ValueError, match="layout has 1 heads, not 2"):
        small_model(C=3, n_heads=2)


def dropout(encoder, heads):
    encoder.dropout.p = 0.5


def frozen(encoder, heads):
    encoder.requires_grad_(False)
    heads.requires_grad_(False)


def hook(encoder, heads):
    encoder.register_forward_hook(lambda *_: None)


def parameter_hook(encoder, heads):
    heads.linear("topic").weight.register_hook(lambda gradient: gradient)


def reference(encoder, heads):
    heads.backend = "reference"


@pytest.mark.parametrize(
    ("spoil", "make", "reason"),
    [
        (dropout, SGD, "dropout"),
        (frozen, SGD, "every parameter is frozen"),
        (hook, SGD, "hooks"),
        (parameter_hook, SGD, "hooks"),
        (reference, SGD, "backend reference"),
        (lambda encoder, heads: None, LazyAdam, "its kernel does not support weight_decay"),
        (
            lambda encoder, heads: None,
            partial(LazyAdam, weight_decay=0.0),
            "LazyAdam steps dense parameters by another rule",
        ),
    ],
)
def test_what_the_kernel_cannot_do_is_an_obstacle(spoil, make, reason):
    encoder, heads, optimizer = model(make=make)
    spoil(encoder, heads)
    with pytest.raises(ValueError, match=reason):
        BagTraining(encoder, heads, optimizer)


def test_the_environment_can_ask_for_another_backend(monkeypatch):
    monkeypatch.setenv("MT2ST_BACKEND", "reference")
    assert "reference" in BagTraining.obstacle(*model())


def test_a_dense_table_is_an_obstacle():
    encoder, heads, optimizer = model()
    encoder.sparse = False
    assert "not row-sparse" in BagTraining.obstacle(encoder, heads, optimizer)


def test_another_precision_is_honoured():
    encoder, heads, _ = model()
    trainer = Trainer(
        encoder, heads, optimizer=lambda p: RowwiseAdagrad(p, lr=0.1), backward="fused", precision="bfloat16",
        device="cpu",
    )  # fmt: skip
    trainer.fit([batch(50, ("topic",))], epochs=1)
    assert trainer.history.phases[-1].engine == "eager"


@pytest.mark.parametrize("B", [37, 700])
def test_hits_are_those_of_the_heads(B):
    tasks = ("topic", "tone", "tags")
    encoder, heads, _ = model(tasks=tasks)
    (ids, starts), targets = batch(B, tasks)
    weights = torch.ones(3)
    expected = heads(encoder((ids, starts)), targets, weights).correct

    def trained(parameter):
        return Trained(parameter.detach(), RowState(), rule=0)

    of_heads = [TrainedHead(trained(heads.linear(t).weight), trained(heads.linear(t).bias)) for t in tasks]
    layout = HeadLayout(tuple(TASKS[t].head for t in tasks), tasks)
    model_ = BagModel(trained(encoder.table), of_heads, layout)
    bags = prepare_bags(encoder.table, ids, starts)
    found = bag_step(model_, [RowRule(SGD_RULE, 0.1)], bags, [targets[t] for t in tasks], weights)
    assert found.correct.tolist() == expected.tolist()
    assert min(found.correct.tolist()) > 0


def test_encoders_of_several_rows_a_type_take_the_other_way():
    rows = torch.randint(1, 50, (V, 3))
    encoder = BagEncoder(V, 8, rows_of_type=rows, num_rows=50, sparse=True)
    heads = MultiTaskHeads(8, {"topic": TASKS["topic"]}, "topic")
    optimizer = SGD([*encoder.parameters(), *heads.parameters()])
    assert "several rows" in BagTraining.obstacle(encoder, heads, optimizer)


class FreezesAt(Callback):
    def __init__(self, step: int, parameter: nn.Parameter) -> None:
        self.step, self.parameter = step, parameter

    def on_step(self, trainer: Trainer) -> None:
        self.parameter.requires_grad_(trainer.step < self.step)


def test_what_a_callback_freezes_stays():
    encoder, heads, _ = model()
    weight = heads.linear("topic").weight
    values = []

    class Watches(Callback):
        def on_step(self, trainer: Trainer) -> None:
            values.append(weight.detach().clone())

    trainer = Trainer(
        encoder, heads, optimizer=lambda p: RowwiseAdagrad(p, lr=0.1), backward="fused", device="cpu",
        callbacks=[FreezesAt(2, weight), Watches()],
    )  # fmt: skip
    trainer.fit([batch(50, ("topic",), seed) for seed in range(4)], epochs=1)
    assert not torch.equal(values[0], values[1])
    assert torch.equal(values[1], values[3])

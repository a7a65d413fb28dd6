"""One kernel call a step for bags and for windows without a hidden layer: what autograd and the optimizer do."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from mt2st_fast import BagEncoder, Classification, MultiTaskHeads, WindowEncoder
from mt2st_fast.kernels.step.on_numba.dropout import factors_of
from mt2st_fast.kernels.step.on_numba.text_step import drop_of
from mt2st_fast.kernels.step.text import Dropout
from mt2st_fast.training.engines.kernel_calls.text_gradients import TextGradients
from mt2st_fast.training.engines.kernel_calls.text_training import TextTraining
from mt2st_fast.training.optimizers.row_sparse import SGD
from tests.training.engines.kernel_calls.test_text_training import (
    KINDS,
    OPTIMIZERS,
    TASKS,
    M,
    T,
    V,
    assert_alike,
    assert_steps_are_those_of_autograd,
    batch,
    by,
    eager_steps,
    model,
    parameters,
)

WEIGHTS = torch.tensor([1.0, 0.5, 0.25])


def rows_of_types():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(1, V, (T, M), generator=generator)
    rows[torch.rand(T, M, generator=generator) < 0.3] = 0  # the padding row
    rows[7] = 0  # a type without any row
    return rows


def bag_model(mode="mean", tasks=TASKS, *, dropout=0.0, dim=24, subwords=True):
    torch.manual_seed(0)
    encoder = BagEncoder(
        T, dim, mode=mode, dropout=dropout, sparse=True, rows_of_type=rows_of_types() if subwords else None,
        num_rows=V if subwords else None,
    )  # fmt: skip
    return encoder, MultiTaskHeads(dim, tasks, "main")


def window_model(tasks=TASKS, *, dropout=0.0, dim=24):
    torch.manual_seed(0)
    encoder = WindowEncoder(
        T, dim, window=1, hidden=None, dropout=dropout, sparse=True, rows_of_type=rows_of_types(), num_rows=V
    )
    return encoder, MultiTaskHeads(3 * dim, tasks, "main")


def bags(N=70, tasks=TASKS, seed=0, longest=30):
    """Bags of 0 to `longest` words, some of them none, and every third without a word."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (N,), generator=generator)
    lengths[::3] = 0
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    types = torch.randint(-1, T, (int(starts[-1]),), generator=generator, dtype=torch.int32)
    return (types, starts), batch(N, tasks, seed)[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("subwords", [True, False], ids=["subwords", "words"])
@pytest.mark.parametrize(("mode", "tasks"), [("mean", TASKS), ("sum", KINDS)], ids=["mean", "sum"])
def test_bags_step_as_by_autograd(optimizer, subwords, mode, tasks):
    # Each larger than all before.
    batches = [bags(20 + 30 * seed, tasks, seed, 5 + 20 * seed) for seed in range(4)]
    made = partial(bag_model, mode, tasks, subwords=subwords)
    assert_steps_are_those_of_autograd(made, by(optimizer), batches, WEIGHTS)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_windows_without_a_hidden_layer_step_as_by_autograd(optimizer):
    batches = [batch(100, seed=seed, width=3) for seed in range(3)]
    assert_steps_are_those_of_autograd(window_model, by(optimizer), batches, WEIGHTS)


# Vectors of 4, 8 and 16 numbers, with and without a rest; rows in a tile, in two, and in a half more than the other.
@pytest.mark.parametrize("dim", [1, 3, 16, 17, 33])
@pytest.mark.parametrize("N", [1, 49, 145])
@pytest.mark.parametrize("types", [{-1}, {0}, {-1, 0}], ids=["no word", "a word", "a word or none"])
def test_a_table_of_one_row_steps_as_by_autograd(dim, N, types):
    generator = torch.Generator().manual_seed(N)
    of_one = torch.tensor(sorted(types), dtype=torch.int32)[
        torch.randint(0, len(types), (N, 3), generator=generator)
    ]
    batches = [(of_one, batch(N, seed=seed)[1]) for seed in range(2)]

    def made():
        torch.manual_seed(0)
        return WindowEncoder(1, dim, window=1, hidden=9, sparse=True), MultiTaskHeads(9, TASKS, "main")

    assert_steps_are_those_of_autograd(made, by("adam"), batches, WEIGHTS)


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_long_biases_take_no_memory_for_the_sums_of_weights(name):
    encoder, heads = (
        BagEncoder(9, 16, sparse=True),
        MultiTaskHeads(16, {"main": Classification(60_000)}, "main"),
    )
    training = TextTraining(encoder, heads, by(name)(encoder, heads))
    training((torch.arange(4), torch.tensor([0, 1, 4])), {"main": torch.tensor([7, 59_999])}, torch.ones(1))
    (model,) = training._models
    assert model.memory.buffers.dense.sums.nbytes < 10 * heads.linear("main").weight.nbytes


class Times(nn.Module):
    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return x * self.factors


MODELS = {  # and their batches of N rows
    model: lambda N, **more: batch(N, **more),
    window_model: lambda N, **more: batch(N, width=3, **more),
    bag_model: lambda N, **more: bags(N, **more),
}


# A vector holds 7 numbers with room to spare, and 24 take more than one: the last one overlaps the one before it.
@pytest.mark.parametrize("dim", [7, 24])
@pytest.mark.parametrize("made", MODELS)
def test_dropout_is_a_mask_by_place_and_its_gradient_goes_through_it(made, dim, monkeypatch):
    inputs, targets = MODELS[made](90)
    encoder, heads = made(dropout=0.3, dim=dim)
    training = TextTraining(encoder, heads, by("sgd")(encoder, heads))
    monkeypatch.setattr(training, "_dropout", lambda: Dropout(0.3, 12345))
    training(inputs, targets, WEIGHTS)
    found, width = parameters(encoder, heads), encoder.dim * getattr(encoder, "width", 1)
    drop = drop_of(Dropout(0.3, 12345))
    factors = factors_of(90, width, drop.key, drop.threshold, drop.kept)
    encoder, heads = made(dim=dim)
    encoder.dropout = Times(torch.from_numpy(factors))
    eager_steps(encoder, heads, by("sgd")(encoder, heads), [(inputs, targets)], WEIGHTS)
    assert_alike(found, parameters(encoder, heads))


@pytest.mark.parametrize("frozen", ["table", "head"])
def test_what_is_frozen_stays(frozen):
    encoder, heads = bag_model()
    part = encoder.table if frozen == "table" else heads.linear("wide").weight
    part.requires_grad_(False)
    before = parameters(encoder, heads)
    training = TextTraining(encoder, heads, by("adam")(encoder, heads))
    training(*bags(), WEIGHTS)
    moved = [not torch.equal(a, b) for a, b in zip(before, parameters(encoder, heads), strict=True)]
    assert moved == [p is not part for p in (*encoder.parameters(), *heads.parameters())]


def test_gradients_of_bags_are_those_of_autograd():
    inputs, targets = bags()
    encoder, heads = bag_model()
    heads(encoder(inputs), targets, WEIGHTS).total.backward()
    wanted = [p.grad.to_dense() for p in (*encoder.parameters(), *heads.parameters())]
    encoder, heads = bag_model()
    made = TextGradients(encoder, heads, SGD([*encoder.parameters(), *heads.parameters()], lr=1.0))
    made(inputs, targets, WEIGHTS)
    made.hand_out()
    assert_alike([p.grad.to_dense() for p in (*encoder.parameters(), *heads.parameters())], wanted)


@pytest.mark.parametrize("made", [bag_model, window_model])
def test_features_and_hits_are_those_of_the_modules(made, monkeypatch):
    monkeypatch.setattr("mt2st_fast.kernels.step.on_numba.text_step.LEAST_ROWS", 100)
    monkeypatch.setattr("mt2st_fast.kernels.step.on_numba.text_step.MOST_FLOATS", 1)  # in parts of 100 rows
    encoder, heads = made(dropout=0.3)
    training = TextTraining(encoder, heads, by("adam")(encoder, heads))
    training(*MODELS[made](20), WEIGHTS)
    inputs, targets = MODELS[made](250, seed=5)
    encoder.eval()
    torch.testing.assert_close(training.features(inputs), encoder(inputs), rtol=1e-5, atol=1e-6)
    found = training.count_correct(inputs, targets)
    for name, target in targets.items():
        hits = (heads.logits(encoder(inputs), name).argmax(1) == target).sum()
        assert found[name].tolist() == [int(hits), int((target != -100).sum()), 0]


@pytest.mark.parametrize(("made", "name"), [(model, "adam"), (model, "adagrad"), (bag_model, "adam")])
def test_any_number_of_threads_gives_the_same_bits(made, name):
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 4):
            torch.set_num_threads(n_threads)
            encoder, heads = made(dropout=0.3)
            torch.manual_seed(2)
            training = TextTraining(encoder, heads, by(name)(encoder, heads))
            losses = [training(*MODELS[made](500, seed=seed), WEIGHTS) for seed in range(3)]
            found.append([*losses, *parameters(encoder, heads)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda types, starts: types.__setitem__(3, T),
            f"word type {T}; valid are 0 up to, but not including, {T}",
        ),
        (lambda types, starts: starts.__setitem__(-1, 10**6), "starts must ascend"),
        (lambda types, starts: starts.__setitem__(1, -1), "starts must ascend"),
    ],
)
def test_bags_that_do_not_fit_move_nothing(change, message):
    encoder, heads = bag_model()
    training = TextTraining(encoder, heads, by("adam")(encoder, heads))
    before = parameters(encoder, heads)
    inputs, targets = bags()
    change(*inputs)
    with pytest.raises(ValueError, match=message):
        training(inputs, targets, WEIGHTS)
    assert all(map(torch.equal, parameters(encoder, heads), before))


def test_windows_are_no_bags():
    encoder, heads = bag_model()
    training = TextTraining(encoder, heads, by("sgd")(encoder, heads))
    with pytest.raises(ValueError, match="the start of each bag"):
        training(*batch(20), WEIGHTS)

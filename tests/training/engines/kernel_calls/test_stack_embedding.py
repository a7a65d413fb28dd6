"""A table of words before the layers, in the same kernel call: what torch's modules, autograd and optimizers do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import MultiTask, MultiTaskHeads, Switch, Trainer
from mt2st_fast.kernels import NOTHING
from mt2st_fast.kernels.step.on_numba.embedding_memory import INDICES_A_PIECE
from mt2st_fast.training.engines.kernel_calls.held_parameters import MOVES
from mt2st_fast.training.engines.kernel_calls.stack_training import StackTraining
from tests.training.engines.kernel_calls.test_stack_training import (
    OPTIMIZERS,
    TASKS,
    WEIGHTS,
    batch,
    eager,
    largest_error,
    optimizer_of,
    parameters,
    stepped,
)
from tests.training.small_runs import ActAfter, Stop, assert_same, assert_same_on_threads

V, L, PADDING = 70, 6, 3
ENCODERS = {
    "mean": lambda: nn.EmbeddingBag(V, 33),
    "sum with padding": lambda: nn.EmbeddingBag(V, 33, mode="sum", padding_idx=PADDING),
    "mean with padding": lambda: nn.EmbeddingBag(V, 33, padding_idx=PADDING),
    "bags under layers": lambda: nn.Sequential(
        nn.EmbeddingBag(V, 20, padding_idx=PADDING), nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 33)
    ),
    "narrow bags": lambda: nn.Sequential(nn.EmbeddingBag(V, 3, mode="sum"), nn.Linear(3, 33), nn.ReLU()),
    "wide bags": lambda: nn.Sequential(nn.EmbeddingBag(V, 300), nn.Linear(300, 33)),
    "side by side": lambda: nn.Sequential(nn.Embedding(V, 17), nn.Flatten(), nn.Linear(17 * L, 33)),
    "side by side with padding": lambda: nn.Sequential(
        nn.Sequential(nn.Embedding(V, 5, padding_idx=PADDING), nn.Flatten(1, 2)), nn.Linear(5 * L, 33), nn.GELU()
    ),
}  # fmt: skip


def model(encoder="bags under layers"):
    torch.manual_seed(0)
    made = ENCODERS[encoder]()
    table = next(module for module in made.modules() if isinstance(module, nn.EmbeddingBag | nn.Embedding))
    nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)  # that of the padding, too
    return made, MultiTaskHeads(33, TASKS, "a")


def words(N=50, seed=0, dtype=torch.int64, most=V):
    """Batches of few of the words, some of them padding, and a row of nothing else."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(seed % 7, most - seed % 5, (N, L), generator=generator)
    found[torch.rand(N, L, generator=generator) < 0.2] = PADDING
    found[N // 2 : N // 2 + 1] = PADDING
    return found.to(dtype), batch(N, seed=seed)[1]


def in_one_dtype(dtype):
    """`eager`, whose inputs take the dtype of parameters, for indices."""

    def run(encoder, heads, optimizer, batches):
        class Kept(nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = encoder

            def forward(self, indices):
                return self.encoder(indices.long())

        return eager(Kept(), heads, optimizer, batches)

    return run


@pytest.mark.parametrize("N", [1, 50, 300])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_is_as_accurate_as_torch(encoder, N):
    batches = [words(N, seed) for seed in range(4)]
    runs = []
    for dtype, run in (
        (torch.float64, in_one_dtype(torch.float64)), (torch.float32, in_one_dtype(torch.float32)),
        (torch.float32, stepped),
    ):  # fmt: skip
        made, heads = (part.to(dtype) for part in model(encoder))
        runs.append(run(made, heads, optimizer_of(OPTIMIZERS["AdamW"], made, heads), batches))
    truth, of_torch, ours = runs
    for place in (0, 1):
        error, theirs = largest_error(ours[place], truth[place]), largest_error(of_torch[place], truth[place])
        assert error <= 2 * theirs + 3e-7, (error, theirs)


@pytest.mark.parametrize("encoder", ["mean with padding", "narrow bags", "side by side with padding"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_as_in_eager_steps(optimizer, encoder):
    batches = [words(seed=seed, most=40) for seed in range(5)]  # the rows after these are never in a batch
    found = []
    for run in (in_one_dtype(torch.float32), stepped):
        made, heads = model(encoder)
        held = optimizer_of(OPTIMIZERS[optimizer], made, heads)
        found.append((*run(made, heads, held, batches), held.state_dict()))
    (losses, wanted, state), (own_losses, moved, own_state) = found
    torch.testing.assert_close(own_losses, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-6)
    assert own_state["param_groups"] == state["param_groups"]
    torch.testing.assert_close(own_state["state"], state["state"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam with decay", "SGD"])
def test_rows_that_a_batch_does_not_hold_move_as_torchs_do(optimizer):
    found = []
    for run in (in_one_dtype(torch.float32), stepped):
        encoder, heads = model("mean with padding")
        held = optimizer_of(OPTIMIZERS[optimizer], encoder, heads)
        run(encoder, heads, held, [words(seed=1, most=60)])
        before = encoder.weight.detach().clone()
        ids, targets = words(seed=2, most=20)
        run(encoder, heads, held, [(ids, targets)] * 3)
        moments = held.state[encoder.weight]
        found.append(
            [encoder.weight.detach()[20:], *(moments[name] for name in ("exp_avg", "step") if moments)]
        )
        assert not torch.equal(before[65:], encoder.weight[65:])  # weight decay alone
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


def test_without_decay_sgd_leaves_all_other_rows_as_they_are():
    encoder, heads = model("mean with padding")
    before = encoder.weight.detach().clone()
    batches = [words(seed=seed, most=40) for seed in range(3)]
    stepped(encoder, heads, torch.optim.SGD([*encoder.parameters(), *heads.parameters()], 0.1), batches)
    moved = (encoder.weight != before).any(1)
    held = torch.zeros(V, dtype=torch.bool)
    held[torch.cat([ids for ids, _ in batches]).unique()] = True
    held[PADDING] = False
    assert torch.equal(moved, held)


@pytest.mark.parametrize("optimizer", ["AdamW", "our SGD"])
@pytest.mark.parametrize("encoder", ["mean with padding", "bags under layers", "side by side"])
def test_the_bits_do_not_depend_on_the_number_of_threads(encoder, optimizer):
    def run():
        made, heads = model(encoder)
        held = optimizer_of(OPTIMIZERS[optimizer], made, heads)
        return stepped(made, heads, held, [words(N, seed=N) for N in (33, 400, 64)])

    assert_same_on_threads(run)


def test_vectors_side_by_side_may_be_the_features_themselves():
    batches = [(ids[:, :3], targets) for ids, targets in (words(seed=seed) for seed in range(3))]
    found = []
    for run in (in_one_dtype(torch.float32), stepped):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Embedding(V, 11), nn.Dropout(0.0), nn.Flatten())
        heads = MultiTaskHeads(33, TASKS, "a")
        found.append(run(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads), batches))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    heads = MultiTaskHeads(30, TASKS, "a")
    reason = StackTraining.obstacle(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
    assert "rows of 11 numbers, and the first layer or the heads 30 inputs" in reason


def test_an_infinite_weight_of_a_row_without_gradient_spoils_no_moment():
    for optimizer in ("AdamW", "LazyAdam"):
        encoder, heads = model("mean")
        with torch.no_grad():
            encoder.weight[V - 1] = float("-inf")
        held = optimizer_of(OPTIMIZERS[optimizer], encoder, heads)
        stepped(encoder, heads, held, [words(seed=0, most=40)] * 2)
        assert torch.isinf(encoder.weight[V - 1]).all()
        assert not held.state[encoder.weight]["exp_avg"][V - 1].any()


def test_tables_of_many_pieces_and_batches_of_any_size_are_as_in_eager_steps():
    found = []
    for run in (in_one_dtype(torch.float32), stepped):
        torch.manual_seed(0)
        encoder, heads = nn.EmbeddingBag(5000, 33), MultiTaskHeads(33, TASKS, "a")
        held = optimizer_of(OPTIMIZERS["AdamW"], encoder, heads)
        found.append(run(encoder, heads, held, [words(N, seed=N, most=5000) for N in (2, 700, 40, 900)]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_bags_of_other_lengths_and_types_and_strided_ones_are_taken_as_they_are():
    ids, targets = words(40)
    found = []
    for each in (ids, ids.int(), ids.T.contiguous().T, torch.stack([ids, ids], 2)[..., 0]):
        encoder, heads = model()
        found.append(
            stepped(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads), [(each, targets)])
        )
    for losses, moved in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert all(map(torch.equal, moved, found[0][1]))
    batches = [(ids[:, :n], targets) for n in (1, 5, 2, 6)] + [(ids.repeat(1, 9), targets)]
    found = []
    for run in (in_one_dtype(torch.float32), stepped):
        encoder, heads = model()
        found.append(run(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads), batches))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrong", [V, -1, -V, 1 << 32, (1 << 32) + 5, -(1 << 40)])
@pytest.mark.parametrize("encoder", ["mean with padding", "side by side"])
def test_an_index_outside_the_table_is_named_and_moves_nothing(encoder, wrong):
    made, heads = model(encoder)
    training = StackTraining(made, heads, optimizer_of(OPTIMIZERS["AdamW"], made, heads))
    training(*words(seed=1), WEIGHTS)
    before = parameters(made, heads)
    ids, targets = words()
    ids[7, 2] = wrong
    with pytest.raises(ValueError, match=f"inputs contain the index {wrong}; valid are 0 up to"):
        training(ids, targets, WEIGHTS)
    assert all(map(torch.equal, before, parameters(made, heads)))
    assert torch.isfinite(training(*words(), WEIGHTS)).all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_many_indices_are_checked_in_pieces(dtype):
    made, heads = model("mean with padding")
    training = StackTraining(made, heads, optimizer_of(OPTIMIZERS["AdamW"], made, heads))
    ids, targets = words()
    ids = ids.repeat(1, -(-3 * INDICES_A_PIECE // ids.numel())).to(dtype)
    before = parameters(made, heads)
    for row, wrong in ((0, V + 3), (len(ids) - 1, -7)):  # in the first piece, and in the last
        others = ids.clone()
        others[row, -1] = wrong
        with pytest.raises(ValueError, match=f"inputs contain the index {wrong}; valid"):
            training(others, targets, WEIGHTS)
    assert all(map(torch.equal, before, parameters(made, heads)))
    assert torch.isfinite(training(ids, targets, WEIGHTS)).all()


def test_one_side_moves_alone_and_losses_alone_move_nothing():
    for encoder in ("mean", "bags under layers", "side by side"):
        for part, of_encoder in (("shared", True), ("tasks", False)):
            made, heads = model(encoder)
            held = optimizer_of(OPTIMIZERS["AdamW"], made, heads)
            training = StackTraining(made, heads, held)
            before = parameters(made, heads)
            losses = training(*words(), WEIGHTS, NOTHING)
            assert all(map(torch.equal, before, parameters(made, heads)))
            assert torch.equal(training(*words(), WEIGHTS, MOVES[part]), losses)
            n = len(list(made.parameters()))
            same = [torch.equal(*pair) for pair in zip(before, parameters(made, heads), strict=True)]
            assert same == [not of_encoder] * n + [of_encoder] * (len(same) - n)
            assert float(held.state[next(made.parameters())]["step"]) == of_encoder


def test_what_is_frozen_stays_and_all_else_moves_as_beside_it():
    for encoder, frozen in (
        ("mean", "encoder weight"), ("mean", "heads"), ("bags under layers", "encoder 0.weight"),
        ("bags under layers", "encoder 1"), ("bags under layers", "encoder"), ("side by side", "encoder 2"),
    ):  # fmt: skip
        found = []
        for run in (in_one_dtype(torch.float32), stepped):
            made, heads = model(encoder)
            named = {f"encoder {n}": p for n, p in made.named_parameters()}
            named |= {f"heads {n}": p for n, p in heads.named_parameters()}
            for name, parameter in named.items():
                parameter.requires_grad_(not name.startswith(frozen))
            moving = [p for p in named.values() if p.requires_grad]
            before = parameters(made, heads)
            found.append(run(made, heads, OPTIMIZERS["AdamW"](moving), [words(seed=3), words(seed=4)]))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
        same = [torch.equal(*pair) for pair in zip(before, found[1][1], strict=True)]
        assert same == [name.startswith(frozen) for name in named]


def test_dropout_of_bags_is_that_of_its_keys_on_the_way_back_too():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.EmbeddingBag(V, 33, mode="sum"), nn.Dropout(0.5))
    heads = MultiTaskHeads(33, TASKS, "a")
    training = StackTraining(
        encoder, heads, torch.optim.SGD([*encoder.parameters(), *heads.parameters()], 0.1)
    )
    before = encoder[0].weight.detach().clone()
    ids, targets = words(V)
    ids[:] = torch.arange(V)[:, None]  # every row of the table is in one bag
    training(ids, targets, WEIGHTS)
    still = encoder[0].weight == before
    labelled = ~still.all(1)
    assert 0.4 < still[labelled].float().mean() < 0.6
    assert training._dropped[0].probability == 0.5


REFUSED = {
    "mode='max' of EmbeddingBag": lambda: nn.EmbeddingBag(V, 33, mode="max"),
    "sparse=True of EmbeddingBag": lambda: nn.EmbeddingBag(V, 33, sparse=True),
    "max_norm of EmbeddingBag": lambda: nn.EmbeddingBag(V, 33, max_norm=1.0),
    "scale_grad_by_freq=True of EmbeddingBag": lambda: nn.EmbeddingBag(V, 33, scale_grad_by_freq=True),
    "include_last_offset=True of EmbeddingBag": lambda: nn.EmbeddingBag(V, 33, include_last_offset=True),
    "sparse=True of Embedding": lambda: nn.Sequential(nn.Embedding(V, 33, sparse=True), nn.Flatten()),
    "max_norm of Embedding": lambda: nn.Sequential(nn.Embedding(V, 33, max_norm=2.0), nn.Flatten()),
    "not for Embedding": lambda: nn.Embedding(V, 33),
    "nn.Embedding is not followed by an nn.Flatten": lambda: nn.Sequential(
        nn.Embedding(V, 33), nn.Linear(33, 33)
    ),
    "after the first module a EmbeddingBag": lambda: nn.Sequential(nn.Identity(), nn.EmbeddingBag(V, 33)),
    "a Tanh comes before the first layer": lambda: nn.Sequential(nn.EmbeddingBag(V, 33), nn.Tanh()),
    "rows of 20 numbers, and the first layer or the heads 21": lambda: nn.Sequential(
        nn.EmbeddingBag(V, 20), nn.Linear(21, 33)
    ),
    "rows of 20 numbers, and the first layer or the heads 50": lambda: nn.Sequential(
        nn.Embedding(V, 20), nn.Flatten(), nn.Linear(50, 33)
    ),
    "has 20 outputs, and the heads 33": lambda: nn.EmbeddingBag(V, 20),
    "float64": lambda: nn.EmbeddingBag(V, 33).double(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_table_with_more_than_this_is_not_taken(reason):
    encoder, heads = REFUSED[reason](), MultiTaskHeads(33, TASKS, "a")
    assert reason in StackTraining.obstacle(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))


# --- whole runs ---------------------------------------------------------------------------------------------


def trainer(encoder="bags under layers", backward="auto", callbacks=(), **options):
    options = {"schedule": Switch(at=0.5), "optimizer": OPTIMIZERS["AdamW"]} | options
    return Trainer(*model(encoder), backward=backward, callbacks=list(callbacks), device="cpu", **options)


def loader():
    return [words(N, seed=N) for N in (31, 2, 64, 90)]


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "our SGD"])
@pytest.mark.parametrize("encoder", ["mean with padding", "bags under layers", "side by side with padding"])
def test_a_run_takes_it_and_is_that_of_autograd(encoder, optimizer):
    runs = [trainer(encoder, backward, optimizer=OPTIMIZERS[optimizer]) for backward in ("auto", "autograd")]
    for run in runs:
        run.fit(loader(), epochs=3)
    assert {phase.engine for phase in runs[0].history.phases} == {"one kernel call"}
    assert {phase.engine for phase in runs[1].history.phases} == {"eager"}
    ours, theirs = (parameters(run.encoder, run.heads) for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", [3, 9])
def test_a_resumed_run_goes_on_with_the_same_bits(stop, tmp_path):
    whole = trainer()
    whole.fit(loader(), epochs=4)
    trainer(callbacks=[Stop(stop)]).fit(loader(), epochs=4, checkpoint=tmp_path / "c")
    resumed = trainer()
    resumed.fit(loader(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    assert resumed.history.phases[-1].engine == "one kernel call"
    assert_same(whole, resumed)


@pytest.mark.parametrize("first", ["auto", "autograd"])
def test_another_engine_takes_over_a_run(first, tmp_path):
    other = {"auto": "autograd", "autograd": "auto"}[first]
    whole = trainer(backward="autograd")
    whole.fit(loader(), epochs=4)
    trainer(backward=first, callbacks=[Stop(5)]).fit(loader(), epochs=4, checkpoint=tmp_path / "c")
    resumed = trainer(backward=other)
    resumed.fit(loader(), epochs=4, checkpoint=tmp_path / "c", resume=True)
    ours, theirs = (parameters(run.encoder, run.heads) for run in (resumed, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_inputs_that_it_does_not_take_are_taken_by_another_engine():
    class Twice(nn.EmbeddingBag):
        pass

    ids, targets = words(24)
    run = Trainer(Twice(V, 33), MultiTaskHeads(33, TASKS, "a"), schedule=MultiTask(), device="cpu")
    assert "not for Twice" in run.fit([(ids, targets)], epochs=1).phases[0].passed_over["one kernel call"]
    run = trainer("mean with padding", schedule=MultiTask())
    with pytest.raises(RuntimeError):  # torch's own, of floats
        run.fit([(ids, targets), (ids.float(), targets)], epochs=1)
    assert "takes indices (N, L) of int64 or int32" in run.history.phases[0].passed_over["one kernel call"]


@pytest.mark.parametrize("act", [
    lambda encoder: setattr(encoder, "mode", "sum"), lambda encoder: setattr(encoder, "padding_idx", None),
    lambda encoder: setattr(encoder, "weight", nn.Parameter(torch.ones(V + 5, 33))),
    lambda encoder: encoder.weight.requires_grad_(False), lambda encoder: setattr(encoder, "mode", "max"),
])  # fmt: skip
def test_what_a_callback_changes_counts_from_the_next_step_on(act):
    runs = [
        trainer(
            "mean with padding",
            way,
            schedule=MultiTask(),
            callbacks=[ActAfter(2, lambda trainer: act(trainer.encoder))],
        )
        for way in ("auto", "autograd")
    ]
    for run in runs:
        run.fit(loader(), epochs=2)
    assert runs[0].history.phases[0].engine == "one kernel call"
    ours, theirs = (parameters(run.encoder, run.heads) for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_empty_batches_and_tasks_without_labels_are_as_in_eager_steps():
    ids, targets = words(12)
    nothing = {"a": torch.full((12,), -100), "c": torch.full((12, 3), float("nan"))}
    batches = [(ids, {"b": targets["b"]}), (ids, nothing), words(0), (ids, targets)]
    found = []
    for backward in ("auto", "autograd"):
        run = trainer("mean with padding", backward, schedule=MultiTask())
        run.fit(batches, epochs=2)
        found.append(parameters(run.encoder, run.heads))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)

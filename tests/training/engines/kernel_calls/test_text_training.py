"""A window encoder's step as one kernel call: what encoder, heads, autograd and optimizer do, up to rounding."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mt2st_fast import (
    Classification,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    Regression,
    Switch,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.kernels import NOTHING
from mt2st_fast.kernels.step.on_numba.dropout import factors_of
from mt2st_fast.kernels.step.on_numba.text_hidden import MOST_TYPES_A_WINDOW
from mt2st_fast.kernels.step.on_numba.text_step import drop_of
from mt2st_fast.kernels.step.text import Dropout
from mt2st_fast.training.engines.kernel_calls.held_parameters import MOVES
from mt2st_fast.training.engines.kernel_calls.text_training import TextTraining
from mt2st_fast.training.optimizers.row_sparse import SGD, LazyAdam, RowwiseAdagrad, optimizer_by_rule
from tests.training.small_runs import assert_goes_on_with_the_same_bits

T, V, M = 300, 500, 5  # word types, rows of the table, most rows of a type
TASKS = {
    "main": Classification(7),
    "binary": Classification(2),
    "wide": Classification(50, label_smoothing=0.1),
}
KINDS = {"main": Classification(7), "labels": MultiLabel(3), "score": Regression(2)}
OPTIMIZERS = {
    "adam": lambda p: LazyAdam(p, lr=0.01),
    "adam with decay": lambda p: LazyAdam(p, lr=0.01, weight_decay=0.1),
    "adagrad": lambda p: RowwiseAdagrad(p, lr=0.05),
    "sgd": lambda p: SGD(p, lr=0.1),
    "by rule": lambda p: optimizer_by_rule("adam")(p, lr=0.02),
}


def model(tasks=TASKS, *, dropout=0.0, dim=24, window=2, hidden=40, subwords=True):
    torch.manual_seed(0)
    rows = None
    if subwords:
        rows = torch.randint(0, V, (T, M))
        rows[torch.rand(T, M) < 0.3] = 0  # the padding row
        rows[:, 0] = torch.randint(1, V, (T,))
        rows[7] = 0  # a type without any row
    encoder = WindowEncoder(
        T, dim, window=window, hidden=hidden, dropout=dropout, sparse=True, rows_of_type=rows,
        num_rows=V if subwords else None,
    )  # fmt: skip
    return encoder, MultiTaskHeads(hidden, tasks, "main")


def batch(N=150, tasks=TASKS, seed=0, width=5) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(-1, T, (N, width), generator=generator, dtype=torch.int32)
    targets = {}
    for name, task in tasks.items():
        head = task.head
        if head.kind.takes_classes:
            targets[name] = torch.randint(0, head.size, (N,), generator=generator)
            targets[name][seed % 3 :: 3] = -100
        else:
            targets[name] = torch.rand(N, head.size, generator=generator).round()
            targets[name][seed % 5 :: 5] = float("nan")
    return types, targets


def parameters(encoder: nn.Module, heads: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in (*encoder.parameters(), *heads.parameters())]


def eager_steps(encoder, heads, optimizer, batches, weights):
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        out = heads(encoder(inputs), targets, weights)
        out.total.backward()
        optimizer.step()
        losses.append(out.losses)
    return torch.stack(losses)


def optimizer_of(make, encoder, heads):
    return make([*encoder.parameters(), *heads.parameters()])


def by(name):
    return partial(optimizer_of, OPTIMIZERS[name])


def assert_alike(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def assert_steps_are_those_of_autograd(make, make_optimizer, batches, weights):
    """make: encoder and heads, without dropout; make_optimizer: of both. Losses and parameters, up to rounding."""
    encoder, heads = make()
    expected = eager_steps(encoder, heads, make_optimizer(encoder, heads), batches, weights)
    wanted = parameters(encoder, heads)
    encoder, heads = make()
    training = TextTraining(encoder, heads, make_optimizer(encoder, heads))
    losses = torch.stack([training(inputs, targets, weights) for inputs, targets in batches])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert_alike(parameters(encoder, heads), wanted)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("tasks", [TASKS, KINDS], ids=["classes", "kinds"])
def test_it_is_the_step_of_autograd_and_optimizer(optimizer, tasks):
    batches = [batch(150, tasks, seed) for seed in range(5)]
    weights = torch.tensor([1.0, 0.5, 0.25])
    assert_steps_are_those_of_autograd(partial(model, tasks), by(optimizer), batches, weights)


@pytest.mark.parametrize("optimizer", [LazyAdam, RowwiseAdagrad])
def test_every_group_moves_by_its_own_rate(optimizer):
    def in_groups(encoder, heads):
        rest = [p for name, p in encoder.named_parameters() if name != "table"]
        return optimizer([
            {"params": heads.parameters(), "lr": 0.01}, {"params": rest, "lr": 0.002},
            {"params": [encoder.table], "lr": 0.05},
        ])  # fmt: skip

    assert_steps_are_those_of_autograd(
        model, in_groups, [batch(seed=seed) for seed in range(2)], torch.ones(3)
    )


@pytest.mark.parametrize(
    ("N", "dim", "window", "hidden"), [(1, 16, 0, 8), (64, 7, 1, 33), (65, 64, 2, 128), (517, 5, 3, 300)]
)
@pytest.mark.parametrize("subwords", [True, False])
def test_any_shape(N, dim, window, hidden, subwords):
    shape = {"dim": dim, "window": window, "hidden": hidden, "subwords": subwords}
    batches = [batch(N, width=2 * window + 1, seed=s) for s in range(2)]
    assert_steps_are_those_of_autograd(partial(model, **shape), by("sgd"), batches, torch.ones(3))


def test_dropout_drops_what_it_says_and_no_place_is_like_its_neighbours():
    drop = drop_of(Dropout(0.3, 99))
    kept = torch.from_numpy(factors_of(2000, 320, drop.key, drop.threshold, drop.kept)) > 0
    assert abs(float(kept.float().mean()) - 0.7) < 0.002
    assert (kept.float().mean(0) - 0.7).abs().max() < 0.06  # of 2,000: 5 standard deviations
    assert (kept.float().mean(1) - 0.7).abs().max() < 0.14
    centred = kept.float() - 0.7
    for shift in (1, 80, 160):  # neighbours, and columns that share a drawn word
        assert abs(float((centred[:, shift:] * centred[:, :-shift]).mean())) < 0.002
    assert abs(float((centred[1:] * centred[:-1]).mean())) < 0.002
    other = drop_of(Dropout(0.3, 100))
    again = torch.from_numpy(factors_of(2000, 320, other.key, other.threshold, other.kept)) > 0
    assert abs(float((centred * (again.float() - 0.7)).mean())) < 0.002


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: x.__setitem__((3, 1), T), f"word type {T}; valid are 0 up to, but not including, {T}"),
        (lambda x, y: x.__setitem__((3, 1), -2), "word type -2"),
        (lambda x, y: y["wide"].__setitem__(4, 50), "targets of wide: 50 lies outside"),
        (lambda x, y: y.__setitem__("main", y["main"][:-1]), "main"),
    ],
)
def test_what_is_wrong_moves_nothing(change, message):
    """Not even the number of steps that Adam's rows go by."""
    encoder, heads = model()
    optimizer = optimizer_of(OPTIMIZERS["adam"], encoder, heads)
    training = TextTraining(encoder, heads, optimizer)
    training(*batch(), torch.ones(3))
    before = copy.deepcopy((encoder.state_dict(), heads.state_dict(), optimizer.state_dict()))
    types, targets = batch()
    change(types, targets)
    with pytest.raises(ValueError, match=message):
        training(types, targets, torch.ones(3))
    after = (encoder.state_dict(), heads.state_dict(), optimizer.state_dict())
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (torch.full((4, 5), 2**32 + 1), f"word type {2**32 + 1}"),
        (torch.zeros(4, 5), "integer word types, not .* of float32"),
        (torch.zeros(4, 3, dtype=torch.int32), r"must be \(N, 5\)"),
    ],
)
def test_inputs_of_another_kind_are_refused(types, message):
    encoder, heads = model()
    training = TextTraining(encoder, heads, optimizer_of(OPTIMIZERS["sgd"], encoder, heads))
    targets = {name: y[:4] for name, y in batch()[1].items()}
    with pytest.raises(ValueError, match=message):
        training(types, targets, torch.ones(3))


def test_tasks_without_a_label_or_a_weight_fade_as_by_autograd():
    """Adam goes on by its momentum where a gradient is 0."""
    types, targets = batch()
    unlabelled = {name: torch.full_like(y, -100) for name, y in targets.items()}
    batches = [(types, targets), (types, {**targets, "wide": unlabelled["wide"]}), (types, unlabelled)]
    assert_steps_are_those_of_autograd(model, by("adam"), batches, torch.tensor([1.0, 0.0, 1.0]))


# --- in a trainer ----------------------------------------------------------------------------------------


def trainer(dropout=0.3, **options) -> Trainer:
    torch.manual_seed(3)
    encoder, heads = model(dropout=dropout)
    return Trainer(encoder, heads, lr=0.01, device="cpu", **{"schedule": Switch(at=0.5), **options})


BATCHES = [batch(70, seed=seed) for seed in range(6)]


def test_the_trainer_takes_it_by_default_and_retires_tasks():
    training = trainer()
    history = training.fit(BATCHES, epochs=4)
    assert [phase.engine for phase in history.phases] == ["one kernel call"] * 2
    assert history.phases[1].active == ("main",)
    assert history.steps[-1].losses["main"] < history.steps[0].losses["main"]


@pytest.mark.parametrize("stop", [5, 12, 19])  # before, at and after the switch
def test_a_resumed_run_gives_the_same_bits(stop, tmp_path):
    def run(callbacks=(), **options):
        training = trainer(callbacks=list(callbacks))
        return training, training.fit(BATCHES, epochs=4, **options)

    _, resumed = assert_goes_on_with_the_same_bits(run, stop, tmp_path)
    assert resumed.history.phases[-1].engine == "one kernel call"


# Types are projected where they are few to a window (1,000 rows of 300 types), and windows multiplied where not.
@pytest.mark.parametrize(("rows", "by_type"), [(1, False), (333, False), (1000, True)])
@pytest.mark.parametrize("shape", [{}, {"dim": 7, "hidden": 33, "window": 1}, {"dim": 270, "hidden": 16}])
@pytest.mark.parametrize("subwords", [True, False])
def test_held_out_windows_are_seen_as_the_encoder_sees_them(rows, by_type, shape, subwords):
    encoder, heads = model(dropout=0.3, subwords=subwords, **shape)
    width = encoder.width
    training = Trainer(encoder, heads, schedule=MultiTask(), lr=0.01, device="cpu")
    training.fit([batch(width=width)], epochs=1)
    types = batch(rows, seed=9, width=width)[0]
    assert (len(types.unique()) - 1 <= MOST_TYPES_A_WINDOW * rows) is by_type
    found = training.run.engine.features(types)
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(found, encoder(types), rtol=1e-5, atol=1e-6)
        encoder.table[1:] = float("nan")  # a diverged run has to be seen
    assert training.run.engine.features(types).isnan().any()


def test_who_looks_at_the_encoder_sees_what_is_held_out():
    training = trainer()
    training.fit(BATCHES, epochs=1)
    seen = []
    hook = training.encoder.register_forward_hook(lambda module, inputs, features: seen.append(len(features)))
    found = training.evaluate(BATCHES)
    assert seen == [70] * 6
    hook.remove()
    assert training.evaluate(BATCHES) == pytest.approx(found)
    assert len(seen) == 6


def test_parameters_that_are_put_elsewhere_are_found():
    encoder, heads = model()
    training = TextTraining(encoder, heads, optimizer_of(OPTIMIZERS["sgd"], encoder, heads))
    training(*batch(), torch.ones(3))
    encoder.hidden.weight.data = encoder.hidden.weight.data.clone()
    assert training.declines() is None
    before = encoder.hidden.weight.detach().clone()
    training(*batch(), torch.ones(3))
    assert not torch.equal(before, encoder.hidden.weight)
    encoder.requires_grad_(False)
    heads.requires_grad_(False)
    assert training.declines() == "every parameter is frozen"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e, h: setattr(e, "hidden", nn.Bilinear(3, 3, 3)), "not as they were made"),
        (lambda e, h: setattr(e, "sparse", False), "not row-sparse"),
        (lambda e, h: setattr(e, "backend", "reference"), "reference"),
        (lambda e, h: setattr(e, "dropout", nn.AlphaDropout(0.1)), "not as they were made"),
        (lambda e, h: e.hidden.register_forward_hook(lambda *a: None), "hooks"),
        (lambda e, h: (e.requires_grad_(False), h.requires_grad_(False)), "every parameter is frozen"),
        (lambda e, h: e.double(), "float64"),
    ],
)
def test_an_obstacle_has_a_reason(change, reason):
    encoder, heads = model()
    change(encoder, heads)
    optimizer = LazyAdam([*encoder.parameters(), *heads.parameters()], lr=0.1)
    assert reason in TextTraining.obstacle(encoder, heads, optimizer)
    with pytest.raises(ValueError, match="cannot take one kernel call a batch"):
        TextTraining(encoder, heads, optimizer)


def test_options_that_need_gradients_are_an_obstacle():
    training = trainer(backward="autograd")
    training.fit(BATCHES[:2], epochs=1)
    phase = training.history.phases[0]
    assert phase.engine == "eager"
    assert "not asked for" in phase.passed_over["one kernel call"]
    training = trainer(accumulate=2)
    training.fit(BATCHES, epochs=1)
    assert "several batches" in training.history.phases[0].passed_over["one kernel call"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_clipped_steps_are_those_of_autograd_on_any_number_of_threads(optimizer):
    def fitted(backward="auto", n_threads=2):
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            run = trainer(0.0, clip_norm=0.05, optimizer=OPTIMIZERS[optimizer], backward=backward)
            run.fit(BATCHES, epochs=2)
        finally:
            torch.set_num_threads(before)
        engine = "one kernel call" if backward == "auto" else "eager"
        assert {phase.engine for phase in run.history.phases} == {engine}
        return parameters(run.encoder, run.heads)

    ours = fitted()
    torch.testing.assert_close(ours, fitted("autograd"), rtol=1e-4, atol=1e-5)
    for n_threads in (1, 4):
        assert all(map(torch.equal, ours, fitted(n_threads=n_threads)))


def test_steps_that_were_counted_in_another_dtype_are_counted_on():
    """As those of a run under another default dtype, whose checkpoint torch loads as it was saved."""

    def after(dtype):
        encoder, heads = model()
        optimizer = optimizer_of(OPTIMIZERS["adam"], encoder, heads)
        TextTraining(encoder, heads, optimizer)(*batch(), torch.ones(3))
        saved = copy.deepcopy(optimizer.state_dict())
        for state in saved["state"].values():
            for name in {"step", "row_steps", "row_exp_avg"} & state.keys():
                state[name] = state[name].to(dtype)
        optimizer.load_state_dict(saved)
        training = TextTraining(encoder, heads, optimizer)
        for seed in range(2):
            training(*batch(seed=seed), torch.ones(3))
        assert training.declines() is None
        return parameters(encoder, heads), optimizer.state_dict()["state"]

    torch.testing.assert_close(after(torch.float64), after(torch.float32), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("part", [NOTHING, *MOVES.values()], ids=["nothing", *MOVES])
def test_a_table_counts_the_steps_that_move_it(part):
    encoder, heads = model()
    optimizer = optimizer_of(OPTIMIZERS["adam"], encoder, heads)
    training = TextTraining(encoder, heads, optimizer)
    inputs, targets = batch()
    for _ in range(2):
        training(inputs, targets, torch.ones(3), part)
        training.features(inputs)
        training.count_correct(inputs, targets)
    assert optimizer.state[encoder.table]["step"] == (2 if part.shared else 0)

"""An MLP's step as one kernel call: what torch's layers, autograd and optimizers do, up to rounding."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import nn

from mt2st_fast import (
    Classification,
    MultiLabel,
    MultiTaskHeads,
    Regression,
)
from mt2st_fast.kernels import NOTHING
from mt2st_fast.kernels.step.on_numba.dropout import drop_of, factors_of
from mt2st_fast.training.engines.kernel_calls import stack_training
from mt2st_fast.training.engines.kernel_calls.held_parameters import MOVES
from mt2st_fast.training.engines.kernel_calls.stack_training import StackTraining
from mt2st_fast.training.optimizers.row_sparse import SGD, LazyAdam, RowwiseAdagrad
from tests.training.small_runs import assert_same_on_threads

TASKS = {
    "a": Classification(5, label_smoothing=0.1, class_weights=[1.0, 0.5, 2.0, 1.0, 1.0]),
    "b": Classification(2),
    "c": MultiLabel(3),
    "d": Regression(2),
    "e": Regression(1, huber_delta=0.5),
}
WEIGHTS = torch.tensor([1.0, 0.5, 0.25, 2.0, 0.0])
ADAMW = {"lr": 0.02, "weight_decay": 0.1, "eps": 1e-3}
OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, **ADAMW),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True, **ADAMW),
    "AdamW, rate in a tensor": lambda p: torch.optim.AdamW(
        p, **ADAMW | {"lr": torch.tensor(0.02)}, foreach=False
    ),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02, eps=1e-3),
    "Adam with decay": lambda p: torch.optim.Adam(p, **ADAMW, betas=(0.7, 0.9)),
    "Adam, decoupled": lambda p: torch.optim.Adam(p, **ADAMW, decoupled_weight_decay=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "SGD of Nesterov, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True, fused=True),
    "LazyAdam": lambda p: LazyAdam(p, **ADAMW),
    "our SGD": lambda p: SGD(p, lr=0.1),
    "RowwiseAdagrad": lambda p: RowwiseAdagrad(p, lr=0.05, eps=1e-3),
}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu by tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "none": nn.Identity,
}


def model(sizes=(7, 20, 33), activation="relu", tasks=TASKS, dropout=0.0, bias=True):
    torch.manual_seed(0)
    parts = [nn.Dropout(dropout)]
    for F, H in pairwise(sizes):
        parts += [nn.Linear(F, H, bias=bias), nn.Sequential(ACTIVATIONS[activation](), nn.Dropout(dropout))]
    return nn.Sequential(*parts), MultiTaskHeads(sizes[-1], tasks, next(iter(tasks)))


def batch(N=50, n_inputs=7, tasks=TASKS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = {}
    for name, task in tasks.items():
        if isinstance(task, Classification):
            targets[name] = torch.randint(0, task.classes, (N,), generator=generator)
            targets[name][seed % 3 :: 3] = -100
        else:
            targets[name] = torch.rand(N, task.head.size, generator=generator).round()
            targets[name][seed % 5 :: 5] = float("nan")
    return torch.randn(N, n_inputs, generator=generator), targets


def parameters(encoder, heads):
    return [p.detach().clone() for p in (*encoder.parameters(), *heads.parameters())]


def optimizer_of(make, encoder, heads):
    return make([*encoder.parameters(), *heads.parameters()])


def stepped(encoder, heads, optimizer, batches, weights=WEIGHTS, clip_norm=None):
    training = StackTraining(encoder, heads, optimizer, clip_norm)
    return torch.stack([training(*each, weights) for each in batches]), parameters(encoder, heads)


def eager(encoder, heads, optimizer, batches, weights=WEIGHTS, clip_norm=None):
    losses = []
    for inputs, targets in batches:
        dtype = next(encoder.parameters()).dtype
        out = heads(encoder(inputs.to(dtype)), targets, weights)
        out.total.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_([*encoder.parameters(), *heads.parameters()], clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.losses)
    return torch.stack(losses), parameters(encoder, heads)


def largest_error(found, truth):
    return max(float((one.double() - other).abs().max()) for one, other in zip(found, truth, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("N", "sizes", "bias", "clip_norm"),
    [
        (50, (7, 20, 33), True, None), (1, (7, 20), True, 0.1), (300, (7, 130, 64, 48), False, 0.01),
        (129, (1, 1), True, None), (17, (70, 16, 1, 5), True, None), (50, (7, 20, 300), True, 1.0),
        (33, (7, 20), True, 1e4),
    ],
)  # fmt: skip
def test_it_is_as_accurate_as_torch(activation, N, sizes, bias, clip_norm):
    batches = [batch(N, sizes[0], seed=seed) for seed in range(4)]
    runs = []
    for dtype, run in ((torch.float64, eager), (torch.float32, eager), (torch.float32, stepped)):
        encoder, heads = (part.to(dtype) for part in model(sizes, activation, bias=bias))
        held = optimizer_of(OPTIMIZERS["AdamW"], encoder, heads)
        runs.append(run(encoder, heads, held, batches, clip_norm=clip_norm))
    truth, of_torch, ours = runs
    for place in (0, 1):
        error, theirs = largest_error(ours[place], truth[place]), largest_error(of_torch[place], truth[place])
        assert error <= 2 * theirs + 2e-7, (error, theirs)


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_as_in_eager_steps(optimizer, clip_norm):
    batches = [batch(seed=seed) for seed in range(5)]
    found = []
    for run in (eager, stepped):
        encoder, heads = model()
        held = optimizer_of(OPTIMIZERS[optimizer], encoder, heads)
        found.append((*run(encoder, heads, held, batches, clip_norm=clip_norm), held.state_dict()))
    (losses, wanted, state), (own_losses, moved, own_state) = found
    torch.testing.assert_close(own_losses, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-6)
    assert own_state["param_groups"] == state["param_groups"]
    torch.testing.assert_close(own_state["state"], state["state"], rtol=1e-3, atol=1e-6)


def test_every_group_moves_by_its_own_rate_and_decay():
    def in_groups(parameters):
        first, *rest = parameters
        return torch.optim.AdamW(
            [{"params": [first], "lr": 0.3, "weight_decay": 0.5}, {"params": rest}], **ADAMW
        )

    found = []
    for run in (eager, stepped):
        encoder, heads = model()
        found.append(
            run(encoder, heads, optimizer_of(in_groups, encoder, heads), [batch(seed=1), batch(seed=2)])
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("dropout", "clip_norm"), [(0.0, None), (0.3, None), (0.3, 0.1)])
def test_the_bits_do_not_depend_on_the_number_of_threads(dropout, clip_norm):
    def run():
        encoder, heads = model((7, 200, 190), "tanh", dropout=dropout)
        held = optimizer_of(OPTIMIZERS["AdamW"], encoder, heads)
        torch.manual_seed(5)
        batches = [batch(N, seed=N) for N in (33, 200, 64)]
        return stepped(encoder, heads, held, batches, clip_norm=clip_norm)

    assert_same_on_threads(run)


def test_a_norm_that_is_reached_by_no_gradient_changes_no_bit():
    found = []
    for clip_norm in (None, 1e6):
        encoder, heads = model()
        held = optimizer_of(OPTIMIZERS["AdamW"], encoder, heads)
        found.append(stepped(encoder, heads, held, [batch(seed=1), batch(seed=2)], clip_norm=clip_norm))
    assert torch.equal(found[0][0], found[1][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25])
def test_norms_that_are_not_finite_clip_as_in_eager_steps(value):
    found = []
    for run in (eager, stepped):
        encoder, heads = model(activation="none")
        inputs, targets = batch()
        inputs[3, 2] = value
        held = optimizer_of(OPTIMIZERS["SGD"], encoder, heads)
        _, moved = run(encoder, heads, held, [(inputs, targets)], clip_norm=0.5)
        found.append([parameter.isfinite() for parameter in moved])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("N", [1, 33, 100, 197])
def test_what_a_larger_batch_has_left_in_memory_does_not_count(N):
    found = []
    for before in ([], [batch(400)]):
        encoder, heads = model()
        training = StackTraining(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
        for inputs, targets in before:
            training(torch.full_like(inputs, float("nan")), targets, WEIGHTS, NOTHING)
        found.append((training(*batch(N), WEIGHTS), parameters(encoder, heads)))
    assert torch.isfinite(found[0][0]).all()
    assert torch.equal(found[0][0], found[1][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_models_of_many_combinations_of_tasks_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(stack_training, "KEPT_WEIGHTS", 5_000)  # of about 1,250 each
    encoder, heads = model()
    training = StackTraining(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
    inputs, targets = batch()
    for present in (["a"], ["b"], ["a", "b"], ["a", "c"], ["a"], ["d"], ["e", "a"]):
        training(inputs, {name: targets[name] for name in present}, WEIGHTS)
        assert len(training._models) <= 3


# --- dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropout_is_that_of_its_keys_everywhere(activation):
    (encoder, heads), (plain, plain_heads) = (
        model(activation=activation, dropout=0.4),
        model(activation=activation),
    )
    training = StackTraining(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
    optimizer = optimizer_of(OPTIMIZERS["AdamW"], plain, plain_heads)
    for seed in range(3):
        inputs, targets = batch(seed=seed)
        losses = training(inputs, targets, WEIGHTS)
        x, drops = inputs, iter(training._dropped)
        for part in (nn.Identity(), *(part for part in plain if not isinstance(part, nn.Dropout))):
            x = part(x)
            if not isinstance(part, nn.Linear):
                drop = drop_of(next(drops))
                x = x * torch.from_numpy(factors_of(*x.shape, drop.key, drop.threshold, drop.kept))
        out = plain_heads(x, targets, WEIGHTS)
        out.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(losses, out.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        parameters(encoder, heads), parameters(plain, plain_heads), rtol=1e-4, atol=1e-5
    )


def test_layers_draw_apart_and_only_where_dropout_trains():
    encoder, heads = model(dropout=0.5)
    training = StackTraining(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
    training(*batch(), WEIGHTS)
    assert len({drop.key for drop in training._dropped}) == 3
    encoder[0].eval()
    encoder[2][1].p = 0.25
    training(*batch(), WEIGHTS)
    assert [drop.probability for drop in training._dropped] == [0.0, 0.25, 0.5]
    encoder.eval()
    state = torch.get_rng_state()
    training(*batch(), WEIGHTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert {drop.probability for drop in training._dropped} == {0.0}


def test_dropout_before_a_relu_is_dropout_after_it():
    found = []
    for order in (lambda a, b: (a, b), lambda a, b: (b, a)):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(7, 20), *order(nn.ReLU(), nn.Dropout(0.5)))
        heads = MultiTaskHeads(20, TASKS, "a")
        found.append(stepped(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads), [batch()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


# --- parts that do not move ---------------------------------------------------------------------------------


def test_what_is_frozen_stays_and_all_else_moves_as_beside_it():
    for frozen, clip_norm in product(
        ("0.weight", "1.weight", "1.bias", "heads a", "encoder", "heads"), (None, 0.2)
    ):
        found = []
        for run in (eager, stepped):
            encoder, heads = model()
            named = {f"encoder {n}": p for n, p in encoder.named_parameters()}
            named |= {f"heads {n}": p for n, p in heads.named_parameters()}
            for name, parameter in named.items():
                if name.startswith(frozen) or frozen in name:
                    parameter.requires_grad_(False)
            moving = [p for p in named.values() if p.requires_grad]
            before = parameters(encoder, heads)
            found.append(
                run(
                    encoder,
                    heads,
                    torch.optim.AdamW(moving, **ADAMW),
                    [batch(seed=3), batch(seed=4)],
                    clip_norm=clip_norm,
                )
            )
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
        still = [p.requires_grad is False for p in named.values()]
        assert all(
            torch.equal(a, b) for a, b, is_still in zip(before, found[1][1], still, strict=True) if is_still
        )


def test_one_side_moves_alone_and_losses_alone_move_nothing():
    for part, of_encoder in (("shared", True), ("tasks", False)):
        encoder, heads = model()
        training = StackTraining(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
        before = parameters(encoder, heads)
        losses = training(*batch(), WEIGHTS, NOTHING)
        assert all(map(torch.equal, before, parameters(encoder, heads)))
        assert torch.equal(training(*batch(), WEIGHTS, MOVES[part]), losses)
        n = len(list(encoder.parameters()))
        same = [torch.equal(*pair) for pair in zip(before, parameters(encoder, heads), strict=True)]
        assert same == [not of_encoder] * n + [of_encoder] * (len(same) - n)


class Shift(nn.Linear):
    pass


def hooked():
    encoder = model()[0]
    encoder[1].register_forward_hook(lambda *_: None)
    return encoder


def with_own_forward():
    encoder = model()[0]
    encoder[2].forward = torch.tanh
    return encoder


def shared():
    layer = nn.Linear(7, 7)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(7, 33))


class Sequence(nn.Sequential):
    pass


ENCODERS = {
    "not for Sequence": lambda: Sequence(nn.Linear(7, 33)),
    "not for Bilinear": lambda: nn.Bilinear(7, 7, 33),
    "has a Softmax": lambda: nn.Sequential(nn.Linear(7, 33), nn.Softmax(-1)),
    "has a Shift": lambda: nn.Sequential(Shift(7, 33)),
    "has no nn.Linear": lambda: nn.Sequential(nn.Identity()),
    "a ReLU comes before the first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(7, 33)),
    "two activations": lambda: nn.Sequential(nn.Linear(7, 33), nn.ReLU(), nn.Tanh()),
    "two Dropouts": lambda: nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.1), nn.Linear(7, 33)),
    "Dropout comes before a Tanh": lambda: nn.Sequential(nn.Linear(7, 33), nn.Dropout(0.1), nn.Tanh()),
    "has hooks": hooked,
    "forward method of a Sequential was replaced": with_own_forward,
    "occurs twice": shared,
    "float64": lambda: model()[0].double(),
    "a layer has a width of 2,049": lambda: nn.Sequential(nn.Linear(7, 2049), nn.Linear(2049, 33)),
    "a layer has a width of 3,000": lambda: nn.Sequential(nn.Linear(3000, 33)),
    "has 20 outputs, and the heads 33": lambda: nn.Sequential(nn.Linear(7, 20)),
}


@pytest.mark.parametrize("reason", ENCODERS)
def test_an_encoder_that_is_more_than_this_is_not_taken(reason):
    heads = MultiTaskHeads(33, TASKS, "a")
    encoder = ENCODERS[reason]()
    optimizer = optimizer_of(OPTIMIZERS["AdamW"], encoder, heads)
    assert reason in StackTraining.obstacle(encoder, heads, optimizer)
    with pytest.raises(ValueError, match=r"cannot take one kernel call a batch: .*"):
        StackTraining(encoder, heads, optimizer)


@pytest.mark.parametrize(("make", "reason"), [
    (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5), "dampening=0.5 of SGD"),
    (lambda p: torch.optim.SGD(p, 0.1, maximize=True), "maximize=True of SGD"),
    (lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True), "amsgrad=True of AdamW"),
    (lambda p: torch.optim.Adam(p, 0.1, maximize=True), "maximize=True of Adam"),
    (lambda p: torch.optim.Adam(p, 0.1, differentiable=True), "differentiable=True of Adam"),
    (lambda p: torch.optim.Adagrad(p, 0.1), "no rule for Adagrad"),
    (lambda p: torch.optim.NAdam(p, 0.1), "no rule for NAdam"),
])  # fmt: skip
def test_an_optimizer_that_does_more_is_not_taken(make, reason):
    encoder, heads = model()
    optimizer = optimizer_of(make, encoder, heads)
    assert reason in StackTraining.obstacle(encoder, heads, optimizer)
    assert not optimizer.state or "Adagrad" in reason  # which makes its state itself


def test_strided_inputs_are_taken_as_they_are():
    inputs, targets = batch(40)
    found = []
    for each in (inputs, inputs.T.contiguous().T, torch.stack([inputs, inputs], 1)[:, 0]):
        encoder, heads = model()
        found.append(
            stepped(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads), [(each, targets)])
        )
    for losses, moved in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert all(map(torch.equal, moved, found[0][1]))


def test_a_wrong_class_moves_nothing():
    encoder, heads = model()
    training = StackTraining(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
    inputs, targets = batch()
    before = parameters(encoder, heads)
    with pytest.raises(ValueError, match="7"):
        training(inputs, targets | {"a": torch.full((50,), 7)}, WEIGHTS)
    assert all(map(torch.equal, before, parameters(encoder, heads)))


def test_a_diverged_step_shows():
    encoder, heads = model()
    training = StackTraining(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
    inputs, targets = batch()
    inputs[3, 2] = float("nan")
    assert training(inputs, targets, WEIGHTS).isnan().any()

"""BatchNorms in an MLP whose step is one kernel call: what torch and its autograd do, up to rounding.

test_norms.py has what holds for all norms.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import FAMO, AlternateSteps, Diminish, MultiTask, MultiTaskHeads, Switch, Trainer, Uncertainty
from mt2st_fast.training.engines.kernel_calls.stack_training import StackTraining
from tests.training.engines.kernel_calls import normed_stacks
from tests.training.engines.kernel_calls.normed_stacks import V, batches_of, buffers
from tests.training.engines.kernel_calls.test_stack_training import (
    OPTIMIZERS,
    TASKS,
    WEIGHTS,
    batch,
    largest_error,
    optimizer_of,
    parameters,
    stepped,
)
from tests.training.small_runs import ActAfter

# What is normalised has small gradients, and a small eps would make whole steps of their rounding.
CALM = {"lr": 0.005, "weight_decay": 0.1, "eps": 0.1}


def adamw(parameters):
    return torch.optim.AdamW(parameters, **CALM)


def evaluated(*modules):
    """With running statistics, which do not move, in the first BatchNorm."""
    made = nn.Sequential(*modules)
    norm = next(module for module in made if isinstance(module, nn.BatchNorm1d))
    torch.nn.init.normal_(norm.running_mean)
    torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    norm.eval()
    return made


ENCODERS = {
    "before an activation": lambda: nn.Sequential(
        nn.Linear(7, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 33), nn.BatchNorm1d(33), nn.GELU()
    ),
    "after it": lambda: nn.Sequential(
        nn.Linear(7, 130), nn.SiLU(), nn.BatchNorm1d(130, eps=0.1), nn.Linear(130, 33), nn.ReLU(), nn.BatchNorm1d(33)
    ),
    "of inputs, and last": lambda: nn.Sequential(
        nn.BatchNorm1d(7, momentum=None), nn.Linear(7, 33, bias=False), nn.BatchNorm1d(33, momentum=0.5)
    ),
    "without parameters": lambda: nn.Sequential(
        nn.Linear(7, 300), nn.BatchNorm1d(300, affine=False), nn.ReLU(), nn.Linear(300, 33)
    ),
    "without running statistics, twice": lambda: nn.Sequential(
        nn.Linear(7, 33), nn.BatchNorm1d(33, track_running_stats=False), nn.BatchNorm1d(33, momentum=0), nn.GELU("tanh")
    ),
    "beside other norms": lambda: nn.Sequential(
        nn.Linear(7, 20), nn.LayerNorm(20), nn.BatchNorm1d(20), nn.Tanh(), nn.RMSNorm(20), nn.Linear(20, 33)
    ),
    "without a linear layer": lambda: nn.Sequential(nn.BatchNorm1d(33), nn.Tanh(), nn.BatchNorm1d(33)),
    "evaluated": lambda: evaluated(
        nn.Linear(7, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 33), nn.BatchNorm1d(33), nn.ELU()
    ),
    "evaluated, of inputs": lambda: evaluated(nn.BatchNorm1d(7), nn.Linear(7, 33)),
}  # fmt: skip
BAGS = {
    "of bags": lambda: nn.Sequential(nn.EmbeddingBag(V, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 33)),
    "of vectors side by side": lambda: nn.Sequential(
        nn.Embedding(V, 11), nn.Flatten(), nn.BatchNorm1d(33), nn.ReLU(), nn.BatchNorm1d(33)
    ),
}


LEAST_ROWS = 2  # of a batch
ATOL = 2e-6
PARTLY_FROZEN = ("before an activation", "after it", "of inputs, and last", "evaluated", "beside other norms")


def made(encoder):
    return normed_stacks.made((ENCODERS | BAGS)[encoder])


def by_torch(encoder, heads, optimizer, batches, clip_norm=None):
    """As `eager`, also on words."""
    losses, dtype = [], heads.linear("a").weight.dtype
    for inputs, targets in batches:
        out = heads(encoder(inputs.to(dtype) if inputs.is_floating_point() else inputs), targets, WEIGHTS)
        out.total.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_([*encoder.parameters(), *heads.parameters()], clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.losses.detach())
    return torch.stack(losses), parameters(encoder, heads)


def assert_as_accurate_as_torch(make_model, make_optimizer, batches, clip_norm=None):
    """What is normalised by a few rows can be next to 0, and the rounding of its gradients large: in torch, too."""
    runs, states = [], []
    for dtype, run in ((torch.float64, by_torch), (torch.float32, by_torch), (torch.float32, stepped)):
        model = [part.to(dtype) for part in make_model()]
        held = make_optimizer([p for part in model for p in part.parameters() if p.requires_grad])
        losses, moved = run(*model, held, batches, clip_norm=clip_norm)
        runs.append(([losses], moved, buffers(model[0])))
        states.append(held.state_dict())
    for truth, of_torch, ours in zip(*runs, strict=True):
        if truth:
            error, theirs = largest_error(ours, truth), largest_error(of_torch, truth)
            assert error <= 3 * theirs + 1e-6, (error, theirs)
    return states


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("N", [2, 50, 300])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_is_as_accurate_as_torch(encoder, N, clip_norm):
    batches = batches_of(encoder, [N] * 4)
    assert_as_accurate_as_torch(lambda: made(encoder), adamw, batches, clip_norm)


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_as_in_eager_steps(optimizer, clip_norm):
    def slowed(parameters):  # at whose own rates some of them diverge here
        made = OPTIMIZERS[optimizer](parameters)
        for group in made.param_groups:
            group["lr"] = group["lr"] * 0.05
        return made

    batches = [batch(seed=seed) for seed in range(5)]
    _, wanted, found = assert_as_accurate_as_torch(lambda: made("after it"), slowed, batches, clip_norm)
    torch.testing.assert_close(found["state"], wanted["state"], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD with momentum", "our SGD"])
@pytest.mark.parametrize("encoder", BAGS)
def test_a_table_before_it_moves_as_in_eager_steps(encoder, optimizer):
    batches = batches_of(encoder, [50, 9, 140])
    assert_as_accurate_as_torch(lambda: made(encoder), OPTIMIZERS[optimizer], batches)


def test_a_column_of_one_value_is_as_in_torch():
    inputs, targets = batch()
    inputs[:, 3] = 5.0
    assert_as_accurate_as_torch(lambda: made("of inputs, and last"), adamw, [(inputs, targets)])


def test_a_diverged_step_shows():
    model = made("before an activation")
    training = StackTraining(*model, optimizer_of(OPTIMIZERS["AdamW"], *model))
    inputs, targets = batch()
    inputs[3, 2] = float("nan")
    assert training(inputs, targets, WEIGHTS).isnan().any()
    assert model[0][1].running_mean.isnan().all()
    assert all(parameter.isnan().all() for parameter in model[0].parameters())


def test_a_wrong_class_moves_nothing():
    model = made("before an activation")
    training = StackTraining(*model, optimizer_of(OPTIMIZERS["AdamW"], *model))
    inputs, targets = batch()
    before = [*parameters(*model), *buffers(model[0])]
    with pytest.raises(ValueError, match="7"):
        training(inputs, targets | {"a": torch.full((50,), 7)}, WEIGHTS)
    assert all(map(torch.equal, before, [*parameters(*model), *buffers(model[0])]))


# --- what is not taken --------------------------------------------------------------------------------------


def changed(**attributes):
    norm = nn.BatchNorm1d(33)
    for name, value in attributes.items():
        setattr(norm, name, value)
    return norm


REFUSED = {
    "a parameter of a BatchNorm1d over 33 numbers has another shape": lambda: changed(
        weight=nn.Parameter(torch.ones(32))
    ),
    "a BatchNorm1d is over 32 numbers, and what comes before it has 33 outputs": lambda: nn.BatchNorm1d(32),
    "has a OwnNorm": lambda: type("OwnNorm", (nn.BatchNorm1d,), {})(33),
    "has a SyncBatchNorm": lambda: nn.SyncBatchNorm(33),
    "has a BatchNorm2d": lambda: nn.BatchNorm2d(33),
    "has a InstanceNorm1d": lambda: nn.InstanceNorm1d(33),
    "(33,) of float32": lambda: changed(running_var=torch.ones(33, dtype=torch.float64)),
    "running statistics of a BatchNorm1d that are": lambda: changed(running_var=None),
    "counts batches, but has no running statistics": lambda: changed(running_mean=None, running_var=None),
    "counts no batches": lambda: changed(momentum=None, num_batches_tracked=None),
    "one number of int64": lambda: changed(num_batches_tracked=torch.tensor(0.0)),
    "a finite number, not nan": lambda: changed(momentum=float("nan")),
    "no negative momentum of a BatchNorm1d, which is -0.1": lambda: changed(momentum=-0.1),
    "takes a positive eps of a BatchNorm1d, not 0.0": lambda: changed(eps=0.0),
}


def test_one_row_is_refused_before_anything_moves():
    model = made("before an activation")
    training = StackTraining(*model, optimizer_of(OPTIMIZERS["AdamW"], *model))
    before = [*parameters(*model), *buffers(model[0])]
    with pytest.raises(ValueError, match="a BatchNorm needs a batch of at least 2 rows, not 1"):
        training(*batch(1), WEIGHTS)
    assert all(map(torch.equal, before, [*parameters(*model), *buffers(model[0])]))


# --- in runs ------------------------------------------------------------------------------------------------


def loader():
    return [batch(N, seed=N) for N in (31, 20, 64, 90)]


def trainer(backward="auto", callbacks=(), encoder="after it", **options):
    options = {"schedule": Switch(at=0.5), "optimizer": adamw} | options
    return Trainer(*made(encoder), backward=backward, callbacks=list(callbacks), device="cpu", **options)


def of_two_loaders():
    """Of tasks a, b and c, and of d and e, in batches of other sizes."""
    first = [(inputs, {n: targets[n] for n in "abc"}) for inputs, targets in loader()]
    return {
        "a": first,
        "d": [(inputs, {n: targets[n] for n in "de"}) for inputs, targets in map(batch, (5, 70))],
    }


def assert_alike(runs):
    ours, theirs = ([*parameters(run.encoder, run.heads), *buffers(run.encoder)] for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("options", [
    {}, {"clip_norm": 0.3}, {"optimizer": OPTIMIZERS["SGD with momentum"]}, {"schedule": AlternateSteps()},
    {"schedule": Diminish(eta=1.0), "encoder": "of inputs, and last"}, {"schedule": FAMO()},
    {"schedule": Uncertainty()},
])  # fmt: skip
def test_a_run_takes_it_and_is_that_of_autograd(options):
    runs, evaluated = [trainer(backward, **options) for backward in ("auto", "autograd")], []
    for run in runs:
        history = run.fit(loader(), val=loader(), epochs=3)
        evaluated.append(run.evaluate(loader()))
        wanted = "one kernel call" if run is runs[0] else "eager"
        assert {phase.engine for phase in history.phases} == {wanted}
        assert all("one kernel call" not in phase.passed_over for phase in history.phases) == (run is runs[0])
    assert_alike(runs)
    for name, metrics in evaluated[0].items():
        assert metrics == pytest.approx(evaluated[1][name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("data", "options", "reason"), [
    (loader, {"accumulate": 3}, "takes the statistics of each of a step's 3 batches, not of all rows"),
    (of_two_loaders, {}, "takes the statistics of each of a step's 2 batches, not of all rows"),
    (lambda: [batch(6)] * 3 + [batch(1)], {}, "a BatchNorm1d needs a batch of at least 2 rows, not 1"),
])  # fmt: skip
def test_steps_of_several_batches_or_one_row_are_left_to_torch(data, options, reason):
    runs, raised = [trainer(backward, **options) for backward in ("auto", "autograd")], []
    for run in runs:
        try:
            run.fit(data(), epochs=2)
        except ValueError as error:
            raised.append(str(error))
    assert "in some steps: a BatchNorm1d" in runs[0].history.phases[0].passed_over["one kernel call"]
    assert reason in runs[0].history.phases[0].passed_over["one kernel call"]
    assert raised == [
        "Expected more than 1 value per channel when training, got input size torch.Size([1, 130])"
    ] * (2 if "not 1" in reason else 0)
    assert_alike(runs)


def test_batches_of_running_statistics_are_joined():
    def evaluate(trainer):
        trainer.encoder[2].eval()
        trainer.encoder[5].eval()

    runs = [
        trainer(way, schedule=MultiTask(), accumulate=3, callbacks=[ActAfter(1, evaluate)])
        for way in ("auto", "autograd")
    ]
    for run in runs:
        run.fit(loader(), epochs=3)
    assert_alike(runs)


def test_channels_on_another_axis_are_left_to_torch():
    encoder, heads = nn.Sequential(nn.Linear(7, 33), nn.BatchNorm1d(4)), MultiTaskHeads(33, TASKS, "a")
    optimizer = optimizer_of(OPTIMIZERS["AdamW"], encoder, heads)
    assert "is over 4 numbers" in StackTraining.obstacle(encoder, heads, optimizer)
    encoder[1] = nn.BatchNorm1d(33)
    training = StackTraining(encoder, heads, optimizer_of(OPTIMIZERS["AdamW"], encoder, heads))
    assert training.inputs_obstacle([torch.randn(6, 7)]) is None
    assert "channels on the second of 3 axes" in training.inputs_obstacle([torch.randn(6, 33, 7)])


def replace_statistics(encoder):
    encoder[2].running_mean = torch.ones(130)


def move_statistics(encoder):
    encoder[2].running_mean.data = torch.ones(130)


def drop_statistics(encoder):
    encoder[2].track_running_stats, encoder[2].running_mean, encoder[2].running_var = False, None, None


@pytest.mark.parametrize("act", [
    lambda encoder: setattr(encoder[2], "eps", 0.5), lambda encoder: setattr(encoder[2], "momentum", 0.7),
    lambda encoder: setattr(encoder[2], "momentum", None), lambda encoder: encoder[2].eval(),
    lambda encoder: setattr(encoder[2], "track_running_stats", False), lambda encoder: encoder[2].reset_running_stats(),
    lambda encoder: setattr(encoder[2], "weight", nn.Parameter(torch.full((130,), 0.5))),
    lambda encoder: setattr(encoder[2], "bias", None), lambda encoder: encoder[2].requires_grad_(False),
    lambda encoder: encoder.pop(2), lambda encoder: encoder.insert(0, nn.BatchNorm1d(7)), replace_statistics,
    move_statistics, drop_statistics, lambda encoder: setattr(encoder, "1", nn.LeakyReLU(0.3)),
])  # fmt: skip
def test_what_a_callback_changes_counts_from_the_next_step_on(act):
    runs = [
        trainer(way, schedule=MultiTask(), callbacks=[ActAfter(2, lambda trainer: act(trainer.encoder))])
        for way in ("auto", "autograd")
    ]
    for run in runs:
        run.fit(loader(), epochs=2)
    assert not runs[0].history.phases[0].passed_over
    assert_alike(runs)


def test_an_option_of_an_activation_counts_from_the_next_step_on():
    def act(trainer):
        trainer.encoder[1].negative_slope = 0.5

    runs = []
    for way in ("auto", "autograd"):
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(7, 33), nn.LeakyReLU(0.1))
        run = Trainer(
            encoder, MultiTaskHeads(33, TASKS, "a"), backward=way, callbacks=[ActAfter(2, act)], device="cpu"
        )
        assert run.fit(loader(), epochs=2).phases[0].engine == (
            "one kernel call" if way == "auto" else "eager"
        )
        runs.append(run)
    assert_alike(runs)

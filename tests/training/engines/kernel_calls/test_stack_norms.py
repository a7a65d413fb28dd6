"""LayerNorms and RMSNorms in an MLP whose step is one kernel call: what torch and its autograd do, up to rounding.

test_norms.py has what holds for all norms.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import Diminish, MultiTask, Switch, Trainer
from mt2st_fast.training.engines.kernel_calls.stack_layers import stack_layers
from tests.training.engines.kernel_calls import normed_stacks
from tests.training.engines.kernel_calls.normed_stacks import V, batches_of
from tests.training.engines.kernel_calls.test_stack_runs import loader, loaders
from tests.training.engines.kernel_calls.test_stack_training import (
    ADAMW,
    OPTIMIZERS,
    WEIGHTS,
    batch,
    eager,
    largest_error,
    optimizer_of,
    parameters,
    stepped,
)
from tests.training.small_runs import ActAfter

ENCODERS = {
    "before an activation": lambda: nn.Sequential(
        nn.Linear(7, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 33), nn.LayerNorm(33), nn.GELU()
    ),
    "after it": lambda: nn.Sequential(
        nn.Linear(7, 130), nn.Tanh(), nn.LayerNorm(130, eps=0.1), nn.Linear(130, 33), nn.ReLU(), nn.LayerNorm(33)
    ),
    "of inputs, and last": lambda: nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 33, bias=False), nn.LayerNorm(33)),
    "without parameters": lambda: nn.Sequential(
        nn.Linear(7, 300), nn.LayerNorm(300, elementwise_affine=False), nn.ReLU(), nn.Linear(300, 33)
    ),
    "without bias, twice": lambda: nn.Sequential(
        nn.Linear(7, 33), nn.LayerNorm(33, bias=False), nn.LayerNorm(33, eps=0.5), nn.Identity(), nn.GELU("tanh")
    ),
    "without a linear layer": lambda: nn.Sequential(nn.LayerNorm(33), nn.Tanh()),
    "not centred": lambda: nn.Sequential(
        nn.RMSNorm(7), nn.Linear(7, 20), nn.RMSNorm(20, eps=0.1), nn.ReLU(), nn.Linear(20, 33),
        nn.RMSNorm(33, elementwise_affine=False),
    ),
}  # fmt: skip
BAGS = {
    "of bags": lambda: nn.Sequential(nn.EmbeddingBag(V, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 33)),
    "of vectors side by side": lambda: nn.Sequential(
        nn.Embedding(V, 11), nn.Flatten(), nn.LayerNorm(33), nn.LayerNorm(33)
    ),
}


LEAST_ROWS = 1  # of a batch
ATOL = 1e-6
PARTLY_FROZEN = ("before an activation", "after it", "of inputs, and last")


def adamw(parameters):
    return torch.optim.AdamW(parameters, **ADAMW)


def made(encoder):
    return normed_stacks.made((ENCODERS | BAGS)[encoder])


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("N", [1, 50, 300])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_is_as_accurate_as_torch(encoder, N, clip_norm):
    runs = []
    for dtype, run in ((torch.float64, eager), (torch.float32, eager), (torch.float32, stepped)):
        model = [part.to(dtype) for part in made(encoder)]
        # Losses that grow have errors of their own size.
        held = optimizer_of(lambda p: torch.optim.AdamW(p, **ADAMW | {"lr": 0.002}), *model)
        runs.append(run(*model, held, batches_of(encoder, [N] * 4), clip_norm=clip_norm))
    truth, of_torch, ours = runs
    for place in (0, 1):
        error, theirs = largest_error(ours[place], truth[place]), largest_error(of_torch[place], truth[place])
        assert error <= 2 * theirs + 2e-7, (error, theirs)


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_moves_as_in_eager_steps(optimizer, clip_norm):
    found = []
    for run in (eager, stepped):
        model = made("before an activation")
        held = optimizer_of(OPTIMIZERS[optimizer], *model)
        for group in held.param_groups:  # at whose own rates some of them diverge here
            group["lr"] = group["lr"] * 0.05
        batches = [batch(seed=seed) for seed in range(5)]
        found.append((*run(*model, held, batches, clip_norm=clip_norm), held.state_dict()))
    (losses, wanted, state), (own_losses, moved, own_state) = found
    torch.testing.assert_close(own_losses, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own_state["state"], state["state"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD with momentum", "our SGD"])
@pytest.mark.parametrize("encoder", BAGS)
def test_a_table_before_it_moves_as_in_eager_steps(encoder, optimizer):
    found = []
    for run in (eager, stepped):
        model = made(encoder)
        held = optimizer_of(OPTIMIZERS[optimizer], *model)
        if run is eager:
            found.append(of_bags(*model, held, encoder))
        else:
            found.append(run(*model, held, batches_of(encoder, [50, 9, 140])))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def of_bags(encoder, heads, optimizer, name):
    losses = []
    for words, targets in batches_of(name, [50, 9, 140]):
        out = heads(encoder(words), targets, WEIGHTS)
        out.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.losses)
    return torch.stack(losses), parameters(encoder, heads)


def test_it_is_part_of_the_layer_whose_products_it_normalises():
    found = stack_layers(ENCODERS["before an activation"]())
    assert [layer.activation.name for layer in found.layers] == ["relu", "gelu"]
    assert len(stack_layers(ENCODERS["after it"]()).layers) == 4


def with_weight(n):
    norm = nn.LayerNorm(33)
    norm.weight = nn.Parameter(torch.ones(n))
    return norm


REFUSED = {
    "over the last axis, not over 2 axes": lambda: nn.LayerNorm((3, 33)),
    "a parameter of a LayerNorm over 33 numbers has another shape": lambda: with_weight(32),
    "a LayerNorm is over 32 numbers, and what comes before it has 33 outputs": lambda: nn.LayerNorm(32),
    "has a OwnNorm": lambda: type("OwnNorm", (nn.LayerNorm,), {})(33),
    "takes a RMSNorm over the last axis, not over 2 axes": lambda: nn.RMSNorm((3, 33)),
}


# --- in runs ------------------------------------------------------------------------------------------------


def trainer(backward="auto", callbacks=(), encoder="before an activation", **options):
    options = {"schedule": Switch(at=0.5), "optimizer": OPTIMIZERS["AdamW"]} | options
    return Trainer(*made(encoder), backward=backward, callbacks=list(callbacks), device="cpu", **options)


def sequences():
    inputs, targets = batch(24)
    rows = {name: target.view(4, 6, *target.shape[1:]) for name, target in targets.items()}
    return [(inputs.view(4, 6, 7), rows), *loader()]


@pytest.mark.parametrize("options", [
    {}, {"clip_norm": 0.3, "accumulate": 2}, {"optimizer": None, "lr": 0.02, "weight_decay": 0.3},
    {"schedule": Diminish(eta=1.0), "encoder": "after it"}, {"accumulate": 3, "encoder": "without bias, twice"},
])  # fmt: skip
@pytest.mark.parametrize("data", [sequences, loaders])
def test_a_run_takes_it_and_is_that_of_autograd(data, options):
    runs, evaluated = [trainer(backward, **options) for backward in ("auto", "autograd")], []
    for run in runs:
        history = run.fit(data(), epochs=3)
        evaluated.append(run.evaluate(loader()))
        wanted = "one kernel call" if run is runs[0] else "eager"
        assert {phase.engine for phase in history.phases} == {wanted}
    ours, theirs = (parameters(run.encoder, run.heads) for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, metrics in evaluated[0].items():
        assert metrics == pytest.approx(evaluated[1][name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("act", [
    lambda encoder: setattr(encoder[1], "eps", 0.5),
    lambda encoder: setattr(encoder[1], "weight", nn.Parameter(torch.full((20,), 0.5))),
    lambda encoder: setattr(encoder[1], "bias", None), lambda encoder: setattr(encoder[1], "weight", None),
    lambda encoder: encoder[1].requires_grad_(False), lambda encoder: encoder.pop(1),
    lambda encoder: encoder.insert(0, nn.LayerNorm(7)), lambda encoder: encoder.insert(1, nn.RMSNorm(20, eps=0.3)),
])  # fmt: skip
def test_what_a_callback_changes_counts_from_the_next_step_on(act):
    runs = [
        trainer(way, schedule=MultiTask(), callbacks=[ActAfter(2, lambda trainer: act(trainer.encoder))])
        for way in ("auto", "autograd")
    ]
    for run in runs:
        run.fit(loader(), epochs=2)
    assert not runs[0].history.phases[0].passed_over
    ours, theirs = (parameters(run.encoder, run.heads) for run in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

"""`task_losses`: heads on the same rows take one kernel call, and give what one call for each of them gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, MultiLabel, MultiTaskHeads, OpenTask, Regression
from mt2st_fast.kernels.heads.on_numba import tile

D, N, T = 12, 9, 6
TASKS = {
    "upos": Classification(5),
    "smooth": Classification(3, label_smoothing=0.1, class_weights=(1.0, 0.0, 2.0)),
    "number": Classification(3, ignore_index=-1),
    "topics": MultiLabel(4),
    "score": Regression(2),
}


class Norm(OpenTask):
    """A loss of its own on the features."""

    def loss(self, features, targets, mask):
        return (features.square().mean((1, 2)) * targets).mean()


ALL = TASKS | {"genre": Classification(4, pooling="mean"), "first": Classification(4, pooling="first")}


def make(tasks=TASKS, **options):
    torch.manual_seed(0)
    return MultiTaskHeads(D, tasks, "upos", **options)


def batch(names=TASKS, missing=0.3):
    """Features (N, T, D), and targets by task, of which a share is missing."""
    generator = torch.Generator().manual_seed(1)
    targets = {
        "upos": torch.randint(0, 5, (N, T), generator=generator),
        "smooth": torch.randint(0, 3, (N, T), generator=generator),
        "number": torch.randint(0, 3, (N, T), generator=generator),
        "topics": torch.rand(N, T, 4, generator=generator).round(),
        "score": torch.randn(N, T, 2, generator=generator),
        "genre": torch.randint(0, 4, (N,), generator=generator),
        "first": torch.randint(0, 4, (N,), generator=generator),
        "norm": torch.rand(N, generator=generator),
    }
    marks = {"upos": -100, "smooth": -100, "number": -1, "topics": float("nan"), "score": float("nan")}
    for name, mark in marks.items():
        targets[name][torch.rand(targets[name].shape, generator=generator) < missing] = mark
    features = torch.randn(N, T, D, generator=generator).requires_grad_()
    return features, {name: targets[name] for name in names}


def each_alone(heads, features, targets, **options):
    """A fused loss for each task, as heads with one task compute it."""
    return {
        name: heads(features, {name: targets[name]}, torch.ones(len(heads.active)), **options).total
        for name in heads.active
        if name in targets
    }


def check_alike(heads, features, found, expected):
    """Hold losses and all of their gradients against others."""
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    wanted = [features, *(p for p in heads.parameters() if p.requires_grad)]
    for name, loss in found.items():
        gradients, others = (
            torch.autograd.grad(each, wanted, allow_unused=True) for each in (loss, expected[name])
        )
        for gradient, other in zip(gradients, others, strict=True):
            assert (gradient is None) == (other is None), name
            if other is not None:
                torch.testing.assert_close(gradient, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


@pytest.fixture
def passes(monkeypatch):
    """Count the kernel calls, by the number of their heads."""
    made = []
    kernel = tile.tile_pass

    def counted(*args):
        made.append(len(args[6]))
        return kernel(*args)

    monkeypatch.setattr(tile, "tile_pass", counted)
    return made


OPTIONS = {
    "means": {},
    "sums": {"reduction": "sum"},
    "denominators": {"denominators": {"upos": 70.0, "number": torch.tensor(11), "score": 5}},
    "token weights": {"token_weights": {"number": torch.linspace(0, 2, N * T).reshape(N, T)}},
    "token weights of all": {"token_weights": torch.linspace(0, 2, N * T).reshape(N, T)},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_losses_are_those_of_every_task_alone(options):
    heads, (features, targets) = make(), batch()
    heads.set_weights({"upos": 3.0, "score": 0.0})  # of `forward` alone
    found = heads.task_losses(features, targets, **OPTIONS[options])
    check_alike(heads, features, found, each_alone(heads, features, targets, **OPTIONS[options]))


def test_one_kernel_call_for_all_heads_on_the_same_rows(passes):
    heads, (features, targets) = make(), batch(missing=0.0)
    losses = heads.task_losses(features, targets)
    for loss in losses.values():
        loss.backward(retain_graph=True)
        loss.backward()
    assert passes == [5]
    passes.clear()
    heads.task_losses(features, targets, token_weights={"number": torch.ones(N, T)})
    heads.task_losses(features, targets, denominators={"upos": 5})
    assert passes == [4, 5]


def test_tasks_of_all_kinds_in_one_call(passes):
    heads, (features, targets) = make(ALL | {"norm": Norm()}), batch([*ALL, "norm"], missing=0.0)
    heads.linear("number").register_forward_hook(lambda module, args, output: 2 * output)
    mask = torch.arange(T) < torch.arange(1, N + 1).unsqueeze(1)
    found = heads.task_losses(features, targets, mask=mask)
    assert passes == [4, 1, 1], "the heads on tokens, and one for each that pools"
    check_alike(heads, features, found, each_alone(heads, features, targets, mask=mask))


def test_tasks_that_are_retired_missing_or_alone(passes):
    heads, (features, targets) = make(), batch(missing=0.0)
    heads.set_active(["upos", "number", "score"])
    del targets["score"]
    found = heads.task_losses(features, targets)
    assert list(found) == ["upos", "number"]
    check_alike(heads, features, found, each_alone(heads, features, targets))
    passes.clear()
    alone = heads.task_losses(features, {"number": targets["number"]})
    assert passes == [1]
    check_alike(heads, features, alone, each_alone(heads, features, {"number": targets["number"]}))
    with pytest.raises(ValueError, match="none of the active tasks"):
        heads.task_losses(features, {"topics": targets["topics"]})


@pytest.mark.parametrize("missing", [0.9, 1.0])
def test_batches_with_few_labels(missing):
    heads, (features, targets) = make(), batch(missing=missing)
    targets["upos"] = torch.ones_like(targets["upos"])
    found = heads.task_losses(features, targets)
    check_alike(heads, features, found, each_alone(heads, features, targets))


def test_without_a_gradient_and_under_autocast():
    heads, (features, targets) = make(), batch()
    expected = {name: loss.detach() for name, loss in each_alone(heads, features, targets).items()}
    with torch.no_grad():
        found = heads.task_losses(features, targets)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        found, alone = heads.task_losses(features, targets), each_alone(heads, features, targets)
    check_alike(heads, features, found, alone)
    fixed = features.detach()
    weight = heads.linear("number").weight
    found, alone = heads.task_losses(fixed, targets), each_alone(heads, fixed, targets)
    (one,), (other,) = (torch.autograd.grad(each["number"], weight) for each in (found, alone))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_heads_of_an_own_class_are_asked_for_every_loss():
    class Doubled(MultiTaskHeads):
        def forward(self, *args, **options):
            out = super().forward(*args, **options)
            return out._replace(total=2 * out.total)

    features, targets = batch()
    torch.manual_seed(0)
    found = Doubled(D, TASKS, "upos").task_losses(features, targets)
    expected = make().task_losses(features, targets)
    torch.testing.assert_close(found, {name: 2 * loss for name, loss in expected.items()})


def test_one_layer_for_two_tasks():
    linear = nn.Linear(D, 3)
    heads = MultiTaskHeads.from_modules(
        {"a": linear, "b": linear}, {"a": Classification(3), "b": Classification(3)}, "a"
    )
    features, targets = batch()
    targets = {"a": targets["smooth"], "b": targets["number"].clamp_min(0)}
    for loss in heads.task_losses(features, targets).values():
        loss.backward()
    found, linear.weight.grad = linear.weight.grad, None
    sum(each_alone(heads, features, targets).values()).backward()
    torch.testing.assert_close(found, linear.weight.grad, rtol=1e-6, atol=1e-7)


def test_a_jacobian_as_torchjd_takes_it():
    """A gradient of features and own parameters for each loss, then all of them through the encoder at once."""
    heads, (inputs, targets) = make(), batch()
    encoder = nn.Linear(D, D)
    features = encoder(inputs.detach())
    rows = []
    for name, loss in heads.task_losses(features, targets).items():
        own = [*heads.linear(name).parameters()]
        rows.append(torch.autograd.grad(loss, [*own, features])[-1])
    found = torch.vmap(lambda row: torch.autograd.grad(features, encoder.weight, row))(torch.stack(rows))[0]
    again = encoder(inputs.detach())
    for row, loss in zip(found, each_alone(heads, again, targets).values(), strict=True):
        (expected,) = torch.autograd.grad(loss, encoder.weight, retain_graph=True)
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-7)

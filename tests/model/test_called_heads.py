"""Heads that somebody has put something around, or something else in the place of: called, and never passed by."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from mt2st_fast import (
    BagEncoder,
    Classification,
    InputError,
    LazyAdam,
    MultiLabel,
    MultiTaskHeads,
    Trainer,
    save_modules,
)
from mt2st_fast.kernels import HeadSpec, Kind
from mt2st_fast.kernels.heads import reference
from mt2st_fast.model import called_heads

D = 6
TASKS = {"a": Classification(4), "b": Classification(3), "c": MultiLabel(2)}


class Adapter(nn.Module):
    """What peft puts in the place of a layer: the layer, frozen, and a product of two small matrices."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(D, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, features):
        return self.base(features) + self.up(self.down(features))


class Doubled(nn.Linear):
    def forward(self, features):
        return 2.0 * super().forward(features)


def put(heads, layer):
    heads.linears["a"] = layer
    return heads


def own_forward(heads):
    layer = heads.linear("a")
    layer.forward = lambda features: 3.0 * nn.Linear.forward(layer, features)


def fast_tensor(name):
    """As loops that learn to learn do: a parameter gives way to a tensor that was computed from it."""

    def put_in_place(heads):
        layer = heads.linear("a")
        values = getattr(layer, name).detach() * 2.0 + 0.1
        delattr(layer, name)
        setattr(layer, name, values)

    return put_in_place


WAYS = {
    "adapter": lambda heads: put(heads, Adapter(heads.linear("a"))),
    "subclass": lambda heads: put(heads, Doubled(D, 4)),
    "two layers": lambda heads: put(heads, nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 4))),
    "hook": lambda heads: heads.linear("a").register_forward_hook(lambda m, i, o: o + 1.0 * (o > 0)),
    "pre-hook": lambda heads: heads.linear("a").register_forward_pre_hook(lambda m, i: (i[0] * 0.5,)),
    "backward hook": lambda heads: heads.linear("a").register_full_backward_hook(
        lambda m, i, o: tuple(2.0 * g for g in i)
    ),
    "parametrization": lambda heads: parametrizations.weight_norm(heads.linear("a")),
    "overrides forward": own_forward,
    "tensor as weight": fast_tensor("weight"),
    "tensor as bias": fast_tensor("bias"),
}


def make(way):
    torch.manual_seed(0)
    heads = MultiTaskHeads(D, TASKS, "a")
    WAYS[way](heads)
    return heads


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, D, generator=generator), {
        "a": torch.randint(-1, 4, (20,), generator=generator)
        .where(torch.arange(20) > 2, -100)
        .clamp(min=-100),
        "b": torch.randint(0, 3, (20,), generator=generator),
        "c": torch.rand(20, 2, generator=generator).round(),
    }


@pytest.fixture(autouse=True)
def _said_anew():
    called_heads._log_once.cache_clear()


@pytest.mark.parametrize("way", WAYS)
def test_loss_and_every_gradient_are_those_of_the_called_layer(way):
    features, targets = data()
    targets["a"] = targets["a"].where(targets["a"] != -1, -100)
    heads, same = make(way), make(way)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    weights = {"a": 1.0, "b": 0.5, "c": 2.0}
    out = heads(ours, targets, weights)
    out.total.backward()
    losses = [
        nn.functional.cross_entropy(same.linears["a"](theirs), targets["a"]),
        nn.functional.cross_entropy(same.linears["b"](theirs), targets["b"]),
        nn.functional.binary_cross_entropy_with_logits(same.linears["c"](theirs), targets["c"]),
    ]
    sum(w * loss for w, loss in zip(weights.values(), losses, strict=True)).backward()
    torch.testing.assert_close(out.losses, torch.stack(losses).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    for (name, own), other in zip(heads.named_parameters(), same.parameters(), strict=True):
        assert (own.grad is None) is (other.grad is None), name
        if own.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(heads.logits(features, "a"), same.linears["a"](features))
    right = (same.linears["a"](features).argmax(1) == targets["a"]).sum()
    assert out.correct[0] == right


@pytest.mark.parametrize("way", ["adapter", "hook"])
def test_a_called_head_of_weight_0_is_nothing_as_a_fused_one_is(way):
    features, targets = data()
    targets["a"] = targets["a"].clamp(min=0)
    heads = make(way)
    with torch.no_grad():
        for parameter in heads.linears["a"].parameters():
            parameter.fill_(float("inf"))
    out = heads(features, targets, {"a": 0.0})
    assert out.losses[0] == out.correct[0] == 0
    assert out.total.isfinite()


def test_an_adapter_retires_and_returns_with_what_was_trained():
    heads = MultiTaskHeads(D, TASKS, "b")
    put(heads, Adapter(heads.linear("a")))
    trained = [name for name, p in heads.named_parameters() if p.requires_grad]
    heads.set_active(["b"])
    assert not any(p.requires_grad for p in heads.linears["a"].parameters())
    heads.set_active(TASKS)
    assert [name for name, p in heads.named_parameters() if p.requires_grad] == trained
    assert not heads.linear("a").base.weight.requires_grad


def test_a_layer_that_was_changed_while_retired_comes_back_by_the_names_of_its_parameters():
    heads = MultiTaskHeads(D, TASKS, "b")
    heads.set_active(["b"])
    replaced = {name: torch.zeros_like(p) for name, p in heads.linear("a").named_parameters()}
    heads.linear("a").load_state_dict(replaced, assign=True)
    heads.set_active(TASKS)
    assert all(p.requires_grad for p in heads.linear("a").parameters())


def test_a_weight_that_is_computed_is_computed_once_a_pass():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.computed = 0

        def forward(self, weight):
            self.computed += 1
            return 2.0 * weight

    features, targets = data()
    targets["a"] = targets["a"].clamp(min=0)
    heads, counting = MultiTaskHeads(D, TASKS, "a"), Counting()
    parametrize.register_parametrization(heads.linear("a"), "weight", counting)
    for call in (
        lambda: heads(features, targets),
        lambda: heads.logits(features, "a"),
        lambda: heads.task_losses(features, targets),
        lambda: heads(features.double(), targets),
    ):
        counting.computed = 0
        call()
        assert counting.computed == 1


def test_it_is_said_once_and_not_of_plain_heads(caplog):
    features, targets = data()
    heads = MultiTaskHeads(D, TASKS, "a")
    targets["a"] = targets["a"].clamp(min=0)
    with caplog.at_level(logging.WARNING):
        heads(features, targets)
        assert not [r for r in caplog.records if "called" in r.message]
        handle = heads.linear("b").register_forward_hook(lambda *_: None)
        for _ in range(3):
            heads(features, targets)
    assert [r.message for r in caplog.records if "called" in r.message] == [
        "the head of b has hooks, so it is called as a module instead of being fused (slower)"
    ]
    handle.remove()
    assert heads.reasons_to_call() == {}


def test_a_hook_sees_the_features_and_the_logits_of_every_pass():
    features, targets = data()
    heads = MultiTaskHeads(D, TASKS, "a")
    seen = []
    heads.linear("b").register_forward_hook(lambda m, i, o: seen.append((i[0].shape, o.shape)))
    heads(features, {"b": targets["b"]})
    heads.logits(features, "b")
    assert seen == [((20, D), (20, 3))] * 2


@pytest.mark.parametrize("options", [{"backend": "numba"}, {"plan": "chunked"}])
def test_kernels_that_were_asked_for_by_name_refuse(options):
    heads = MultiTaskHeads(D, TASKS, "a", **options)
    heads.linear("b").register_forward_hook(lambda *_: None)
    features, targets = data()
    asked = "=".join(*options.items())
    with pytest.raises(
        RuntimeError, match=f"{asked} cannot be honoured: head b has hooks, so it must be called as a module"
    ):
        heads(features, targets)
    heads.set_active(["a", "c"])  # the hook's head takes no part any more
    heads(features, targets | {"a": targets["a"].clamp(min=0)})


def test_kernels_that_the_environment_asks_for_refuse_too(monkeypatch):
    monkeypatch.setenv("MT2ST_BACKEND", "numba")
    heads = make("hook")
    with pytest.raises(RuntimeError, match="MT2ST_BACKEND=numba cannot be honoured: head a has hooks"):
        heads(*data())


@pytest.mark.parametrize("way", [None, "adapter"])
@pytest.mark.parametrize(
    ("task", "dtype"), [("a", torch.bool), ("a", torch.float32), ("c", torch.bool), ("c", torch.int64)]
)
def test_targets_of_another_type_are_named_by_every_call(way, task, dtype):
    features, targets = data()
    heads = make(way) if way else MultiTaskHeads(D, TASKS, "a")
    targets = {"b": targets["b"], task: targets[task].clamp(min=0).to(dtype)}
    fix = r"targets of {} must be .*, not {}; pass .* as target\.".format(
        task, str(dtype).replace(".", r"\.")
    )
    for call in (heads, heads.task_losses, lambda f, t: heads.task_losses(f, t, reduction="none")):
        with pytest.raises(TypeError, match=fix):
            call(features, targets)
    with pytest.raises(TypeError, match=fix):
        heads.label_counts(targets)


def test_a_class_out_of_range_is_named():
    heads = make("subclass")
    features, targets = data()
    with pytest.raises(ValueError, match=r"targets of a: 9 lies outside \[0, 4\)"):
        heads(features, targets | {"a": torch.full((20,), 9)})


@pytest.mark.parametrize("head", [HeadSpec(Kind.SOFTMAX, 4), HeadSpec(Kind.BINARY, 4)], ids=str)
def test_off_the_cpu_nobody_waits_for_targets_of_a_called_head(head):
    """meta stands for a GPU: what nobody can look at cannot have been waited for."""
    on = {"device": "meta"}
    target = torch.zeros(5, dtype=torch.int32, **on) if head.kind.takes_classes else torch.zeros(5, 4, **on)
    rows = called_heads.called("a", nn.Linear(D, 4, **on), torch.zeros(5, D, **on), target, head)
    assert rows.losses.shape == (5,)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_off_the_cpu_a_target_out_of_range_is_nan_in_the_loss_of_its_task_alone(monkeypatch, backend):
    monkeypatch.setattr(reference, "_is_at_hand", lambda values: False)
    heads, (features, targets) = make("subclass"), data()
    heads.backend = backend
    good = heads(features, targets).losses
    wrong = {name: target.clone() for name, target in targets.items()}
    for value in (-3, 4, 2**40):
        wrong["a"][3] = value
        out = heads(features, wrong)
        assert out.losses.isnan().tolist() == [True, False, False]
        assert torch.equal(out.losses[1:], good[1:])
    if backend == "reference":  # a kernel on a CPU refuses it
        wrong["c"][5, 1] = 1.5
        assert heads(features, wrong).losses.isnan().tolist() == [True, False, True]


def test_autocast_and_half_precision_come_through():
    features, targets = data()
    targets["a"] = targets["a"].clamp(min=0)
    heads = make("adapter")
    exact = heads(features, targets).losses
    with torch.autocast("cpu", torch.bfloat16):
        out = heads(features, targets)
    assert out.losses.dtype == out.total.dtype == torch.float32
    torch.testing.assert_close(out.losses, exact, rtol=2e-2, atol=2e-2)
    low = heads.bfloat16()(features.bfloat16(), targets)
    torch.testing.assert_close(low.losses, exact, rtol=3e-2, atol=3e-2)


def test_a_step_in_one_kernel_call_does_not_pass_a_layer_by():
    heads = MultiTaskHeads(8, {"a": Classification(4), "b": Classification(3)}, "a")
    doubled = Doubled(8, 4)
    heads.linears["a"] = doubled
    encoder = BagEncoder(10, 8, sparse=True)
    batch = (
        (torch.arange(6), torch.tensor([0, 2, 4, 6])),
        {"a": torch.tensor([0, 1, 2]), "b": torch.tensor([0, 1, 2])},
    )
    trainer = Trainer(encoder, heads, optimizer=lambda p: LazyAdam(p, lr=0.1), device="cpu")
    history = trainer.fit([batch], epochs=1)
    assert history.phases[0].engine == "eager"
    assert "Doubled, not a plain torch.nn.Linear" in str(history.phases[0])


def test_a_model_is_not_kept_without_what_is_around_its_heads(tmp_path):
    heads = MultiTaskHeads(8, {"a": Classification(4)}, "a")
    heads.linears["a"] = Doubled(8, 4)
    with pytest.raises(
        InputError,
        match=r"the head of a is a .*\.Doubled, not a plain torch\.nn\.Linear, so it cannot be saved",
    ):
        save_modules(tmp_path / "model", BagEncoder(10, 8), heads)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hooked", [False, True])
def test_features_of_another_dtype_than_the_heads_give_losses_and_logits(dtype, hooked):
    torch.manual_seed(0)
    heads = MultiTaskHeads(8, {"a": Classification(3), "b": MultiLabel(2)}, main="a")
    if hooked:
        heads.linear("a").register_forward_hook(lambda *_: None)
    features, target = torch.randn(6, 8).to(dtype).requires_grad_(), torch.arange(6) % 3
    out = heads(features, {"a": target})
    logits = heads.logits(features, "a")
    assert logits.dtype == torch.float32
    wanted = nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(
        out.losses[0].float(), wanted.detach(), rtol=2e-2 if dtype.itemsize == 2 else 1e-6, atol=1e-6
    )
    out.total.backward()
    assert features.grad.dtype == dtype
    assert features.grad.abs().sum() > 0


def test_an_encoder_of_another_dtype_trains_and_is_evaluated():
    torch.manual_seed(0)
    encoder, heads = nn.Linear(4, 8).bfloat16(), MultiTaskHeads(8, {"a": Classification(3)}, main="a")
    batches = [(torch.randn(6, 4).bfloat16(), {"a": torch.arange(6) % 3})] * 2
    history = Trainer(encoder, heads, device="cpu", lr=0.01).fit(batches, val=batches, epochs=2)
    assert history.best.metrics["a"] >= 0

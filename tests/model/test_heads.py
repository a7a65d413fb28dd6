"""MultiTaskHeads: parameters that other code can name and share, retirement, missing tasks, shapes."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mt2st_fast import Classification, MultiLabel, MultiTaskHeads, Regression
from mt2st_fast.model import one_head
from tests.kernels.launches import counted_launches

TASKS = {
    "upos": Classification(5, label_smoothing=0.1),
    "feats.Number": Classification(3, class_weights=(1.0, 2.0, 0.5), ignore_index=-1),
    "topics": MultiLabel(4),
    "score": Regression(),
}
D = 7


@pytest.fixture
def heads():
    torch.manual_seed(0)
    return MultiTaskHeads(D, TASKS, "upos")


def data(*rows, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*rows, D, generator=generator)
    targets = {
        "upos": torch.randint(0, 5, rows, generator=generator),
        "feats.Number": torch.randint(-1, 3, rows, generator=generator),
        "topics": torch.rand(*rows, 4, generator=generator).round(),
        "score": torch.randn(*rows, generator=generator),
    }
    return features, targets


def eager_losses(heads, features, targets):
    """What the same user would write with K nn.Linear: losses by task."""
    weights = torch.tensor([1.0, 2.0, 0.5])
    return {
        "upos": F.cross_entropy(heads.linear("upos")(features), targets["upos"], label_smoothing=0.1),
        "feats.Number": F.cross_entropy(
            heads.linear("feats.Number")(features), targets["feats.Number"], weight=weights, ignore_index=-1
        ),
        "topics": F.binary_cross_entropy_with_logits(heads.linear("topics")(features), targets["topics"]),
        "score": F.mse_loss(heads.linear("score")(features).squeeze(1), targets["score"]),
    }


def gradients(heads):
    return {name: p.grad for name, p in heads.named_parameters()}


# --- what it computes ----------------------------------------------------------------------------------


def test_losses_and_gradients_are_those_of_a_linear_layer_and_a_loss_a_task(heads):
    features, targets = data(50)
    features.requires_grad_()
    weights = {"upos": 1.0, "feats.Number": 0.5, "topics": 2.0, "score": 0.25}
    out = heads(features, targets, weights)
    out.total.backward()
    ours, our_features = gradients(heads), features.grad
    heads.zero_grad(set_to_none=True)
    features.grad = None
    losses = eager_losses(heads, features, targets)
    sum(weights[name] * loss for name, loss in losses.items()).backward()
    torch.testing.assert_close(dict(zip(heads.active, out.losses, strict=True)), losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours, gradients(heads), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(our_features, features.grad, rtol=1e-5, atol=1e-7)


def test_total_is_the_weighted_sum(heads):
    features, targets = data(20)
    a, b, c, d = heads(features, targets).losses.tolist()
    assert heads(features, targets).total.item() == pytest.approx(a + b + c + d, rel=1e-6)
    out = heads(features, targets, {"topics": 3.0, "score": 0.0})
    assert out.losses.tolist() == pytest.approx([a, b, c, 0.0], rel=1e-6)  # weight 0: not computed
    assert out.total.item() == pytest.approx(a + b + 3 * c, rel=1e-6)


def test_weights_as_a_tensor_by_name_or_left_out(heads):
    features, targets = data(20)
    by_name = heads(features, targets, {"topics": 3.0, "score": 0.5})
    as_tensor = heads(features, targets, torch.tensor([1.0, 1.0, 3.0, 0.5]))
    assert torch.equal(by_name.total, as_tensor.total)
    assert torch.equal(heads(features, targets).total, heads(features, targets, torch.ones(4)).total)


@pytest.mark.parametrize("weights", [None, {"topics": 3.0}], ids=["left out", "by name"])
def test_weights_reach_a_device_without_a_wait(heads, weights, monkeypatch):
    """meta stands for a GPU, and torch.tensor(device=) for a copy that the host waits for."""
    made = mock.MagicMock(wraps=torch.tensor)
    monkeypatch.setattr(torch, "tensor", made)
    _, targets = data(20)
    batch = heads.batch(targets, torch.Size([20]), weights, torch.device("meta"))
    assert batch.weights.device.type == "meta"
    assert all(call.kwargs.get("device", "cpu") == "cpu" for call in made.call_args_list)


def test_learned_weights_get_the_losses_as_gradient(heads):
    weights = torch.ones(4, requires_grad=True)
    out = heads(*data(20), weights)
    out.total.backward()
    assert torch.equal(weights.grad, out.losses)


def test_correct_counts_rows(heads):
    features, targets = data(40)
    predicted = heads.logits(features, "upos").argmax(dim=1)
    assert heads(features, targets).correct[0].item() == (predicted == targets["upos"]).sum().item()


def test_sequences_are_rows(heads):
    features, targets = data(3, 5)
    flat = {name: t.flatten(0, 1) for name, t in targets.items()}
    out, flat_out = heads(features, targets), heads(features.flatten(0, 1), flat)
    assert torch.equal(out.losses, flat_out.losses)
    assert torch.equal(out.correct, flat_out.correct)
    assert heads.logits(features, "topics").shape == (3, 5, 4)


@pytest.mark.parametrize("rows", [(6,), (1,), (2, 3), (2, 1), (1, 1)])
def test_the_last_axis_of_a_single_value_may_be_left_out(heads, rows):
    features, targets = data(*rows)
    spelled_out = targets | {"score": targets["score"].unsqueeze(-1)}
    assert torch.equal(heads(features, targets).losses, heads(features, spelled_out).losses)


def test_a_task_may_be_missing_from_a_batch(heads):
    features, targets = data(20)
    everything = heads(features, targets)
    del targets["feats.Number"], targets["score"]
    out = heads(features, targets, torch.tensor([1.0, 50.0, 2.0, 50.0]))
    a, _, c, _ = everything.losses.tolist()
    assert out.losses.tolist() == [a, 0.0, c, 0.0]
    assert out.correct.tolist() == [everything.correct[0], 0, everything.correct[2], 0]
    assert out.total.item() == pytest.approx(a + 2 * c, rel=1e-6)
    out.total.backward()
    assert heads.linear("score").weight.grad is None
    assert heads.linear("topics").weight.grad is not None


def test_without_bias():
    heads = MultiTaskHeads(D, TASKS, "upos", bias=False)
    features, targets = data(20)
    heads(features, targets).total.backward()
    assert [name for name, _ in heads.named_parameters() if "bias" in name] == []
    losses = eager_losses(heads, features, targets)
    torch.testing.assert_close(
        heads(features, targets).losses, torch.stack([*losses.values()]), rtol=1e-6, atol=0
    )


def test_compiles_without_a_graph_break(heads):
    torch.compiler.reset()
    features, targets = data(20)
    weights = torch.tensor([1.0, 0.5, 2.0, 0.25])
    compiled = torch.compile(lambda f, t, w: heads(f, t, w).total, fullgraph=True, backend="aot_eager")
    for active in (("upos", "topics", "score", "feats.Number"), ("upos",)):
        heads.set_active(active)
        w = weights[: len(active)]
        torch.testing.assert_close(compiled(features, targets, w), heads(features, targets, w).total)


def test_compiles_for_rows_and_features_of_any_number():
    torch.compiler.reset()
    compiled = torch.compile(lambda own, f, t: own(f, t).total, backend="aot_eager", dynamic=True)
    for N, D in ((1, 8), (4, 8), (4, 16), (4, 24), (7, 24)):
        heads = MultiTaskHeads(D, {"a": Classification(5)}, main="a")
        features, targets = torch.randn(N, D), {"a": torch.arange(N) % 5}
        torch.testing.assert_close(compiled(heads, features, targets), heads(features, targets).total)


# --- retirement ----------------------------------------------------------------------------------------


def test_retired_heads_lose_gradient_and_take_no_part(heads):
    features, targets = data(20)
    heads(features, targets).total.backward()
    heads.set_active(["topics", "upos"])
    assert heads.active == ("upos", "topics")
    for name in TASKS:
        retired = name not in heads.active
        for parameter in heads.linear(name).parameters():
            assert parameter.requires_grad is not retired
            assert (parameter.grad is None) is retired
    heads.zero_grad(set_to_none=True)
    out = heads(features, targets)
    assert out.losses.shape == (2,)
    out.total.backward()
    assert heads.linear("score").weight.grad is None
    assert heads.linear("upos").weight.grad is not None


def test_a_retired_head_still_predicts_and_may_return(heads):
    features, _ = data(20)
    before = heads.logits(features, "score")
    heads.set_active(["upos"])
    assert torch.equal(heads.logits(features, "score"), before)
    heads.set_active(TASKS)
    assert heads.active == tuple(TASKS)
    assert all(p.requires_grad for p in heads.parameters())


def test_the_main_task_comes_first():
    heads = MultiTaskHeads(D, TASKS, "topics")
    assert heads.active == tuple(heads.tasks) == ("topics", "upos", "feats.Number", "score")


# --- other people's modules and checkpoints ------------------------------------------------------------


def existing_modules(names=TASKS):
    return nn.ModuleDict({name.replace(".", "__"): nn.Linear(D, TASKS[name].head.size) for name in names})


def test_from_modules_and_back_share_the_parameters():
    names = ("upos", "topics", "score")
    modules = existing_modules(names)
    heads = MultiTaskHeads.from_modules(modules, {n: TASKS[n] for n in names}, "topics")
    back = heads.to_modules()
    for name in names:
        assert heads.linear(name) is modules[name]
        assert back[name] is modules[name]
    # An optimizer that the existing code made goes on working.
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.1)
    features, targets = data(20)
    before = modules["upos"].weight.clone()
    del targets["feats.Number"]
    heads(features, targets).total.backward()
    optimizer.step()
    assert not torch.equal(heads.linear("upos").weight, before)


def test_from_modules_loads_an_existing_checkpoint():
    stored = copy.deepcopy(existing_modules().state_dict())
    modules = existing_modules()
    heads = MultiTaskHeads.from_modules(modules, TASKS, "upos")
    modules.load_state_dict(stored)
    assert torch.equal(heads.linear("feats.Number").weight, stored["feats__Number.weight"])


def test_modules_with_dots_go_round():
    heads = MultiTaskHeads(D, TASKS, "upos")
    again = MultiTaskHeads.from_modules(heads.to_modules(), TASKS, "upos")
    by_task = MultiTaskHeads.from_modules({n: heads.linear(n) for n in TASKS}, TASKS, "upos")
    for name in TASKS:
        assert again.linear(name) is by_task.linear(name) is heads.linear(name)


@pytest.mark.parametrize("name", ["feats.Number", "type", "keys", "values", "training", "half", "a b", "K"])
def test_any_name_can_be_a_task(name):
    heads = MultiTaskHeads(D, {name: Classification(3), "other": Classification(2)}, name)
    other = MultiTaskHeads(D, {name: Classification(3), "other": Classification(2)}, name)
    other.load_state_dict(heads.state_dict())
    assert torch.equal(other.linear(name).weight, heads.linear(name).weight)
    assert not torch.equal(heads.linear(name).weight[:2], heads.linear("other").weight)
    assert heads.to_modules().state_dict().keys() == {
        key.removeprefix("linears.") for key in heads.state_dict() if key != "_extra_state"
    }
    out = heads(torch.randn(4, D), {name: torch.tensor([0, 1, 2, 0])})
    assert out.losses[0] > 0


def test_names_that_would_share_a_head_are_refused():
    tasks = {"a.b": Classification(3), "a__b": Classification(2)}
    with pytest.raises(ValueError, match=r"a\.b and a__b would share"):
        MultiTaskHeads(D, tasks, "a.b")


# --- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        ({"upos": nn.Linear(D, 5)}, ValueError, "modules are upos; tasks are upos, topics"),
        ({"upos": nn.Linear(D, 5), "topics": nn.ReLU()}, TypeError, "module topics must be"),
        (
            {"upos": nn.Linear(D, 5), "topics": nn.Linear(D, 3)},
            ValueError,
            "topics has 3 outputs, but its task needs 4",
        ),
        ({"upos": nn.Linear(D, 5), "topics": nn.Linear(9, 4)}, ValueError, "must have the same in_features"),
        ({"upos": nn.Linear(D, 5), "topics": nn.Linear(D, 4, bias=False)}, ValueError, "all or none a bias"),
    ],
)
def test_modules_that_do_not_fit_are_named(modules, error, message):
    with pytest.raises(error, match=message):
        MultiTaskHeads.from_modules(modules, {n: TASKS[n] for n in ("upos", "topics")}, "upos")


CALLS = {
    "main": (lambda h, f, t: MultiTaskHeads(D, TASKS, "xpos"), "main task xpos is not among the tasks: upos"),
    "active": (lambda h, f, t: h.set_active(["upos", "xpos"]), "unknown task xpos; available: upos"),
    "retire main": (lambda h, f, t: h.set_active(["score"]), "the main task upos cannot retire"),
    "target": (lambda h, f, t: h(f, {"xpos": t["upos"]}), "unknown task xpos"),
    "no target": (lambda h, f, t: h(f, {}), "none of the active tasks upos, feats.Number"),
    "weight name": (lambda h, f, t: h(f, t, {"xpos": 1.0}), "unknown task xpos"),
    "weight shape": (lambda h, f, t: h(f, t, torch.ones(3)), r"weights must be \(4\,\)"),
    "logits": (lambda h, f, t: h.logits(f, "xpos"), "unknown task xpos"),
    "rows": (
        lambda h, f, t: h(f, t | {"upos": t["upos"][1:]}),
        r"targets of upos must be \(6,\), not \(5,\)",
    ),
    "labels": (
        lambda h, f, t: h(f, t | {"topics": t["topics"][:, 1:]}),
        r"targets of topics must be \(6, 4\)",
    ),
    "class": (lambda h, f, t: h(f, t | {"upos": t["upos"] + 5}), r"targets of upos: \d lies outside"),
    "features": (lambda h, f, t: h(f[:, 1:], t), "features have D = 6, and the heads were made for D = 7"),
}


@pytest.mark.parametrize("case", CALLS)
def test_errors_name_what_does_not_fit(heads, case):
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        call(heads, *data(6))


def test_transposed_sequence_targets_are_refused(heads):
    features, targets = data(3, 5)
    with pytest.raises(ValueError, match=r"targets of upos must be \(3, 5\), not \(5, 3\)"):
        heads(features, targets | {"upos": targets["upos"].t()})


def test_backend_and_plan_are_passed_on():
    features, targets = data(6)
    for option in ({"backend": "cuda"}, {"plan": "tiled"}):
        with pytest.raises(ValueError, match="is unknown"):
            MultiTaskHeads(D, TASKS, "upos", **option)(features, targets)


def copies_in_a_step(heads):
    features, targets = data(6)
    features = features.to(heads.linear("upos").weight.dtype)
    with counted_launches() as launches:
        heads(features, targets).total.backward()
    return launches.names.count("aten::cat")


@pytest.mark.parametrize(
    "change",
    [
        lambda heads: None,
        lambda heads: heads.set_active(["upos", "score"]),
        lambda heads: heads.load_state_dict(copy.deepcopy(heads.state_dict())),
        lambda heads: heads.to(torch.float64).to(torch.float32),
        lambda heads: heads.share_memory(),
        lambda heads: nn.Sequential(heads).half().float(),
    ],
)
def test_parameters_lie_together_whatever_was_done(heads, change):
    before = dict(heads.named_parameters())
    change(heads)
    assert copies_in_a_step(heads) == 0
    assert all(parameter is before[name] for name, parameter in heads.named_parameters())


def test_shared_memory_stays_shared(heads):
    heads.share_memory()
    heads.set_active(["upos", "score"])
    heads.float()
    assert all(parameter.is_shared() for parameter in heads.parameters())


def test_a_copy_trains_as_the_original_does(heads):
    twin = copy.deepcopy(heads)
    features, targets = data(6)
    for one in (heads, twin):
        one(features, targets).total.backward()
    for own, other in zip(heads.parameters(), twin.parameters(), strict=True):
        assert own.data_ptr() != other.data_ptr()
        assert torch.equal(own.grad, other.grad)


def test_layers_of_somebody_else_stay_where_they_are():
    layers = {name: nn.Linear(D, task.head.size) for name, task in TASKS.items()}
    before = [layer.weight.data_ptr() for layer in layers.values()]
    MultiTaskHeads.from_modules(layers, TASKS, "upos")
    assert [layer.weight.data_ptr() for layer in layers.values()] == before


@pytest.mark.parametrize(("most", "by_torch"), [(6 * D * 5, 1), (6 * D * 5 - 1, 0)])
def test_torch_computes_a_single_head_up_to_a_size(monkeypatch, most, by_torch):
    """Its gradients are the same on both sides of the limit."""
    heads = MultiTaskHeads(D, {"upos": Classification(5)}, "upos")
    features, targets = data(6)
    targets = {"upos": targets["upos"]}
    expected = torch.autograd.grad(heads(features, targets).total, [*heads.parameters()])
    monkeypatch.setattr(one_head, "MOST_PRODUCTS", most)
    with mock.patch.object(one_head.F, "cross_entropy", wraps=F.cross_entropy) as loss:
        heads.backward(features.requires_grad_(), targets, torch.ones(1))
    assert loss.call_count == by_torch
    for parameter, gradient in zip(heads.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_tensors_without_memory_give_shapes(heads):
    features, targets = data(6)
    heads.to("meta")
    out = heads(features.to("meta"), {name: target.to("meta") for name, target in targets.items()})
    out.total.backward()
    assert out.losses.is_meta
    assert out.losses.shape == (len(TASKS),)
    assert all(p.grad.shape == p.shape for p in heads.parameters())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_would_keep_the_loss_of_a_batch():
    heads = MultiTaskHeads(D, {"upos": Classification(5)}, "upos")
    features, targets = data(6)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = heads

        def forward(self, features, target):
            return self.heads(features, {"upos": target}).total

    with pytest.raises(
        RuntimeError, match=r"torch\.jit\.trace would keep the loss of this batch as a constant"
    ):
        torch.jit.trace(Model(), (features, targets["upos"]))

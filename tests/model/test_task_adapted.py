"""Layers that tasks make their own: what a task computes with, where gradients go, and a plain encoder again."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mt2st_fast import (
    Classification,
    InputError,
    MultiTaskHeads,
    Regression,
    TaskAdaptedEncoder,
    WindowEncoder,
)
from mt2st_fast.model.description import describe

TASKS = {"a": Classification(4), "feats.b": Classification(3), "c": Regression(2)}
NAMES = tuple(TASKS)


class Tokens(nn.Module):
    """(N, T, 8) features, and a mask of what is real."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 8)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return self.layer(inputs).tanh(), inputs[..., 0] > 0


def rows(n=12):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 5, generator=generator)
    targets = {
        "a": torch.randint(0, 4, (n,), generator=generator),
        "feats.b": torch.randint(0, 3, (n,), generator=generator),
        "c": torch.randn(n, 2, generator=generator),
    }
    return inputs, targets


def model(**options):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 8), nn.Tanh())
    heads = MultiTaskHeads(8, TASKS, "a")
    return TaskAdaptedEncoder(encoder, heads.names, **options), heads


def residual(encoder, layer):
    (found,) = encoder.encoder.get_submodule(layer).parametrizations.weight
    return found


def differ(encoder):
    """Give every task's layers a difference."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in encoder.named_parameters():
        if ".difference." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def by_hand(encoder, task, inputs):
    """The features of a task by the paper's equation 2."""
    name = task.replace(".", "__")
    for layer in encoder.layers:
        linear, own = encoder.encoder.get_submodule(layer), residual(encoder, layer)
        weight = linear.parametrizations.weight.original
        if own.score[name].item() >= encoder.threshold:
            weight = weight + own.difference[name]
        inputs = F.linear(inputs, weight, linear.bias).tanh()
    return inputs


def test_a_task_computes_with_its_own_layers_and_the_shared_ones():
    encoder, heads = model()
    differ(encoder)
    residual(encoder, "0").score["a"].data.fill_(0.09)
    residual(encoder, "2").score["feats__b"].data.fill_(-1.0)
    inputs, targets = rows()
    features = encoder(inputs)
    for task in NAMES:
        torch.testing.assert_close(features[task], by_hand(encoder, task, inputs), rtol=0, atol=0)
    assert encoder.own_layers() == {"a": ("2",), "feats.b": ("0",), "c": ("0", "2")}
    assert encoder.sharing() == (
        "0: shared by a; its own for feats.b, c",
        "2: shared by feats.b; its own for a, c",
    )
    weights = torch.tensor([1.0, 0.5, 2.0])
    out = heads(features, targets, weights)
    losses = torch.stack([heads(by_hand(encoder, t, inputs), {t: targets[t]}).losses.sum() for t in NAMES])
    torch.testing.assert_close(out.losses, losses)
    torch.testing.assert_close(out.total, (weights * losses).sum())


def test_with_all_layers_shared_it_is_the_encoder():
    encoder, heads = model()
    inputs, targets = rows()
    plain, plain_heads = encoder.folded("a"), copy.deepcopy(heads)
    differ(encoder)
    for layer in encoder.layers:
        for score in residual(encoder, layer).score.values():
            score.data.fill_(0.0)
    heads(encoder(inputs), targets).total.backward()
    plain_heads(plain(inputs), targets).total.backward()
    for linear, wanted in ((encoder.encoder[0], plain[0]), (encoder.encoder[2], plain[2])):
        torch.testing.assert_close(linear.parametrizations.weight.original.grad, wanted.weight.grad)
        torch.testing.assert_close(linear.bias.grad, wanted.bias.grad)
    for ours, theirs in zip(heads.parameters(), plain_heads.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("score", [0.05, 0.2])
def test_the_gradient_goes_straight_through_to_the_score(score):
    encoder, heads = model()
    differ(encoder)
    own, name = residual(encoder, "2"), "feats__b"
    own.score[name].data.fill_(score)
    inputs, targets = rows()
    heads(encoder(inputs), {"feats.b": targets["feats.b"]}).total.backward()
    shared = encoder.encoder[2].parametrizations.weight.original
    torch.testing.assert_close(own.score[name].grad, (shared.grad * own.difference[name]).sum().reshape(1))
    expected = shared.grad if score >= encoder.threshold else torch.zeros_like(shared)
    torch.testing.assert_close(own.difference[name].grad, expected)
    assert own.score["a"].grad is None


def test_the_penalty_is_of_the_tasks_at_hand_over_the_layers():
    encoder, _ = model(penalty=0.5)
    residual(encoder, "0").score["a"].data.fill_(-0.3)
    total = encoder.penalty(("a", "c"))
    torch.testing.assert_close(total, torch.tensor(0.5 / 2 * (0.3 + 3 * 0.2)))
    total.backward()
    assert residual(encoder, "0").score["a"].grad == -0.25
    assert residual(encoder, "2").score["c"].grad == 0.25
    assert residual(encoder, "2").score["feats__b"].grad is None
    assert encoder.penalty(()) is None
    assert model(penalty=0)[0].penalty(NAMES) is None


def test_only_what_is_asked_for_is_computed_and_once():
    heads = MultiTaskHeads(8, TASKS, "a")
    encoder = TaskAdaptedEncoder(Tokens(), heads.names)
    inputs, targets = rows()
    features = encoder(inputs)
    assert encoder.encoder.calls == 0
    heads(features, {"a": targets["a"]})
    heads.logits(features, "a")
    assert encoder.encoder.calls == 1
    heads.set_active(["a", "c"])
    heads(encoder(inputs), targets)
    assert encoder.encoder.calls == 3
    assert list(features) == list(NAMES)
    assert len(features) == 3
    with pytest.raises(KeyError):
        features["b"]


def test_a_window_of_words_is_read_once():
    torch.manual_seed(0)
    words = WindowEncoder(40, 6, window=1, hidden=8, sparse=True, dropout=0.5)
    read = []
    words.dropout.register_forward_hook(lambda *_: read.append(1))
    encoder, heads = TaskAdaptedEncoder(words, NAMES), MultiTaskHeads(8, TASKS, "a")
    _, targets = rows()
    heads(encoder(torch.randint(-1, 40, (12, 3))), targets).total.backward()
    assert read == [1]
    assert words.table.grad.is_sparse
    with pytest.raises(ValueError, match=r"inputs must be \(N, 3\) word types"):
        encoder(torch.zeros(2, 4, dtype=torch.int32))


def test_gradients_are_made_where_the_encoder_was_called():
    encoder, heads = model()
    inputs, targets = rows()
    with torch.no_grad():
        features = encoder(inputs)
    heads(features, targets).total.backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert heads.linear("a").weight.grad is not None


def test_masks_and_losses_a_task_reach_each_task():
    tasks = {"tag": Classification(4), "genre": Classification(3, pooling="mean")}
    heads = MultiTaskHeads(8, tasks, "tag")
    encoder = TaskAdaptedEncoder(Tokens(), heads.names)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(6, 7, 5, generator=generator)
    targets = {
        "tag": torch.randint(0, 4, (6, 7), generator=generator),
        "genre": torch.randint(0, 3, (6,), generator=generator),
    }
    features = encoder(inputs)
    own, mask = Tokens.forward(encoder.encoder, inputs)
    wanted = heads(own, targets, mask=mask)
    torch.testing.assert_close(heads(features, targets).losses, wanted.losses)
    no_mask = heads(features, targets, mask=torch.ones(6, 7, dtype=torch.bool))
    assert not torch.allclose(no_mask.losses, wanted.losses), (
        "what is given goes before what the encoder says"
    )
    weights, counts = {"tag": torch.rand(6, 7, generator=generator)}, {"tag": 5.0, "genre": 4.0}
    for options in ({"denominators": counts}, {"token_weights": weights}, {"reduction": "sum"}):
        expected = heads.task_losses(own, targets, mask=mask, **options)
        found = heads.task_losses(features, targets, **options)
        total = heads(features, targets, **options).total
        for name, loss in expected.items():
            torch.testing.assert_close(found[name], loss)
        torch.testing.assert_close(total, sum(expected.values()))
    of_rows = heads.task_losses(features, targets, reduction="none")
    for name, loss in heads.task_losses(own, targets, mask=mask, reduction="none").items():
        torch.testing.assert_close(of_rows[name], loss)
    with pytest.raises(ValueError, match="unknown"):
        heads(features, targets, token_weights={"tga": weights["tag"]})


@pytest.mark.parametrize("task", NAMES)
def test_folded_it_is_a_plain_encoder(task):
    words = WindowEncoder(40, 6, window=1, hidden=8, sparse=True)
    encoder = TaskAdaptedEncoder(words, NAMES)
    differ(encoder)
    inputs = torch.randint(-1, 40, (12, 3))
    before = encoder(inputs)[task].detach()
    folded = encoder.folded(task)
    assert type(folded) is WindowEncoder
    assert type(folded.hidden) is nn.Linear
    assert [name for name, _ in folded.named_parameters()] == ["table", "hidden.weight", "hidden.bias"]
    assert torch.equal(folded(inputs), before)
    folded.hidden.weight.data.zero_()
    assert torch.equal(encoder(inputs)[task], before), "a copy"
    restored = WindowEncoder(40, 6, window=1, hidden=8, sparse=True)
    restored.load_state_dict(encoder.folded(task).state_dict())
    assert torch.equal(restored(inputs), before)


def test_retired_tasks_are_frozen_and_come_back_as_they_were():
    encoder, _ = model()
    kept = residual(encoder, "0").score["c"].requires_grad_(False)
    encoder.set_active(["a"])
    trains = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert not [name for name in trains if name.endswith(("feats__b", ".c"))]
    assert len([name for name in trains if name.endswith(".a")]) == 4
    encoder.set_active(NAMES)
    assert [p for p in encoder.parameters() if not p.requires_grad] == [kept], "frozen by its owner"
    assert len([*encoder.own_parameters()]) == 2 * 2 * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskAdaptedEncoder(nn.Tanh(), NAMES), "Tanh has no linear or convolutional layer"),
        (lambda: model(layers=["1"]), "'1' is no linear or convolutional layer of the encoder; there are 0, 2"),
        (lambda: model(layers=["no"]), "'no' is no linear"),
        (lambda: model(threshold=0), "threshold must be positive"),
        (lambda: model(penalty=-1.0), "penalty must be finite and not negative"),
        (lambda: TaskAdaptedEncoder(model()[0].encoder, NAMES), "the layer '0' has a parametrization already"),
        (lambda: model(layers=[]), "layers must be names, each once"),
        (lambda: model(layers=["0", "0"]), "layers must be names, each once"),
        (lambda: model(layers="0"), "layers must be names, each once, not '0'"),
        (lambda: TaskAdaptedEncoder(nn.Linear(2, 2), "tag"), "tasks must be names, each once, not 'tag'"),
        (lambda: TaskAdaptedEncoder(nn.Linear(2, 2), ["a", "a"]), "tasks must be names, each once"),
        (lambda: TaskAdaptedEncoder(nn.utils.spectral_norm(nn.Linear(2, 2)), ["a"]), "weight of the layer '' is no"),
        (lambda: TaskAdaptedEncoder(nn.LazyLinear(2), ["a"]), "weight of the layer '' is no parameter yet"),
        (lambda: TaskAdaptedEncoder(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), NAMES), "has a BatchNorm1d"),
        (lambda: TaskAdaptedEncoder(nn.Sequential(nn.Linear(2, 2)), ["a.b", "a__b"]), "would share the module name"),
        (lambda: model()[0].folded("d"), "there is no task d; there are a, feats.b, c"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_folder_keeps_one_encoder():
    encoder, heads = model()
    with pytest.raises(InputError, match=r"keep encoder\.folded\(task\) with that task's head"):
        describe(encoder, heads)


def test_an_encoder_may_be_one_layer():
    encoder = TaskAdaptedEncoder(nn.Linear(5, 8), NAMES)
    inputs, _ = rows()
    assert encoder.own_layers()["a"] == (), "nothing has changed it yet"
    differ(encoder)
    wanted = encoder(inputs)["a"]
    assert encoder.own_layers()["a"] == ("",)
    folded = encoder.folded("a")
    assert type(folded) is nn.Linear
    assert torch.equal(folded(inputs), wanted)


def test_chosen_layers_alone_are_adapted():
    encoder, _ = model(layers=["2"])
    differ(encoder)
    assert encoder.own_layers() == dict.fromkeys(NAMES, ("2",))
    assert type(encoder.encoder[0]) is nn.Linear


class Normalised(WindowEncoder):
    """With a forward pass of its own, which is more than the two parts that it inherits."""

    def forward(self, types):
        return F.normalize(super().forward(types))


@pytest.mark.parametrize("around", ["subclass", "hook", "instance"])
def test_what_is_around_an_encoder_is_called(around):
    torch.manual_seed(0)
    words = (Normalised if around == "subclass" else WindowEncoder)(40, 6, window=1, hidden=8)
    if around == "hook":
        words.register_forward_hook(lambda module, inputs, output: F.normalize(output))
    if around == "instance":
        before = words.forward
        words.forward = lambda types: F.normalize(before(types))
    found = TaskAdaptedEncoder(words, NAMES)(torch.randint(0, 40, (12, 3)))["a"]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(12))


def test_a_list_is_features_and_a_mask_and_anything_else_is_refused():
    class Lists(Tokens):
        def forward(self, inputs):
            return [*super().forward(inputs), *self.more]

    encoder, (inputs, _) = TaskAdaptedEncoder(Lists(), NAMES), rows()
    encoder.encoder.more = []
    assert encoder(inputs).with_mask("a")[1].dtype == torch.bool
    encoder.encoder.more = [1]
    with pytest.raises(
        TypeError, match=r"an encoder must return features, a tensor, or \(features, mask\), not list"
    ):
        encoder(inputs)["a"]
    with pytest.raises(TypeError, match="an encoder of features a task is within another one"):
        TaskAdaptedEncoder(nn.Sequential(nn.Linear(5, 5), model()[0]), NAMES, layers=["0"])(inputs)["a"]


def test_features_are_computed_under_the_autocast_of_the_call():
    encoder, _ = model()
    inputs, _ = rows()
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(inputs)
    assert features["a"].dtype == torch.bfloat16
    outside = encoder(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert outside["a"].dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_refused(reentrant):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 8)

        def forward(self, inputs):
            return checkpoint(self.second, self.first(inputs), use_reentrant=reentrant)

    encoder, (inputs, _) = TaskAdaptedEncoder(Block(), NAMES), rows()
    with pytest.raises(RuntimeError, match=r"activation checkpointing .* within a TaskAdaptedEncoder"):
        encoder(inputs)["a"].sum().backward()


def test_a_task_without_layers_is_named():
    encoder, heads = TaskAdaptedEncoder(nn.Linear(5, 8), ["a"]), MultiTaskHeads(8, TASKS, "a")
    inputs, targets = rows()
    with pytest.raises(
        ValueError, match=r"the encoder has no features of the task feats\.b; it was made for a"
    ):
        heads(encoder(inputs), targets)


def test_attention_is_adapted_and_recurrent_layers_and_heads_are_not():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    encoder = TaskAdaptedEncoder(layer, NAMES)
    assert encoder.layers == ("self_attn", "self_attn.out_proj", "linear1", "linear2")
    differ(encoder)
    inputs = torch.randn(3, 4, 8)
    wanted = encoder(inputs)["a"]
    assert not torch.allclose(wanted, encoder(inputs)["c"])
    torch.testing.assert_close(encoder.folded("a")(inputs), wanted)
    holder = nn.ModuleDict(
        {"gru": nn.GRU(5, 8), "heads": MultiTaskHeads(8, TASKS, "a"), "top": nn.Linear(8, 8)}
    )
    assert TaskAdaptedEncoder(holder, NAMES).layers == ("top",)


@pytest.mark.parametrize("task", ["copy", "keys", "type", "items"])
def test_a_task_may_have_the_name_of_a_method(task):
    tasks = {task: Classification(4), "b": Classification(3)}
    heads = MultiTaskHeads(8, tasks, task)
    encoder, (inputs, targets) = TaskAdaptedEncoder(nn.Linear(5, 8), heads.names), rows()
    heads(encoder(inputs), {task: targets["a"]}).total.backward()
    assert sum(p.grad is not None for p in encoder.own_parameters()) == 2


class Split(nn.Module):
    """In two parts, with a layer in each."""

    def __init__(self):
        super().__init__()
        self.below, self.above = nn.Linear(5, 6), nn.Linear(6, 8)
        self.passes = 0

    def shared_part(self, inputs):
        self.passes += 1
        return self.below(inputs).tanh()

    def adapted_part(self, shared):
        return self.above(shared).tanh()

    def forward(self, inputs):
        return self.adapted_part(self.shared_part(inputs))


@pytest.mark.parametrize(("layers", "passes"), [(["above"], 1), (["below"], 4), (None, 4)])
def test_a_layer_in_the_shared_part_is_every_task_s_own_all_the_same(layers, passes):
    torch.manual_seed(0)
    encoder, (inputs, targets) = TaskAdaptedEncoder(Split(), NAMES, layers=layers), rows()
    differ(encoder)
    features = encoder(inputs)
    MultiTaskHeads(8, TASKS, "a")(features, targets).total.backward()
    assert encoder.encoder.passes == passes, "once to find out, and once a task"
    assert all(p.grad is not None for p in encoder.own_parameters())
    for task in NAMES:
        torch.testing.assert_close(encoder.folded(task)(inputs), features[task])


def test_a_backward_hook_is_called():
    called, inner = [], Split()
    inner.register_full_backward_hook(lambda *_: called.append(1))
    inputs = rows()[0].requires_grad_()
    TaskAdaptedEncoder(inner, NAMES, layers=["above"])(inputs)["a"].sum().backward()
    assert called == [1]

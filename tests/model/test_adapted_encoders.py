"""Which encoders and which of their layers tasks may make their own, what is called of them, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mt2st_fast import Classification, InputError, MultiTaskHeads, TaskAdaptedEncoder, WindowEncoder
from mt2st_fast.model.description import describe
from tests.model.adapted import NAMES, TASKS, Tokens, differ, model, rows


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaskAdaptedEncoder(nn.Tanh(), NAMES), "Tanh has no linear or convolutional layer"),
        (lambda: model(layers=["1"]), "'1' is not a linear or convolutional layer of the encoder; available: 0, 2"),
        (lambda: model(layers=["no"]), "'no' is not a linear"),
        (lambda: model(threshold=0), "threshold must be positive"),
        (lambda: model(penalty=-1.0), "penalty must be finite and not negative"),
        (lambda: TaskAdaptedEncoder(model()[0].encoder, NAMES), "the layer '0' already has a parametrization"),
        (lambda: model(layers=[]), "layers must be distinct names"),
        (lambda: model(layers=["0", "0"]), "layers must be distinct names"),
        (lambda: model(layers="0"), "layers must be distinct names, not '0'"),
        (lambda: TaskAdaptedEncoder(nn.Linear(2, 2), "tag"), "tasks must be distinct names, not 'tag'"),
        (lambda: TaskAdaptedEncoder(nn.Linear(2, 2), ["a", "a"]), "tasks must be distinct names"),
        (
            lambda: TaskAdaptedEncoder(nn.utils.spectral_norm(nn.Linear(2, 2)), ["a"]),
            "weight of the layer '' is uninitialized or computed",
        ),
        (lambda: TaskAdaptedEncoder(nn.LazyLinear(2), ["a"]), "weight of the layer '' is uninitialized"),
        (lambda: TaskAdaptedEncoder(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), NAMES), "has a BatchNorm1d"),
        (lambda: TaskAdaptedEncoder(nn.Sequential(nn.Linear(2, 2)), ["a.b", "a__b"]), "would share the module name"),
        (lambda: model()[0].folded("d"), "no task d; available: a, feats.b, c"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_folder_keeps_one_encoder():
    encoder, heads = model()
    with pytest.raises(InputError, match=r"save encoder\.folded\(task\) with that task's head"):
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
    with pytest.raises(TypeError, match="an encoder with features per task is nested in another one"):
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

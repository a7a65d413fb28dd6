"""Conv1d layers of an own encoder: their gradients by a kernel in steps on a CPU, with torch's results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, MultiTask, MultiTaskHeads, Trainer
from mt2st_fast.kernels.convolution import op
from mt2st_fast.kernels.convolution.on_numba import few_gradients
from mt2st_fast.training.engines import convolution_layers
from mt2st_fast.training.engines.layer_kernels import LayersByKernels

N, L, V, E, C = 9, 14, 30, 6, 20


class TextCNN(nn.Module):
    """The maxima over time of convolutions over the embeddings of words."""

    def __init__(self, *convolutions: nn.Module) -> None:
        super().__init__()
        self.words = nn.Embedding(V, E)
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, words):
        features = self.words(words).transpose(1, 2)
        return torch.cat([torch.relu(each(features)).amax(2) for each in self.convolutions], 1)


@pytest.fixture(autouse=True)
def small_ones(monkeypatch):
    """The kernel takes these small ones, too."""
    monkeypatch.setattr(op, "LEAST_PRODUCTS", 0)


@pytest.fixture
def calls(monkeypatch):
    """The layers' calls that take the place of torch's."""
    made, own = [], convolution_layers.conv1d
    monkeypatch.setattr(convolution_layers, "conv1d", lambda *args, **kw: made.append(1) or own(*args, **kw))
    return made


def trained(encoder, *, width=C, **options):
    """The parameters after three steps."""
    torch.manual_seed(3)
    heads = MultiTaskHeads(width, {"a": Classification(3), "b": Classification(2)}, "a")
    batches = [
        (torch.randint(V, (N, L)), {"a": torch.randint(3, (N,)), "b": torch.randint(2, (N,))}) for _ in "123"
    ]
    Trainer(encoder, heads, schedule=MultiTask(), device="cpu", lr=1e-3, **options).fit(batches, epochs=1)
    return [p.detach() for p in encoder.parameters()]


LAYERS = {
    "three widths": (lambda: [nn.Conv1d(E, C, width) for width in (3, 4, 5)], 3 * C),
    "without bias": (lambda: [nn.Conv1d(E, C, 3, bias=False)], C),
    "padded": (lambda: [nn.Conv1d(E, C, 3, padding=2)], C),
    "as long as its inputs": (lambda: [nn.Conv1d(E, C, 5, padding="same")], C),
    "every other window": (lambda: [nn.Conv1d(E, C, 3, stride=2, padding="valid")], C),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_run_trains_as_with_torchs_gradients(name, calls, monkeypatch):
    computed, own = [], few_gradients.few_gradients
    monkeypatch.setattr(few_gradients, "few_gradients", lambda *args: computed.append(1) or own(*args))
    torch.manual_seed(0)
    make, width = LAYERS[name]
    encoder = TextCNN(*make())
    other = copy.deepcopy(encoder)
    ours = trained(encoder, width=width)
    assert len(calls) == len(computed) == 3 * len(encoder.convolutions)
    del calls[:]
    theirs = trained(other, width=width, backward="autograd")
    assert not calls
    # AdamW divides by the root of the square: a gradient near 0 may move a number by another part of 3 lr.
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_hooks_of_the_layer_and_of_its_parameters_run(calls):
    layer, seen = nn.Conv1d(E, C, 3), []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.weight.register_hook(lambda _: seen.append("gradient"))
    trained(TextCNN(layer))
    assert seen == ["forward", "gradient"] * 3
    assert calls


def test_a_frozen_layer_stays(calls):
    layer = nn.Conv1d(E, C, 3)
    layer.weight.requires_grad_(False)
    before = copy.deepcopy(layer)
    trained(TextCNN(layer))
    assert torch.equal(before.weight, layer.weight)
    assert not torch.equal(before.bias, layer.bias)
    assert calls


def replaced(name):
    layer = nn.Conv1d(E, C, 3)
    setattr(layer, name, lambda *args, own=layer: getattr(nn.Conv1d, name)(own, *args))
    return layer


class Doubled(nn.Conv1d):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


class OneByOne(nn.Conv1d):
    def __init__(self):
        super().__init__(E, C, 3)
        self.own = nn.Conv1d(E, C, 3)

    def forward(self, inputs):
        return torch.stack([self.own(each) for each in inputs])


OTHERS = {
    "a forward of its own": lambda: replaced("forward"),
    "a convolution of its own": lambda: replaced("_conv_forward"),
    "a subclass": lambda: Doubled(E, C, 3),
    "groups": lambda: nn.Conv1d(E, C, 3, groups=2),
    "dilated": lambda: nn.Conv1d(E, C, 3, dilation=2),
    "circular": lambda: nn.Conv1d(E, C, 3, padding=1, padding_mode="circular"),
    "padded more on one side": lambda: nn.Conv1d(E, C, 4, padding="same"),
    "a computed weight": lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(E, C, 3)),
    "single sequences": OneByOne,
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_and_calls_are_torchs(name, calls):
    trained(TextCNN(OTHERS[name]()))
    assert not calls


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"backward": "autograd"}], ids=str)
def test_options_that_ask_for_torch(options, calls):
    trained(TextCNN(nn.Conv1d(E, C, 3)), **options)
    assert not calls


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_backend_that_is_asked_for(backend, calls, monkeypatch):
    monkeypatch.setenv("MT2ST_BACKEND", backend)
    trained(TextCNN(nn.Conv1d(E, C, 3)))
    assert bool(calls) == (backend == "auto")


def test_torch_raises_its_errors(calls):
    layer = nn.Conv1d(E, C, 3)
    for inputs in (torch.randn(N, E + 1, L), torch.randn(N, E, 2), torch.randint(3, (N, E, L))):
        with pytest.raises(RuntimeError), LayersByKernels(layer, "auto"):
            layer(inputs)
    assert not calls

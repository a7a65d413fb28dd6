"""Recurrent layers of an own encoder: by kernels in steps on a CPU, with torch's results, and torch's own elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from mt2st_fast import Classification, MultiTask, MultiTaskHeads, Trainer
from mt2st_fast.training.engines import recurrent_layers
from mt2st_fast.training.engines.layer_kernels import LayersByKernels

N, T, F, H = 9, 7, 5, 20


class Own(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, cells: nn.Module) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, inputs):
        return self.cells(inputs)[0][:, -1]


@pytest.fixture
def calls(monkeypatch):
    """The kernels' calls, by name."""
    made = []
    for name in ("gru", "lstm"):
        own = getattr(recurrent_layers, name)
        monkeypatch.setattr(
            recurrent_layers,
            name,
            lambda *args, own=own, name=name, **kw: made.append(name) or own(*args, **kw),
        )
    return made


def trained(encoder, calls=None, *, width=H, **options):
    """The parameters after three steps, and the kernels' calls in them."""
    torch.manual_seed(3)
    heads = MultiTaskHeads(width, {"a": Classification(3), "b": Classification(2)}, "a")
    batches = [
        (torch.randn(N, T, F), {"a": torch.randint(3, (N,)), "b": torch.randint(2, (N,))}) for _ in "123"
    ]
    Trainer(encoder, heads, schedule=MultiTask(), device="cpu", lr=1e-3, **options).fit(batches, epochs=1)
    return [p.detach() for p in encoder.parameters()]


LAYERS = {
    "gru": lambda: nn.GRU(F, H, batch_first=True),
    "lstm": lambda: nn.LSTM(F, H, batch_first=True),
    "without bias": lambda: nn.LSTM(F, H, batch_first=True, bias=False),
    "two layers with dropout": lambda: nn.GRU(F, H, num_layers=2, dropout=0.5, batch_first=True),
    "both directions": lambda: nn.LSTM(F, H // 2, num_layers=2, bidirectional=True, batch_first=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_run_trains_as_with_torchs_layers(name, calls):
    torch.manual_seed(0)
    encoder = Own(LAYERS[name]())
    other = copy.deepcopy(encoder)
    ours = trained(encoder)
    assert calls
    del calls[:]
    theirs = trained(other, backward="autograd")
    assert not calls
    # AdamW divides by the root of the square: a gradient near 0 may move a number by another part of 3 lr.
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def outputs(layer, *args):
    torch.manual_seed(1)
    found, last = layer(*args)
    return [found, *(last if isinstance(last, tuple) else (last,))]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_layer_returns_what_torchs_does(kind, batch_first, calls):
    layer = kind(F, H, num_layers=2, bidirectional=True, dropout=0.3, batch_first=batch_first)
    inputs = torch.randn(*((N, T) if batch_first else (T, N)), F)
    begin = torch.randn(4, N, H) if kind is nn.GRU else (torch.randn(4, N, H), torch.randn(4, N, H))
    for args in ((inputs,), (inputs, begin)):
        theirs = outputs(layer, *args)
        with LayersByKernels(layer, "auto"):
            ours = outputs(layer, *args)
        assert [out.shape for out in ours] == [out.shape for out in theirs]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))
        with LayersByKernels(layer, "auto"):
            by_name = layer(args[0], hx=args[-1] if len(args) == 2 else None)[0]
        assert by_name.shape == ours[0].shape
    assert len(calls) == 16


def test_a_first_state_that_is_learned(calls):
    layer, begin = nn.GRU(F, H), nn.Parameter(torch.randn(1, N, H))
    inputs = torch.randn(T, N, F)
    theirs = torch.autograd.grad(layer(inputs, begin)[0].square().sum(), begin)[0]
    with LayersByKernels(layer, "auto"):
        ours = torch.autograd.grad(layer(inputs, begin)[0].square().sum(), begin)[0]
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert calls


def test_its_forward_is_its_own_outside_and_after_an_error(calls):
    layer = nn.GRU(F, H)
    layers = LayersByKernels(layer, "auto")
    with pytest.raises(RuntimeError, match="input"), layers:
        layer(torch.randn(T, N, F + 1))
    with pytest.raises(RuntimeError, match="hidden"), layers:
        layer(torch.randn(T, N, F), torch.randn(1, N, H + 1))
    assert "forward" not in vars(layer)
    layer(torch.randn(T, N, F))
    assert not calls


def test_a_copy_that_is_made_meanwhile_computes_with_its_own_weights(calls):
    layer = nn.GRU(F, H)
    with LayersByKernels(layer, "auto"):
        other = copy.deepcopy(layer)
    inputs = torch.randn(T, N, F)
    before = other(inputs)[0]
    nn.init.zeros_(layer.weight_ih_l0)
    assert torch.equal(before, other(inputs)[0])
    assert calls == ["gru"] * 2


def test_hooks_of_the_layer_and_of_its_parameters_run(calls):
    layer, seen = nn.GRU(F, H, batch_first=True), []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.weight_hh_l0.register_hook(lambda _: seen.append("gradient"))
    trained(Own(layer))
    assert seen == ["forward", "gradient"] * 3
    assert calls


def test_a_frozen_layer_stays(calls):
    layer = nn.GRU(F, H, batch_first=True)
    layer.weight_ih_l0.requires_grad_(False)
    before = copy.deepcopy(layer)
    trained(Own(layer))
    assert torch.equal(before.weight_ih_l0, layer.weight_ih_l0)
    assert not torch.equal(before.weight_hh_l0, layer.weight_hh_l0)
    assert calls


def replaced():
    layer = nn.GRU(F, H, batch_first=True)
    layer.forward = lambda inputs, own=layer: nn.GRU.forward(own, inputs)
    return layer


class Packed(nn.GRU):
    def forward(self, inputs):
        return torch.zeros(N, T, H) + super().forward(inputs)[0].mean(), None


class OfSequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(F, H, batch_first=True)

    def forward(self, inputs):
        packed = pack_padded_sequence(inputs, torch.full((N,), T), batch_first=True)
        return self.cells(packed)[1].transpose(0, 1), None


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(F, H, batch_first=True)

    def forward(self, inputs):
        return checkpoint(self.cells, inputs, use_reentrant=False)


class OneByOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(F, H)

    def forward(self, inputs):
        return torch.stack([self.cells(each)[0] for each in inputs]), None


OTHERS = {
    "a forward of its own": replaced,
    "a subclass": lambda: Packed(F, H, batch_first=True),
    "packed sequences": OfSequences,
    "a checkpoint": Checkpointed,
    "single sequences": OneByOne,
    "a plain cell": lambda: nn.RNN(F, H, batch_first=True),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_and_calls_are_torchs(name, calls):
    trained(Own(OTHERS[name]()))
    assert not calls


def test_projected_states_are_torchs():
    assert not LayersByKernels(nn.LSTM(F, 30, proj_size=H), "auto")


def test_weights_that_are_computed_are_torchs(calls):
    layer = nn.utils.parametrizations.weight_norm(nn.GRU(F, H, batch_first=True), "weight_hh_l0")
    trained(Own(layer))
    assert not calls


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"backward": "autograd"}], ids=str)
def test_options_that_ask_for_torch(options, calls):
    trained(Own(nn.GRU(F, H, batch_first=True)), **options)
    assert not calls


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_backend_that_is_asked_for(backend, calls, monkeypatch):
    monkeypatch.setenv("MT2ST_BACKEND", backend)
    trained(Own(nn.GRU(F, H, batch_first=True)))
    assert bool(calls) == (backend == "auto")


def test_a_compiled_encoder_is_left_alone():
    encoder = Own(nn.GRU(F, H))
    assert LayersByKernels(encoder, "auto")
    assert not LayersByKernels(torch.compile(encoder, backend="eager"), "auto")
    encoder.compile(backend="eager")
    assert not LayersByKernels(encoder, "auto")

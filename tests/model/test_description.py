"""Encoders and heads that are kept: the same modules come back, without code from a file."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import safetensors.torch
import torch
from torch import nn

from mt2st_fast import (
    BagEncoder,
    Classification,
    ContextPrediction,
    MultiLabel,
    MultiTaskHeads,
    Regression,
    WindowEncoder,
)
from mt2st_fast.errors import InputError
from mt2st_fast.model.description import describe, load_modules, rebuild, save_modules

TASKS = {
    "main.task": Classification(3, label_smoothing=0.1, class_weights=(1.0, 2.0, 0.5)),
    "labels": MultiLabel(4, pos_weight=(1.0, 1.0, 2.0, 3.0)),
    "value": Regression(2, huber_delta=0.5),
}
ROWS = torch.tensor([[1, 5, 0], [2, 5, 6], [3, 0, 0], [4, 6, 5]])  # 0 = padding


def window_encoder():
    return WindowEncoder(4, 6, window=1, hidden=8, dropout=0.2, rows_of_type=ROWS, num_rows=7, sparse=True)


ENCODERS = {
    "window": (window_encoder, torch.tensor([[-1, 0, 3], [2, 1, -1]])),
    "window without a hidden layer": (
        lambda: WindowEncoder(4, 6, window=1, hidden=None),
        torch.tensor([[-1, 0, 3], [2, 1, -1]]),
    ),
    "bag": (
        lambda: BagEncoder(4, 6, mode="sum", rows_of_type=ROWS, num_rows=7),
        (torch.tensor([0, 3, 3, 1]), torch.tensor([0, 1, 1, 4])),
    ),
}


def made(name):
    torch.manual_seed(5)
    make, inputs = ENCODERS[name]
    encoder = make()
    heads = MultiTaskHeads(encoder.out_features, TASKS, "main.task")
    return encoder.eval(), heads, inputs


@pytest.mark.parametrize("name", ENCODERS)
def test_the_same_modules_come_back(name, tmp_path):
    encoder, heads, inputs = made(name)
    heads.set_active(["main.task", "value"])
    save_modules(tmp_path / "m", encoder, heads)
    before = torch.get_rng_state()
    loaded, loaded_heads = load_modules(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert loaded.configuration().keys() == encoder.configuration().keys()
    assert torch.equal(loaded(inputs), encoder(inputs))
    assert loaded_heads.active == heads.active
    assert loaded_heads.tasks == TASKS
    for task in TASKS:
        assert torch.equal(loaded_heads.logits(loaded(inputs), task), heads.logits(encoder(inputs), task))


class Own(nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.linear = nn.Linear(width, 5)
        self.scale, self.out_features = scale, 5

    def configuration(self):
        return {"width": self.linear.in_features, "scale": self.scale}

    def forward(self, x):
        return self.linear(x) * self.scale


@dataclass(frozen=True)
class OwnTask:
    size: int
    metric = "accuracy"

    @property
    def head(self):
        return Classification(self.size).head


def test_classes_of_ones_own_are_handed_in_and_never_looked_up(tmp_path):
    encoder = Own(3, torch.tensor([2.0]))
    heads = MultiTaskHeads(5, {"a": OwnTask(4)}, "a", bias=False)
    save_modules(tmp_path / "m", encoder, heads)
    with pytest.raises(InputError, match=r"unknown class Own; load it with classes=\(Own,\)"):
        load_modules(tmp_path / "m")
    loaded, loaded_heads = load_modules(tmp_path / "m", classes=(Own, OwnTask))
    x = torch.randn(2, 3)
    assert torch.equal(loaded_heads.logits(loaded(x), "a"), heads.logits(encoder(x), "a"))


def test_what_cannot_be_kept_is_named():
    encoder, heads, _ = made("bag")
    with pytest.raises(InputError, match=r"a Linear cannot be saved: give it a method configuration\(\)"):
        describe(nn.Linear(2, 6), heads)
    with_words = MultiTaskHeads(6, {"main": Classification(2), "words": ContextPrediction(4, 6)}, "main")
    with pytest.raises(InputError, match="the task words cannot be saved"):
        describe(encoder, with_words)


def test_what_does_not_fit_is_one_line():
    encoder, heads, _ = made("window")
    configuration, tensors = describe(encoder, heads)
    configuration = json.loads(json.dumps(configuration))
    configuration["encoder"]["arguments"]["dim"] = 7
    with pytest.raises(InputError, match=r"the saved model does not match its classes: [^\n]*$"):
        rebuild(configuration, tensors)


def test_safetensors_keeps_every_head(tmp_path):
    tasks = {"a": Classification(3), "b": Classification(2)}
    model = nn.ModuleDict({"heads": MultiTaskHeads(4, tasks, "a")})
    safetensors.torch.save_model(model, str(tmp_path / "model.safetensors"))
    other = nn.ModuleDict({"heads": MultiTaskHeads(4, tasks, "a")})
    safetensors.torch.load_model(other, tmp_path / "model.safetensors")
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    kept = model.state_dict(keep_vars=True)
    assert kept["heads.linears.b.weight"] is model["heads"].linear("b").weight


def test_weights_that_were_set_come_back(tmp_path):
    torch.manual_seed(0)
    encoder, heads = window_encoder(), MultiTaskHeads(8, TASKS, "main.task")
    heads.set_weights({"labels": 0.25, "value": 3})
    heads.set_active(["main.task", "labels"])
    save_modules(tmp_path / "model", encoder, heads)
    found = load_modules(tmp_path / "model")[1]
    assert found.weights == {"main.task": 1.0, "labels": 0.25}
    found.set_active(TASKS)
    assert found.weights["value"] == 3.0
    heads.set_weights(None)
    assert "weights" not in describe(encoder, heads)[0]["heads"]

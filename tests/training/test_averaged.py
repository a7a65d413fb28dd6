"""Averages of weights by torch's AveragedModel: what they hold over a switch."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mt2st_fast import Callback, Classification, LazyAdam, MultiTaskHeads, Switch, Trainer, WindowEncoder

DECAY = 0.8


class Averaging(Callback):
    """Averages by torch, and by the formula."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.wanted: list[torch.Tensor] = []

    def on_step(self, trainer: Trainer) -> None:
        self.average.update_parameters(self.model)
        now = [parameter.detach().clone() for parameter in self.model.parameters()]
        old = self.wanted or now
        self.wanted = [DECAY * a + (1 - DECAY) * b for a, b in zip(old, now, strict=True)]


def averaged_over_a_switch() -> tuple[nn.ModuleDict, Averaging, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    heads = MultiTaskHeads(8, {"tag": Classification(4), "case": Classification(3)}, "tag")
    model = nn.ModuleDict({"encoder": WindowEncoder(20, 6, window=1, hidden=8, sparse=True), "heads": heads})
    words = torch.randint(0, 20, (32, 3), dtype=torch.int32)
    targets = {"tag": torch.randint(0, 4, (32,)), "case": torch.randint(0, 3, (32,))}
    averaging = Averaging(model)
    trainer = Trainer(
        model["encoder"],
        heads,
        schedule=Switch(at=0.5),
        optimizer=LazyAdam,
        device="cpu",
        callbacks=[averaging],
    )
    trainer.fit([(words, targets)] * 4, epochs=3)
    return model, averaging, words, targets


def test_an_average_is_that_of_the_weights_after_every_step() -> None:
    model, averaging, *_ = averaged_over_a_switch()
    for found, wanted in zip(averaging.average.module.parameters(), averaging.wanted, strict=True):
        torch.testing.assert_close(found, wanted)
    assert model["heads"].active == ("tag",)


def test_an_average_keeps_all_tasks_until_it_is_told() -> None:
    model, averaging, words, targets = averaged_over_a_switch()
    average = averaging.average.module
    heads, features = average["heads"], average["encoder"](words)
    assert heads.active == ("tag", "case")
    assert heads(features, targets).losses.count_nonzero() == 2
    heads.set_active(model["heads"].active)
    assert heads.active == ("tag",)
    assert len(heads(features, targets).losses) == 1
    averaging.average.update_parameters(model)  # goes on
    fresh = copy.deepcopy(model)
    fresh["heads"].set_active(["tag", "case"])
    fresh.load_state_dict(average.state_dict())
    assert fresh["heads"].active == ("tag",)

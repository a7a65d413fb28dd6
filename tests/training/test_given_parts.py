"""What cannot be a part of a training is refused where it is given, in one line that names it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast import (
    Callback,
    Classification,
    EarlyStopping,
    InputError,
    MultiTaskHeads,
    PhaseController,
    Switch,
    Trainer,
)
from mt2st_fast.training.given_parts import check_heads


def heads():
    return MultiTaskHeads(4, {"a": Classification(2), "b": Classification(3)}, main="a")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"encoder": nn.Linear}, "encoder must be a torch.nn.Module, not the class Linear"),
        ({"heads": nn.Linear(3, 4)}, "heads must be MultiTaskHeads, not an instance of Linear"),
        ({"heads": MultiTaskHeads}, "heads must be MultiTaskHeads, not the class MultiTaskHeads"),
        (
            {"optimizer": torch.optim.AdamW(nn.Linear(3, 4).parameters())},
            r"pass lambda parameters: AdamW\(parameters, ...\), not an instance of AdamW",
        ),
        ({"callbacks": Callback()}, r"not an instance of Callback; pass \[callback\]"),
        ({"callbacks": [EarlyStopping]}, "an instance of a subclass of .*, not the class EarlyStopping"),
        ({"callbacks": [object()]}, "not an instance of object"),
    ],
)
def test_parts_of_a_trainer(part, message):
    with pytest.raises(InputError, match=message):
        Trainer(**({"encoder": nn.Linear(3, 4), "heads": heads()} | part))


@pytest.mark.parametrize(
    ("schedule", "message"), [(0.6, "such as Switch.* not 0.6"), (Switch, r"pass an instance, Switch\(\)")]
)
def test_schedules(schedule, message):
    for make in (
        lambda: Trainer(nn.Linear(3, 4), heads(), schedule=schedule),
        lambda: PhaseController(heads(), schedule),
    ):
        with pytest.raises(TypeError, match=message):
            make()


def test_heads_of_a_controller():
    with pytest.raises(InputError, match="heads must be MultiTaskHeads"):
        PhaseController(nn.Linear(3, 4), Switch())
    check_heads(torch.compile(heads(), backend="eager"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "targets of b are None; leave b out"),
        (np.zeros(2, np.int64), "targets of b must be a tensor, not ndarray"),
        ([0, 1], "targets of b must be a tensor, not list"),
    ],
)
def test_targets_that_are_no_tensors(target, message):
    targets = {"a": torch.tensor([0, 1]), "b": target}
    own = heads()
    for call in (own, own.task_losses, lambda _, given: own.label_counts(given)):
        with pytest.raises(TypeError, match=message):
            call(torch.randn(2, 4), targets)
    batches, trainer = (
        [(torch.randn(2, 3), {"a": torch.tensor([0, 1])})],
        Trainer(nn.Linear(3, 4), own, device="cpu"),
    )
    with pytest.raises(TypeError, match="targets of b"):
        trainer.fit([(torch.randn(2, 3), targets)], epochs=1)
    with pytest.raises(TypeError, match="targets of b"):
        trainer.fit(batches, val=[(torch.randn(2, 3), targets)], epochs=1)


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.randn(2, 5), ValueError, "features have D = 5, .* in_features=5"),
        (torch.randn(2), ValueError, r"features must be \(N, D\) or \(N, T, D\), not \(2,\)"),
        (np.zeros((2, 4)), TypeError, "features must be a tensor, not ndarray"),
    ],
)
def test_features_of_another_shape_or_kind(features, error, message):
    with pytest.raises(error, match=message):
        heads()(features, {"a": torch.tensor([0, 1])})


def test_names_of_tasks_are_strings():
    with pytest.raises(ValueError, match="the name of a task must be a string, not 1"):
        MultiTaskHeads(4, {1: Classification(2)}, main=1)


def test_targets_of_no_task_are_told_once(caplog):
    batch = (torch.randn(2, 3), {"a": torch.tensor([0, 1]), "c": torch.tensor([0, 1])})
    Trainer(nn.Linear(3, 4), heads(), device="cpu").fit([batch] * 3, epochs=2)
    told = [message for message in caplog.messages if "targets of c" in message]
    assert told == [
        "train has targets of c, which is not a task, and nothing trains on them; available: a, b"
    ]


LEFT_OUT = {
    "heads": (lambda encoder, heads: encoder.parameters(), r"heads/linears\.a\.weight and 1 other"),
    "biases": (
        lambda encoder, heads: [encoder.weight, heads.linears["a"].weight],
        r"encoder/bias and 1 other",
    ),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_an_optimizer_that_leaves_out_what_trains_is_refused(what: str) -> None:
    encoder, heads = nn.Linear(4, 8), MultiTaskHeads(8, {"a": Classification(3)}, main="a")
    given, named = LEFT_OUT[what]
    trainer = Trainer(
        encoder, heads, optimizer=lambda _: torch.optim.SGD(given(encoder, heads), lr=0.1), device="cpu"
    )
    batches = [(torch.randn(6, 4), {"a": torch.arange(6) % 3})] * 3
    with pytest.raises(InputError, match=f"leaves out {named}"):
        trainer.fit(batches, epochs=2)


def test_what_is_frozen_may_be_left_out() -> None:
    encoder, heads = nn.Linear(4, 8), MultiTaskHeads(8, {"a": Classification(3)}, main="a")
    before = {name: p.detach().clone() for name, p in heads.named_parameters()}
    heads.requires_grad_(False)
    batches = [(torch.randn(6, 4), {"a": torch.arange(6) % 3})] * 3
    optimizer = partial(torch.optim.SGD, encoder.parameters(), lr=0.1)
    Trainer(encoder, heads, optimizer=lambda _: optimizer(), device="cpu").fit(batches, epochs=2)
    assert all(torch.equal(before[name], p) for name, p in heads.named_parameters())

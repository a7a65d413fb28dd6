"""Options of a Trainer and of its fit that mean nothing are refused by name."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast import Classification, MultiTaskHeads, NonFiniteLossError, SingleTask, Trainer

NAN, INF = float("nan"), float("inf")


def trainer(**options):
    heads = MultiTaskHeads(4, {"a": Classification(2)}, "a")
    return Trainer(torch.nn.Linear(3, 4), heads, schedule=SingleTask(), device="cpu", **options)


@pytest.mark.parametrize("value", [-1, NAN, INF])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "clip_norm", "accumulate", "log_every"])
def test_a_trainer_refuses_nonsense(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        trainer(**{name: value})


@pytest.mark.parametrize("value", [-1, 0, NAN, INF])
@pytest.mark.parametrize("name", ["epochs", "evaluate_every"])
def test_fit_refuses_nonsense(name, value):
    data = [(torch.randn(2, 3), {"a": torch.tensor([0, 1])})]
    with pytest.raises(ValueError, match=f"^{name} must be "):
        trainer().fit(data, **{name: value})


def test_a_loss_that_is_no_number_names_task_step_epoch_and_the_rate_in_use():
    good, bad = torch.zeros(2, 3), torch.full((2, 3), NAN)
    data = [(x, {"a": torch.tensor([0, 1])}) for x in (good, good, good, bad)]
    with pytest.raises(
        NonFiniteLossError, match=r"loss of a is nan at step 3: in epoch 0.75 at a rate of 0.25;"
    ):
        trainer(lr=1.0, lr_decay="linear").fit(data, epochs=1)

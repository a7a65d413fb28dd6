"""Encoder and heads of a run stay its own: none is replaced within it, and no other run retires its tasks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import (
    Callback,
    Classification,
    InputError,
    MultiTask,
    MultiTaskHeads,
    Switch,
    Trainer,
    WindowEncoder,
)

V, D = 30, 8


def windows(seed: int = 0) -> WindowEncoder:
    torch.manual_seed(seed)
    return WindowEncoder(V, 4, window=1, hidden=D, sparse=True)


def two_heads() -> MultiTaskHeads:
    return MultiTaskHeads(D, {"a": Classification(3), "b": Classification(2)}, main="a")


def batches(n: int = 4) -> list:
    torch.manual_seed(1)
    inputs = torch.randint(0, V, (64, 3))
    return [(inputs, {"a": inputs[:, 1] % 3, "b": inputs[:, 1] % 2})] * n


class Sets(Callback):
    def __init__(self, name: str, value: nn.Module) -> None:
        self.name, self.value = name, value

    def on_step(self, trainer):
        setattr(trainer, self.name, self.value)


@pytest.mark.parametrize(("name", "value"), [("encoder", windows(1)), ("heads", two_heads())])
def test_the_parts_of_a_run_are_not_replaced_within_it(name, value):
    trainer = Trainer(windows(), two_heads(), callbacks=[Sets(name, value)], device="cpu")
    with pytest.raises(InputError, match=f"{name} cannot be replaced within a run"):
        trainer.fit(batches(), epochs=1)
    trainer.callbacks = []
    setattr(trainer, name, value)  # between runs
    trainer.fit(batches(), epochs=1)
    assert getattr(trainer.run, name) is value
    with pytest.raises(InputError, match=f"{name} must be"):
        setattr(trainer, name, "a module")


def test_another_encoder_is_evaluated_by_itself():
    """And not by what the last run's kernels know of its own encoder."""
    trainer = Trainer(windows(), two_heads(), lr=0.05, device="cpu")
    trainer.fit(batches(), epochs=10)
    assert trainer.evaluate(batches())["a"] > 0.9
    trainer.encoder = windows(1)
    alone = Trainer(windows(1), trainer.heads, device="cpu")
    assert trainer.evaluate(batches()) == alone.evaluate(batches())
    assert trainer.evaluate(batches())["a"] < 0.9


def test_a_table_that_was_moved_by_rows_and_is_dense_now_is_named():
    class MakesDense(Callback):
        def on_step(self, trainer):
            trainer.encoder.sparse = False

    trainer = Trainer(windows(), two_heads(), callbacks=[MakesDense()], device="cpu")
    with pytest.raises(
        InputError, match=r"a table \(30, 4\) has a dense gradient now, .* leave the encoder's sparse"
    ):
        trainer.fit(batches(), epochs=1)


def test_a_run_does_not_go_on_with_tasks_that_another_one_has_retired():
    heads = two_heads()
    first, second = (
        Trainer(windows(seed), heads, schedule=schedule, device="cpu")
        for seed, schedule in enumerate((MultiTask(), Switch(at=0.5)))
    )
    one, other = first.begin(batches()), second.begin(batches(), epochs=1)
    for _ in range(2):  # while all tasks train, they take turns
        one.step()
        other.step()
    other.step()  # retires b
    with pytest.raises(InputError, match="another run has begun on the same heads"):
        one.step()
    other.step()


def test_a_run_does_not_retire_the_tasks_of_another_one():
    heads = two_heads()
    first, second = (
        Trainer(windows(seed), heads, schedule=schedule, device="cpu")
        for seed, schedule in enumerate((Switch(at=0.5), MultiTask()))
    )
    one, other = first.begin(batches(), epochs=1), second.begin(batches())
    for _ in range(2):
        one.step()
        other.step()
    with pytest.raises(InputError, match="another run has begun on the same heads"):
        one.step()
    other.close()
    one.step()  # now alone
    assert heads.active == ("a",)


def test_a_run_that_was_left_does_not_stop_the_next_one():
    trainer = Trainer(windows(), two_heads(), schedule=Switch(at=0.5), device="cpu")
    left = trainer.begin(batches(), epochs=1)
    for _ in range(3):
        left.step()
    assert trainer.fit(batches(), epochs=1).phases[0].active == ("a", "b")

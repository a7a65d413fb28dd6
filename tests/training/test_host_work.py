"""How much of this package's Python a call of the heads and a step take: for small batches that is most of the time."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mt2st_fast import (
    BagEncoder,
    Classification,
    LazyAdam,
    MultiTask,
    MultiTaskHeads,
    RowwiseAdagrad,
    Trainer,
    WindowEncoder,
)
from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, multitask_loss

SIZES = (10, 5, 5)


def own_calls(run: Callable[[], object]) -> Counter[str]:
    """Functions of this package that a call enters, by name."""
    found: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("mt2st_fast"):
            found[frame.f_code.co_name] += 1

    for _ in range(2):  # what is looked up once
        run()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def targets() -> list[torch.Tensor]:
    return [torch.randint(size, (64,)) for size in SIZES]


def the_op() -> Callable[[], object]:
    layout = HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, size) for size in SIZES))
    features, weight = torch.randn(64, 16, requires_grad=True), torch.randn(20, 16, requires_grad=True)
    bias, of_tasks, weights = torch.randn(20, requires_grad=True), targets(), torch.ones(3)
    return lambda: multitask_loss(features, weight, bias, of_tasks, weights, layout).total.backward()


def the_heads() -> Callable[[], object]:
    tasks = {f"t{k}": Classification(size) for k, size in enumerate(SIZES)}
    heads, features = MultiTaskHeads(16, tasks, "t0"), torch.randn(64, 16, requires_grad=True)
    of_tasks, weights = dict(zip(tasks, targets(), strict=True)), torch.ones(3)
    return lambda: heads(features, of_tasks, weights).total.backward()


def a_trainers_step() -> Callable[[], object]:
    tasks = {f"t{k}": Classification(size) for k, size in enumerate(SIZES)}
    encoder = nn.Sequential(nn.Linear(8, 16), nn.Softmax(-1))
    batch = torch.randn(64, 8), dict(zip(tasks, targets(), strict=True))
    trainer = Trainer(encoder, MultiTaskHeads(16, tasks, "t0"), schedule=MultiTask(), device="cpu")
    return trainer.begin([batch], epochs=100).step


def a_taggers_step() -> Callable[[], object]:
    tasks = {f"t{k}": Classification(5) for k in range(9)}
    encoder = WindowEncoder(100, 16, window=1, hidden=16, sparse=True)
    labels = {name: torch.randint(5, (64,)) for name in tasks}
    heads = MultiTaskHeads(16, tasks, "t0")
    trainer = Trainer(
        encoder, heads, schedule=MultiTask(), optimizer=lambda p: LazyAdam(p, lr=0.01), device="cpu"
    )
    run = trainer.begin([(torch.randint(100, (64, 3)), labels)], epochs=100)
    run.step()
    assert trainer.history.phases[-1].engine == "one kernel call"
    return run.step


def step_of(encoder, inputs, optimizer=None) -> Callable[[], object]:
    tasks = {f"t{k}": Classification(5) for k in range(9)}
    labels = {name: torch.randint(5, (64,)) for name in tasks}
    trainer = Trainer(
        encoder, MultiTaskHeads(16, tasks, "t0"), schedule=MultiTask(), optimizer=optimizer, device="cpu"
    )
    run = trainer.begin([(inputs, labels)], epochs=100)
    run.step()
    assert trainer.history.phases[-1].engine == "one kernel call"
    return run.step


def an_mlps_step() -> Callable[[], object]:
    encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 16), nn.ReLU())
    return step_of(encoder, torch.randn(64, 8))


def an_embedding_bags_step() -> Callable[[], object]:
    return step_of(nn.EmbeddingBag(100, 16), torch.randint(100, (64, 5)))


def a_bag_encoders_step() -> Callable[[], object]:
    bags = torch.randint(100, (64 * 5,), dtype=torch.int32), torch.arange(0, 64 * 5 + 1, 5)
    return step_of(BagEncoder(100, 16, sparse=True), bags, lambda p: RowwiseAdagrad(p, lr=0.1))


def an_evaluation() -> Callable[[], object]:
    """Of a batch with nine tasks, each of which has its metric."""
    tasks = {f"t{k}": Classification(5) for k in range(9)}
    batch = torch.randn(64, 8), {name: torch.randint(5, (64,)) for name in tasks}
    trainer = Trainer(nn.Linear(8, 16), MultiTaskHeads(16, tasks, "t0"), schedule=MultiTask(), device="cpu")
    trainer.fit([batch], epochs=1)
    return lambda: trainer.evaluate([batch])


CASES = [
    (the_op, 20),
    (the_heads, 44),
    (a_trainers_step, 112),
    (a_taggers_step, 122),
    (an_mlps_step, 120),
    (an_embedding_bags_step, 125),
    (a_bag_encoders_step, 123),
    (an_evaluation, 240),
]


@pytest.mark.parametrize(("case", "most"), CASES)
def test_a_call_enters_no_more_functions_than(case, most):
    found = own_calls(case())
    assert sum(found.values()) <= most, found.most_common()

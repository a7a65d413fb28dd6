"""Kernels compute the same whatever torch's default dtype is: they read and write float32 that they have asked for."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from mt2st_fast import (
    SGD,
    BagEncoder,
    Classification,
    LazyAdam,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    Regression,
    RowwiseAdagrad,
    Trainer,
    WordAnalogy,
)
from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, multitask_loss

DEFAULTS = (torch.bfloat16, torch.float16, torch.float64)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=DEFAULTS, ids=str)
def default(request):
    """Calls a function under float32 and under another default dtype; returns both results."""

    def both(function):
        expected = function()
        torch.set_default_dtype(request.param)
        try:
            return expected, function()
        finally:
            torch.set_default_dtype(torch.float32)

    yield both
    torch.set_default_dtype(torch.float32)


def assert_same(expected, found):
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("plan", ["tile", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_loss(default, plan, dtype):
    torch.manual_seed(0)
    heads = (
        HeadSpec(Kind.SOFTMAX, 5000),
        HeadSpec(Kind.BINARY, 3),
        HeadSpec(Kind.SQUARED, 2),
        HeadSpec(Kind.HUBER, 1),
    )
    layout = HeadLayout(heads)
    leaves = [
        torch.randn(*s, dtype=torch.float32).to(dtype)
        for s in ((70, 24), (layout.width, 24), (layout.width,))
    ]
    targets = [
        torch.randint(5000, (70,)),
        torch.randint(2, (70, 3)).float(),
        torch.randn(70, 2, dtype=torch.float32),
        torch.randn(70, 1, dtype=torch.float32),
    ]
    weights = torch.ones(4, dtype=torch.float32)

    def run():
        arguments = [leaf.clone().requires_grad_() for leaf in leaves]
        out = multitask_loss(*arguments, targets, weights, layout, plan=plan)
        out.total.backward()
        return [out.total.detach(), out.losses, out.correct, *(leaf.grad for leaf in arguments)]

    assert_same(*default(run))


def test_heads_make_their_own_weights(default):
    torch.manual_seed(0)
    heads = MultiTaskHeads(6, {"a": Classification(4), "b": MultiLabel(3), "c": Regression()}, "a")
    features = torch.randn(9, 6)
    targets = {"a": torch.randint(4, (9,)), "b": torch.ones(9, 3), "c": torch.ones(9)}
    assert_same(*default(lambda: [heads(features, targets, {"b": 0.5}).losses]))


@pytest.mark.parametrize("sparse", [True, False])
def test_bags_and_their_gradient(default, sparse):
    torch.manual_seed(0)
    encoder = BagEncoder(500, 64, sparse=sparse)
    bags = torch.randint(0, 500, (900,)), torch.arange(0, 901, 9)

    def run():
        encoder.table.grad = None
        out = encoder(bags)
        out.sum().backward()
        gradient = encoder.table.grad
        return [out.detach(), gradient.to_dense() if gradient.is_sparse else gradient]

    assert_same(*default(run))


@pytest.mark.parametrize("optimizer", [SGD, RowwiseAdagrad, LazyAdam])
@pytest.mark.parametrize("backward", ["fused", "autograd"])
def test_training_on_bags(default, optimizer, backward):
    torch.manual_seed(0)
    state = (
        BagEncoder(90, 16, sparse=True).state_dict(),
        MultiTaskHeads(16, {"a": Classification(4)}, "a").state_dict(),
    )
    bags = torch.randint(0, 90, (240,)), torch.arange(0, 241, 8)
    batches = [(bags, {"a": torch.randint(4, (30,))})]

    def run():
        encoder = BagEncoder(90, 16, sparse=True).float()
        heads = MultiTaskHeads(16, {"a": Classification(4)}, "a").float()
        encoder.load_state_dict(state[0])
        heads.load_state_dict(state[1])
        trainer = Trainer(
            encoder,
            heads,
            schedule=MultiTask(),
            optimizer=lambda p: optimizer(p, lr=0.1),
            backward=backward,
            device="cpu",
        )
        trainer.fit(batches, epochs=5)
        return [p.detach() for p in (*encoder.parameters(), *heads.parameters())]

    assert_same(*default(run))


def test_word_tasks(default):
    torch.manual_seed(0)
    table, quads = torch.randn(40, 8), torch.randint(40, (12, 4))
    task = WordAnalogy()
    assert_same(*default(lambda: [task(lambda types: table[types], quads, torch.zeros(12))]))


MADE = {"empty", "zeros", "ones", "full", "tensor", "rand", "randn"}


def test_every_allocation_of_the_kernels_says_its_dtype():
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "kernels").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in MADE
        and not {"dtype", None} & {keyword.arg for keyword in node.keywords}
    ]
    assert silent == []

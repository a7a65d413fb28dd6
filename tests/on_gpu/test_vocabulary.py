"""A vocabulary's head on a real GPU: no copy of its weight, several chunks, and a whole call within 4 GB."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast import HeadLayout, HeadSpec, Kind, multitask_loss
from mt2st_fast.kernels.heads.on_triton import chunked
from tests.on_gpu.helpers import BACKEND, DEVICE, DTYPES, assert_as_accurate_as_torch, poisoned_memory
from tests.on_gpu.test_kernels import Problem

SOFTMAX, HUBER = Kind.SOFTMAX, Kind.HUBER
# 20,031 and 40,007 outputs: neither is a multiple of 8.
LAYOUTS = {
    "between": (HeadSpec(SOFTMAX, 17), HeadSpec(SOFTMAX, 20_011, label_smoothing=0.1), HeadSpec(HUBER, 3)),
    "vocabulary": (HeadSpec(SOFTMAX, 40_000), HeadSpec(SOFTMAX, 5), HeadSpec(SOFTMAX, 2)),
}


@pytest.mark.parametrize("rows", [None, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_weight_as_it_lies_is_as_accurate_as_torch(monkeypatch, name, dtype, rows):
    monkeypatch.setattr(chunked, "COPIED_BYTES", 0)
    if rows is not None:
        monkeypatch.setattr(chunked, "chunk_rows", lambda *_: rows)
    problem = Problem(LAYOUTS[name], 300, 64, dtype)
    with poisoned_memory():
        ours = problem.outcome(backend=BACKEND, plan="chunked")
        again = problem.outcome(backend=BACKEND, plan="chunked")
    for key, value in ours.items():
        assert torch.equal(value, again[key]), key
    truth = problem.outcome(torch.float64, backend="reference")
    by_torch = problem.outcome(backend="reference")
    correct = [results.pop("correct") for results in (ours, truth)]
    if dtype is torch.float32:  # in less precision, a logit on the border may fall on either side
        assert torch.equal(*correct)
    assert_as_accurate_as_torch(ours, by_torch, truth, dtype)


def test_a_vocabulary_takes_four_gigabytes_at_most():
    N, D = 8192, 4096
    layout = HeadLayout(tuple(HeadSpec(SOFTMAX, size) for size in (151_936, 17, 9, 5, 2)))
    features, weight = (
        torch.randn(rows, D, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        for rows in (N, layout.width)
    )
    bias = torch.zeros(layout.width, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    targets = [torch.randint(head.size, (N,), device=DEVICE) for head in layout.heads]
    task_weights = torch.ones(len(layout), device=DEVICE)

    def call():
        for leaf in (features, weight, bias):
            leaf.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        total = multitask_loss(
            features, weight, bias, targets, task_weights, layout, backend=BACKEND, plan="chunked"
        ).total
        total.backward()
        return torch.cuda.max_memory_allocated() - before

    call()  # cuBLAS's workspace is its own
    assert call() <= 4e9

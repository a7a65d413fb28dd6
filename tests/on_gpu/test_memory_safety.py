"""Graphs own every byte that they touch: nothing that others free or take may change what a replay gives."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from bench import memory_safety
from bench.device import captured, clear_workspaces
from mt2st_fast import HeadLayout, HeadSpec, Kind, multitask_loss
from mt2st_fast.kernels.heads.plans import PLANS_OF
from tests.on_gpu.helpers import BACKEND, DEVICE, DTYPES, plan_may_refuse

# More layouts than any cache of tables holds, and one kernel for all of them.
MANY_LAYOUTS = 300


@pytest.mark.filterwarnings("ignore")  # torch.compile's, on its own parts
def test_two_steps_in_graphs_survive_cleared_workspaces_and_a_compiled_module():
    memory_safety.check(DEVICE)


class Call:
    """Forward and backward of a layout on inputs that stay where they are."""

    def __init__(self, sizes, dtype, N=300, D=72, smoothing=0.1, plan="auto"):
        generator = torch.Generator().manual_seed(sum(sizes))
        self.layout = HeadLayout(tuple(HeadSpec(Kind.SOFTMAX, s, label_smoothing=smoothing) for s in sizes))
        self.plan, S = plan, sum(sizes)

        def leaf(*shape):
            return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE).requires_grad_()

        self.leaves = [leaf(N, D), leaf(S, D), leaf(S)]
        self.targets = [torch.randint(s, (N,), generator=generator).to(DEVICE) for s in sizes]
        self.task_weights = torch.ones(len(sizes), dtype=torch.float32, device=DEVICE)

    def __call__(self):
        for leaf in self.leaves:
            leaf.grad = None
        out = multitask_loss(
            *self.leaves, self.targets, self.task_weights, self.layout, backend=BACKEND, plan=self.plan
        )
        out.total.backward()
        return out.total.detach(), out.losses

    def found(self, result):
        return [tensor.clone() for tensor in (*result, *(leaf.grad for leaf in self.leaves))]


def replayed(call, replay):
    """What a replay gives, over results that were made NaN before."""
    for tensor in (*replay.result, *(leaf.grad for leaf in call.leaves)):
        tensor.detach().fill_(math.nan)
    replay()
    torch.cuda.synchronize()
    return call.found(replay.result)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, truth in zip(found, expected, strict=True):
        assert torch.equal(ours, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", PLANS_OF[BACKEND])
@pytest.mark.parametrize("sizes", [(17, 12, 9, 5, 2), (17, 20_011)], ids=["narrow", "wide"])
def test_the_op_in_a_graph_survives_whoever_clears_memory(sizes, plan, dtype):
    call, other = Call(sizes, dtype, plan=plan), Call((33, 20), dtype, plan=plan)
    with plan_may_refuse(plan):
        expected = call.found(call())
    replay, other_replay = captured(call, DEVICE), captured(other, DEVICE)
    assert_same(replayed(call, replay), expected)
    clear_workspaces()
    torch.cuda.empty_cache()
    taken = memory_safety.take_memory(DEVICE)
    other_replay()
    assert_same(replayed(call, replay), expected)
    del other_replay
    torch.cuda.empty_cache()
    taken += memory_safety.take_memory(DEVICE)
    assert_same(replayed(call, replay), expected)
    memory_safety.check_untouched(taken, "after the replays")


def test_a_graph_keeps_the_tables_of_its_layout():
    call = Call((17, 5), torch.float32)
    expected = call.found(call())
    replay = captured(call, DEVICE)
    for i in range(MANY_LAYOUTS):
        Call((17, 5), torch.float32, N=32, D=16, smoothing=0.2 + i / 1000)()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    taken = memory_safety.take_memory(DEVICE)
    assert_same(replayed(call, replay), expected)
    memory_safety.check_untouched(taken, "after the replay")


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_module_with_graphs_runs_beside_ours():
    call = Call((17, 12, 9, 5, 2), torch.float32)
    expected = call.found(call())
    replay = captured(call, DEVICE)
    weight = torch.randn(17, 64, device=DEVICE, requires_grad=True)
    inputs, targets = torch.randn(256, 64, device=DEVICE), torch.randint(17, (256,), device=DEVICE)
    loss = torch.compile(lambda: F.cross_entropy(inputs @ weight.T, targets), mode="reduce-overhead")
    for _ in range(5):
        weight.grad = None  # else the next replay adds to memory of its own graph
        torch.compiler.cudagraph_mark_step_begin()
        loss().backward()
        assert_same(replayed(call, replay), expected)
    by_torch = F.cross_entropy(inputs @ weight.T, targets)
    torch.compiler.cudagraph_mark_step_begin()
    assert float(loss()) == pytest.approx(float(by_torch), rel=1e-4)

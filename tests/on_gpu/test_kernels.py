"""The fused op on a real GPU: every plan and dtype against the truth, the same bits, CUDA graphs."""

from __future__ import annotations

import math

import pytest
import torch

from bench.device import captured
from mt2st_fast import HeadLayout, HeadSpec, Kind, multitask_loss
from mt2st_fast.kernels import choose_backend
from mt2st_fast.kernels.heads.plans import PLANS_OF
from tests.on_gpu.helpers import (
    BACKEND,
    DEVICE,
    DTYPES,
    assert_as_accurate_as_torch,
    no_waiting,
    plan_may_refuse,
    poisoned_memory,
)

PLANS = ("auto", *PLANS_OF[BACKEND])

SOFTMAX, BINARY, SQUARED, HUBER = Kind.SOFTMAX, Kind.BINARY, Kind.SQUARED, Kind.HUBER
MIXED = (
    HeadSpec(SOFTMAX, 17, label_smoothing=0.1),
    HeadSpec(BINARY, 6, pos_weight=(1.0, 2.0, 0.5, 9.0, 1.0, 1.0)),
    HeadSpec(SQUARED, 1),
    HeadSpec(SOFTMAX, 3, class_weights=(1.0, 2.0, 0.3), ignore_index=1),
    HeadSpec(HUBER, 2, delta=1.5),
    HeadSpec(SOFTMAX, 2),
)
LAYOUTS = {
    "one small head": (HeadSpec(SOFTMAX, 5),),
    "mixed": MIXED,
    # More than a launch takes addresses of targets.
    "18 small heads": (
        *(HeadSpec(SOFTMAX, 2),) * 15,
        HeadSpec(BINARY, 2),
        HeadSpec(SQUARED, 1),
        HeadSpec(SOFTMAX, 3),
    ),
    "middle": (HeadSpec(SOFTMAX, 301), HeadSpec(SOFTMAX, 50), HeadSpec(BINARY, 77)),
    "wide": (HeadSpec(SOFTMAX, 17), HeadSpec(SOFTMAX, 20_011, label_smoothing=0.1), HeadSpec(HUBER, 3)),
}
# (N, D): ragged, one row, more rows than a grid of small tiles likes
SIZES = ((257, 123), (1, 64), (4099, 72))


class Problem:
    """Arguments of one call, on the GPU."""

    def __init__(self, heads, N, D, dtype, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.layout = HeadLayout(heads)
        S = self.layout.width

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        self.features = normal(N, D).to(dtype).to(DEVICE)
        self.weight = (normal(S, D) / math.sqrt(D)).to(dtype).to(DEVICE)
        self.bias = normal(S).to(dtype).to(DEVICE)
        self.targets = [self._target(head, N, generator).to(DEVICE) for head in heads]
        self.task_weights = (torch.rand(len(heads), generator=generator) + 0.1).to(DEVICE)

    @staticmethod
    def _target(head, N, generator):
        missing = torch.rand(N, head.size, generator=generator) < (0.2 if N > 1 else 0.0)
        if head.kind is SOFTMAX:
            target = torch.randint(head.size, (N,), generator=generator)
            return target.masked_fill(missing[:, 0], head.ignore_index)
        values = torch.randn(N, head.size, generator=generator)
        return (values > 0).float().masked_fill(missing, math.nan) if head.kind is BINARY else values

    def outcome(self, dtype=None, **options):
        """Losses, total and all gradients, in `dtype` where given."""
        leaves = [
            t.to(t.dtype if dtype is None else dtype).clone().requires_grad_()
            for t in (self.features, self.weight, self.bias, self.task_weights)
        ]
        features, weight, bias, task_weights = leaves
        out = multitask_loss(features, weight, bias, self.targets, task_weights, self.layout, **options)
        out.total.backward()
        names = ("d_features", "d_weight", "d_bias", "d_task_weights")
        return {
            "total": out.total.detach(),
            "losses": out.losses,
            "correct": out.correct.double(),
            **{name: leaf.grad for name, leaf in zip(names, leaves, strict=True)},
        }


def outcome_of_plan(problem, plan):
    with plan_may_refuse(plan):
        return problem.outcome(backend=BACKEND, plan=plan)


# --- the fused op --------------------------------------------------------------------------------------


def test_the_gpu_is_chosen_by_itself():
    assert choose_backend(DEVICE, torch.bfloat16).name == BACKEND


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_plan_is_as_accurate_as_torch(name, plan, dtype, size):
    problem = Problem(LAYOUTS[name], *size, dtype)
    with poisoned_memory():
        ours = outcome_of_plan(problem, plan)
    truth = problem.outcome(torch.float64, backend="reference")
    by_torch = problem.outcome(backend="reference")
    correct = [results.pop("correct") for results in (ours, truth)]
    if dtype is torch.float32:  # in less precision, a logit on the border may fall on either side
        assert torch.equal(*correct)
    assert_as_accurate_as_torch(ours, by_torch, truth, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_twenty_runs_give_the_same_bits(name, plan, dtype):
    problem = Problem(LAYOUTS[name], 1500, 123, dtype)
    first = outcome_of_plan(problem, plan)
    for _ in range(19):
        again = outcome_of_plan(problem, plan)
        for key, value in first.items():
            assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("plan", PLANS)
def test_nothing_valid_and_no_rows(plan):
    problem = Problem(MIXED, 33, 40, torch.float32)
    problem.targets = [
        torch.full_like(t, math.nan) if t.is_floating_point() else torch.full_like(t, head.ignore_index)
        for t, head in zip(problem.targets, MIXED, strict=True)
    ]
    with poisoned_memory():
        outcome = outcome_of_plan(problem, plan)
    assert all(torch.equal(value, torch.zeros_like(value)) for value in outcome.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_it_can_be_captured_and_replayed_on_other_data(name, plan, dtype):
    problem, other = (Problem(LAYOUTS[name], 300, 72, dtype, seed=seed) for seed in (0, 1))
    expected = outcome_of_plan(other, plan)
    leaves = [t.clone().requires_grad_() for t in (problem.features, problem.weight, problem.bias)]
    task_weights = problem.task_weights.clone()

    def step():
        for leaf in leaves:
            leaf.grad = None
        out = multitask_loss(
            *leaves, problem.targets, task_weights, problem.layout, backend=BACKEND, plan=plan
        )
        out.total.backward()
        return out.total.detach(), out.losses, out.correct

    replay = captured(step, DEVICE)
    total, losses, correct = replay.result
    with torch.no_grad():
        for mine, new in zip(leaves, (other.features, other.weight, other.bias), strict=True):
            mine.copy_(new)
            mine.grad.fill_(math.nan)
        for mine, new in zip(problem.targets, other.targets, strict=True):
            mine.copy_(new)
        task_weights.copy_(other.task_weights)
    replay()
    torch.cuda.synchronize()
    found = {"total": total, "losses": losses, "correct": correct.double()}
    found |= dict(zip(("d_features", "d_weight", "d_bias"), (leaf.grad for leaf in leaves), strict=True))
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("plan", PLANS)
def test_it_never_waits_for_the_device(plan):
    problem = Problem(MIXED, 300, 72, torch.bfloat16)
    outcome_of_plan(problem, plan)
    with no_waiting():
        outcome_of_plan(problem, plan)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_it_compiles_without_a_graph_break():
    problem = Problem(MIXED, 300, 72, torch.bfloat16)
    expected = problem.outcome(backend=BACKEND)
    leaves = [t.clone().requires_grad_() for t in (problem.features, problem.weight, problem.bias)]

    @torch.compile(fullgraph=True)
    def loss(features, weight, bias):
        return multitask_loss(
            features, weight, bias, problem.targets, problem.task_weights, problem.layout, backend=BACKEND
        ).total

    loss(*leaves).backward()
    for leaf, key in zip(leaves, ("d_features", "d_weight", "d_bias"), strict=True):
        difference = (leaf.grad.float() - expected[key].float()).norm() / expected[key].float().norm()
        assert difference < 1e-2, key  # one rounding to bfloat16; a wrong gradient is off by 1

"""Problems for the fused op, its truth, and the rule of accuracy that the tests of it share.

Truth is the reference in float64, from the very inputs that the op got. Torch's own error is that of one
F.linear and one loss a head in the op's dtype, with autograd.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, multitask_loss
from mt2st_fast.kernels.heads import reference

SOFTMAX, BINARY, SQUARED, HUBER = Kind.SOFTMAX, Kind.BINARY, Kind.SQUARED, Kind.HUBER
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
D = 33
MARGIN = 2e-6  # a few float32 roundings: sums in another order, logits and bias added in two steps

HEADS = {
    "softmax": (HeadSpec(SOFTMAX, 17),),
    "softmax-2": (HeadSpec(SOFTMAX, 2),),
    "softmax-1": (HeadSpec(SOFTMAX, 1),),
    "softmax-1-all-options": (HeadSpec(SOFTMAX, 1, label_smoothing=0.1, class_weights=(0.7,)),),
    "softmax-wide": (HeadSpec(SOFTMAX, 3001),),  # tiles of 32 rows
    "softmax-smoothed": (HeadSpec(SOFTMAX, 9, label_smoothing=0.1),),
    "softmax-weighted": (HeadSpec(SOFTMAX, 3, class_weights=(0.5, 0.0, 7.0)),),
    "softmax-ignore-0": (HeadSpec(SOFTMAX, 5, ignore_index=0),),
    "softmax-all-options": (
        HeadSpec(SOFTMAX, 4, label_smoothing=0.3, class_weights=(0.2, 1.0, 0.0, 3.0), ignore_index=2),
    ),
    # Several panels of classes, which threads share.
    "softmax-150-all-options": (
        HeadSpec(
            SOFTMAX, 150, label_smoothing=0.2, class_weights=(0.2, 1.0, 0.0, 3.0, 0.7) * 30, ignore_index=1
        ),
    ),
    # Two classes have a closed form of their own.
    "softmax-2-all-options": (
        HeadSpec(SOFTMAX, 2, label_smoothing=0.2, class_weights=(0.3, 2.0), ignore_index=-1),
    ),
    "softmax-2-ignore-0": (HeadSpec(SOFTMAX, 2, ignore_index=0),),
    "binary": (HeadSpec(BINARY, 7),),
    "binary-weighted": (HeadSpec(BINARY, 3, pos_weight=(0.1, 1.0, 20.0)),),
    "squared": (HeadSpec(SQUARED, 2),),
    "huber": (HeadSpec(HUBER, 3, delta=0.4),),
    "mixed": (
        HeadSpec(SOFTMAX, 17, label_smoothing=0.1),
        HeadSpec(BINARY, 6, pos_weight=(1.0, 2.0, 0.5, 9.0, 1.0, 1.0)),
        HeadSpec(SQUARED, 1),
        HeadSpec(SOFTMAX, 3, class_weights=(1.0, 2.0, 0.3)),
        HeadSpec(HUBER, 2, delta=1.5),
    ),
}

# What `call` forces where a test does not say.
PLAN = {"forced": "auto"}

# Runs a test by each plan of the fixture in conftest.py.
by_every_plan = pytest.mark.usefixtures("plan")


@dataclass(frozen=True)
class Problem:
    """Arguments of one call; the tensors are leaves without a gradient."""

    features: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    targets: list[torch.Tensor]
    task_weights: torch.Tensor
    layout: HeadLayout

    def leaves(self, dtype=None):
        """The differentiable arguments as fresh leaves, in `dtype` where given."""
        tensors = (self.features, self.weight, self.bias, self.task_weights)
        return [
            None if t is None else t.to(t.dtype if dtype is None else dtype).clone().requires_grad_()
            for t in tensors
        ]


def make_target(head, N, generator):
    """Random targets; about a fifth of them ignored or missing."""
    gone = torch.rand(N if head.kind is SOFTMAX else (N, head.size), generator=generator) < 0.2
    if head.kind is SOFTMAX:
        target = torch.randint(0, head.size, (N,), generator=generator)
        return torch.where(gone, head.ignore_index, target)
    target = torch.randn(N, head.size, generator=generator)
    target = (target > 0).float() if head.kind is BINARY else 2 * target
    return torch.where(gone, torch.nan, target)


def make_problem(heads, N=257, dtype=torch.float32, *, bias=True, scale=1.0, seed=0, columns=D):
    generator = torch.Generator().manual_seed(seed)
    layout = HeadLayout(tuple(heads))

    def randn(*shape, std=1.0):
        return (std * torch.randn(*shape, generator=generator)).to(dtype)

    return Problem(
        randn(N, columns),
        randn(layout.width, columns, std=scale * columns**-0.5),
        randn(layout.width) if bias else None,
        [make_target(head, N, generator) for head in layout.heads],
        torch.rand(len(layout), generator=generator) + 0.5,
        layout,
    )


def call(problem, leaves=None, **options):
    features, weight, bias, task_weights = leaves or (
        problem.features,
        problem.weight,
        problem.bias,
        problem.task_weights,
    )
    options.setdefault("backend", "numba")
    if options["backend"] == "numba":
        options.setdefault("plan", PLAN["forced"])
    return multitask_loss(features, weight, bias, problem.targets, task_weights, problem.layout, **options)


def gradients_of(total, leaves):
    present = [leaf for leaf in leaves if leaf is not None]
    return torch.autograd.grad(total, present)


def outcome(problem, **options):
    """(losses, correct, all gradients) of the op."""
    leaves = problem.leaves()
    out = call(problem, leaves, **options)
    return out, gradients_of(out.total, leaves)


def truth_of(problem):
    leaves = problem.leaves(torch.float64)
    total, losses, correct = reference.multitask_loss(
        leaves[0], leaves[1], leaves[2], problem.targets, leaves[3], problem.layout
    )
    return total, losses, correct, gradients_of(total, leaves)


def torch_loss(logits, target, head):
    """Torch's own loss of this head in the dtype of its logits; missing values by indexing."""
    if head.kind is SOFTMAX:
        weight = None if head.class_weights is None else torch.tensor(head.class_weights, dtype=logits.dtype)
        return F.cross_entropy(
            logits,
            target,
            weight=weight,
            ignore_index=head.ignore_index,
            label_smoothing=head.label_smoothing,
        )
    valid = ~target.isnan()
    z, y = logits[valid], target[valid].to(logits.dtype)
    if head.kind is BINARY:
        positive = torch.tensor(head.column_weights, dtype=logits.dtype).expand(valid.shape)[valid]
        return F.binary_cross_entropy_with_logits(z, y, pos_weight=positive)
    return F.mse_loss(z, y) if head.kind is SQUARED else F.huber_loss(z, y, delta=head.delta)


def eager(problem):
    """What a user writes today: (losses, gradients) by one linear layer and one loss a head."""
    leaves = problem.leaves()
    features, weight, bias, task_weights = leaves
    losses = torch.stack(
        [
            torch_loss(F.linear(features, weight[a:b], None if bias is None else bias[a:b]), target, head)
            for (a, b, head), target in zip(problem.layout, problem.targets, strict=True)
        ]
    )
    total = torch.dot(task_weights, losses.float())
    return total, losses, gradients_of(total, leaves)


def assert_as_accurate(ours, torchs, truth, what):
    """Our relative error is at most 1.5 times torch's, plus MARGIN.

    Where torch is exact by luck, one rounding to the dtype of the result is allowed as well.
    """
    truth = truth.double()
    size = truth.norm().clamp_min(1e-30)
    error = (ours.double() - truth).norm() / size
    torch_error = (torchs.double() - truth).norm() / size
    rounding = torch.finfo(ours.dtype).eps / 2 if ours.dtype != torch.float32 else 0.0
    allowed = max(1.5 * torch_error.item(), rounding) + MARGIN
    # Written so that a NaN of ours fails.
    assert error.item() <= allowed, f"{what}: error {error:.3g} > {allowed:.3g} (torch {torch_error:.3g})"


def assert_op_is_as_accurate_as_torch(problem):
    out, gradients = outcome(problem)
    torch_total, torch_losses, torch_gradients = eager(problem)
    total, losses, correct, true_gradients = truth_of(problem)
    assert out.total.dtype == out.losses.dtype == torch.float32
    assert_as_accurate(out.total, torch_total, total, "total")
    assert_as_accurate(out.losses, torch_losses, losses, "losses")
    names = [
        n
        for n, t in zip(("features", "weight", "bias", "task_weights"), problem.leaves(), strict=True)
        if t is not None
    ]
    for name, ours, torchs, true in zip(names, gradients, torch_gradients, true_gradients, strict=True):
        assert_as_accurate(ours, torchs, true, f"gradient of {name}")
    return out.correct, correct

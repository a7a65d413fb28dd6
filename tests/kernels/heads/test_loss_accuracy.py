"""The fused op on a CPU is as accurate as torch: every kind of head, dtype and shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mt2st_fast.kernels import HeadLayout, HeadSpec, Kind, multitask_loss
from mt2st_fast.kernels.heads import reference
from tests.kernels.heads.loss_problems import (
    BINARY,
    DTYPES,
    HEADS,
    HUBER,
    SOFTMAX,
    SQUARED,
    assert_op_is_as_accurate_as_torch,
    by_every_plan,
    call,
    gradients_of,
    make_problem,
    outcome,
)


@by_every_plan
@pytest.mark.parametrize("N", [5, 257, 507])
@pytest.mark.parametrize("case", HEADS)
def test_float32_is_as_accurate_as_torch(case, N):
    correct, true_correct = assert_op_is_as_accurate_as_torch(make_problem(HEADS[case], N))
    assert correct.tolist() == true_correct.tolist()


@by_every_plan
@pytest.mark.parametrize("N", [64, 257])
@pytest.mark.parametrize("columns", [1, 25, 48, 300, 513])
def test_any_number_of_features_is_as_accurate_as_torch(columns, N):
    """Whole vectors and not, one vector of a panel's two and both, one depth of a GEMM and several."""
    assert_op_is_as_accurate_as_torch(make_problem(HEADS["mixed"], N, columns=columns))


@by_every_plan
@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("case", ["softmax-all-options", "binary-weighted", "squared", "huber", "mixed"])
def test_half_precision_is_as_accurate_as_torch(case, dtype):
    correct, true_correct = assert_op_is_as_accurate_as_torch(make_problem(HEADS[case], 257, dtype))
    assert correct.tolist() == true_correct.tolist()


@by_every_plan
def test_one_row():
    problem = make_problem(HEADS["mixed"], 1)
    # Torch's loss of a row that is not valid is NaN.
    targets = [t.nan_to_num(1.0) if t.is_floating_point() else t.clamp_min(0) for t in problem.targets]
    assert_op_is_as_accurate_as_torch(replace(problem, targets=targets))


@by_every_plan
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_bias(dtype):
    assert_op_is_as_accurate_as_torch(make_problem(HEADS["mixed"], 123, dtype, bias=False))


@by_every_plan
@pytest.mark.parametrize("scale", [80.0, 1e4])
@pytest.mark.parametrize("case", HEADS)
def test_extreme_logits(case, scale):
    assert_op_is_as_accurate_as_torch(make_problem(HEADS[case], 257, scale=scale))


@by_every_plan
def test_column_major_arguments():
    problem = make_problem(HEADS["mixed"], 123)
    strided = replace(
        problem,
        features=problem.features.t().contiguous().t(),
        weight=problem.weight.t().contiguous().t(),
        bias=problem.bias.repeat_interleave(2)[::2],
        targets=[torch.stack([t, t], dim=-1)[..., 0] for t in problem.targets],
    )
    assert not any(
        t.is_contiguous() for t in (strided.features, strided.weight, strided.bias, strided.targets[0])
    )
    assert_op_is_as_accurate_as_torch(strided)


@by_every_plan
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_target(dtype):
    problem = make_problem((HeadSpec(SOFTMAX, 17, ignore_index=16),), 50)
    narrow = replace(problem, targets=[problem.targets[0].to(dtype)])
    assert torch.equal(call(narrow).losses, call(problem).losses)


@by_every_plan
@pytest.mark.parametrize(
    ("head", "torch_function"),
    [
        (
            HeadSpec(
                SOFTMAX, 6, label_smoothing=0.2, class_weights=(1.0, 2.0, 0.5, 1.0, 0.0, 3.0), ignore_index=1
            ),
            lambda z, y: F.cross_entropy(
                z, y, weight=torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0, 3.0]), label_smoothing=0.2, ignore_index=1
            ),
        ),
        (
            HeadSpec(BINARY, 2, pos_weight=(3.0, 0.5)),
            lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor([3.0, 0.5])),
        ),
        (HeadSpec(SQUARED, 3), F.mse_loss),
        (HeadSpec(HUBER, 3, delta=0.3), lambda z, y: F.huber_loss(z, y, delta=0.3)),
    ],
    ids=["cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "huber_loss"],
)
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_one_head_is_the_loss_of_that_name(head, torch_function, backend):
    problem = make_problem((head,), 40)
    problem = replace(
        problem, targets=[t.nan_to_num(1.0) for t in problem.targets], task_weights=torch.ones(1)
    )
    out, gradients = outcome(problem, backend=backend)
    leaves = problem.leaves()
    expected = torch_function(F.linear(*leaves[:3]), problem.targets[0])
    torch.testing.assert_close(out.total, expected, rtol=1e-6, atol=0)
    for ours, torchs in zip(gradients, gradients_of(expected, leaves[:3]), strict=False):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-8)


@by_every_plan
def test_smoothed_and_soft_binary_targets():
    problem = make_problem((HeadSpec(BINARY, 3, pos_weight=(2.0, 1.0, 0.2)),), 64)
    soft = replace(problem, targets=[torch.rand(64, 3, generator=torch.Generator().manual_seed(1))])
    assert_op_is_as_accurate_as_torch(soft)


@pytest.mark.parametrize("case", ["softmax-all-options", "binary-weighted", "squared", "huber", "mixed"])
def test_reference_gradients_are_those_of_finite_differences(case):
    problem = make_problem(HEADS[case], 4, torch.float64, columns=5)
    leaves = problem.leaves(torch.float64)

    def total(features, weight, bias, task_weights):
        return multitask_loss(
            features, weight, bias, problem.targets, task_weights, problem.layout, backend="reference"
        ).total

    assert torch.autograd.gradcheck(total, leaves)


def test_float64_falls_back_to_the_reference():
    problem = make_problem(HEADS["mixed"], 30, torch.float64)
    out = call(problem, backend="auto")
    assert out.total.dtype == torch.float64
    assert torch.equal(out.losses, call(problem, backend="reference").losses)


def test_a_loss_scale_comes_before_the_rounding_to_float16():
    """At 1/N times a small weight float16 holds nothing; scaled up first, as a GradScaler does, it holds it well."""
    torch.manual_seed(3)
    layout = HeadLayout((HeadSpec(Kind.SOFTMAX, 4),))
    features = torch.randn(4096, 8).half().requires_grad_()
    weight = (1e-3 * torch.randn(4, 8)).half()
    targets = [torch.randint(0, 4, (4096,))]
    total = multitask_loss(features, weight, None, targets, torch.ones(1), layout, backend="numba").total
    (scaled,) = torch.autograd.grad(total * 65536.0, features)
    exact = features.detach().double().requires_grad_()
    truth = reference.multitask_loss(exact, weight.double(), None, targets, torch.ones(1).double(), layout)[0]
    (expected,) = torch.autograd.grad(truth * 65536.0, exact)
    assert (scaled.double() - expected).norm() / expected.norm() < 2**-10


@by_every_plan
@pytest.mark.parametrize("weight", [None, 0.7])
def test_a_head_of_one_class_has_no_gradient(weight):
    """Adam normalizes gradients: of rounding errors it would make whole steps, where torch makes none."""
    one = HeadSpec(SOFTMAX, 1, label_smoothing=0.1, class_weights=None if weight is None else (weight,))
    out, gradients = outcome(make_problem((one,)))
    assert not out[1].any()
    assert not any(gradient.any() for gradient in gradients)

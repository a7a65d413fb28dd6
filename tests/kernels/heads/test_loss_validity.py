"""The fused op: rows, values and heads that do not count, and values that are not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mt2st_fast.kernels import HeadLayout, HeadSpec
from mt2st_fast.kernels.heads.on_numba import passes as numba_plan
from tests.kernels.heads.loss_problems import (
    DTYPES,
    HEADS,
    SOFTMAX,
    Problem,
    assert_as_accurate,
    assert_op_is_as_accurate_as_torch,
    by_every_plan,
    call,
    eager,
    make_problem,
    outcome,
    truth_of,
)


@by_every_plan
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_task_without_valid_rows_has_loss_and_gradient_zero(backend, dtype):
    problem = make_problem(HEADS["mixed"], 57, dtype)
    empty = (0, 1, 4)
    targets = [
        t if k not in empty else torch.full_like(t, torch.nan if t.is_floating_point() else -100)
        for k, t in enumerate(problem.targets)
    ]
    problem = replace(problem, targets=targets)
    out, (d_features, d_weight, d_bias, d_task_weights) = outcome(problem, backend=backend)
    assert out.losses[list(empty)].tolist() == [0.0, 0.0, 0.0]
    assert (out.losses[[2, 3]] > 0).all()
    assert d_task_weights.tolist() == out.losses.tolist()
    assert out.correct[list(empty)].tolist() == [0, 0, 0]
    for k, (a, b, _) in enumerate(problem.layout):
        rows_are_zero = (d_weight[a:b] == 0).all() and (d_bias[a:b] == 0).all()
        assert bool(rows_are_zero) == (k in empty)
    assert d_features.isfinite().all()
    assert (d_features != 0).any()


@by_every_plan
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("N", [0, 3])
def test_nothing_valid_at_all(backend, N):
    problem = make_problem(HEADS["mixed"], N)
    problem = replace(
        problem,
        targets=[torch.full_like(t, torch.nan if t.is_floating_point() else -100) for t in problem.targets],
    )
    out, gradients = outcome(problem, backend=backend)
    assert out.total.item() == 0.0
    assert all((g == 0).all() for g in gradients)


@by_every_plan
def test_class_weights_that_are_all_zero_count_no_row():
    problem = make_problem((HeadSpec(SOFTMAX, 3, class_weights=(0.0, 0.0, 0.0)),), 9)
    for backend in ("numba", "reference"):
        out, gradients = outcome(problem, backend=backend)
        assert out.total.item() == 0.0
        assert all((g == 0).all() for g in gradients)


@by_every_plan
@pytest.mark.parametrize("case", ["softmax-smoothed", "binary", "squared", "huber"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_features_in_an_ignored_row_leave_loss_and_other_rows_alone(case, bad):
    problem = make_problem(HEADS[case], 33)
    problem.targets[0][7] = -100 if problem.layout.heads[0].kind is SOFTMAX else torch.nan
    clean, (clean_features, *_) = outcome(problem)
    problem.features[7] = bad
    out, (d_features, d_weight, d_bias, _) = outcome(problem)
    assert torch.equal(out.losses, clean.losses)
    assert torch.equal(out.correct, clean.correct)
    assert (d_features[7] == 0).all()
    others = torch.arange(33) != 7
    torch.testing.assert_close(d_features[others], clean_features[others], rtol=1e-6, atol=1e-9)
    assert d_bias.isfinite().all()
    # 0 * NaN: as in torch, nothing but the caller can keep it out of the weight's gradient.
    assert d_weight.isnan().all()


@by_every_plan
@pytest.mark.parametrize(
    "case", ["softmax", "softmax-smoothed", "softmax-wide", "binary", "squared", "huber"]
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_features_in_a_valid_row_surface(case, bad):
    problem = make_problem(HEADS[case], 33)
    problem.targets[0][7] = 1
    problem.features[7, 3] = bad
    assert not call(problem).losses.isfinite().all()
    assert not call(problem, backend="reference").losses.isfinite().all()


@by_every_plan
@pytest.mark.parametrize("case", ["softmax", "binary", "squared", "huber"])
def test_a_nan_is_one_in_every_gradient_that_it_reaches(case):
    problem = make_problem(HEADS[case], 33)
    problem.targets[0][7] = 1
    problem.features[7, 3] = torch.nan
    _, (d_features, d_weight, d_bias, _) = outcome(problem)
    size = problem.layout.heads[0].size
    for found in (d_features[7], d_weight[:size, 3], d_bias[:size]):
        assert found.isnan().all()


@by_every_plan
@pytest.mark.parametrize("case", ["softmax", "softmax-smoothed", "softmax-wide"])
def test_a_bad_output_that_is_nobodys_target_surfaces(case):
    problem = make_problem(HEADS[case], 33)
    problem.targets[0].clamp_(0, 1)
    problem.bias[8] = torch.nan
    assert call(problem).losses.isnan().all()


@by_every_plan
@pytest.mark.parametrize("case", ["softmax", "softmax-2"])
def test_a_class_masked_out_by_a_bias_of_minus_infinity_takes_no_part(case):
    problem = make_problem(HEADS[case], 33)
    problem.targets[0].clamp_(min=1)
    problem.bias[0] = -torch.inf
    correct, true_correct = assert_op_is_as_accurate_as_torch(problem)
    assert correct.tolist() == true_correct.tolist()


# --- heads and rows that are left out -------------------------------------------------------------------


@by_every_plan
@pytest.mark.parametrize("idle", [(0,), (1, 3), (0, 1, 2, 3, 4)])
def test_a_head_of_weight_zero_is_not_computed(idle):
    problem = make_problem(HEADS["mixed"], 123)
    weights = problem.task_weights.clone()
    weights[list(idle)] = 0.0
    # NaN and infinity would show if anything of the head were touched.
    for k in idle:
        problem.weight[problem.layout.offsets[k]] = torch.inf
    silent = replace(problem, task_weights=weights)
    features, weight, bias, task_weights = silent.leaves()
    task_weights.requires_grad_(False)
    out = call(silent, (features, weight, bias, task_weights))
    out.total.backward()
    expected = call(silent, backend="reference")
    assert out.losses[list(idle)].tolist() == [0.0] * len(idle)
    assert out.correct.tolist() == expected.correct.tolist()
    for k, (a, b, _) in enumerate(problem.layout):
        assert bool((weight.grad[a:b] == 0).all()) == (k in idle)
        assert bool((bias.grad[a:b] == 0).all()) == (k in idle)
    others = [k for k in range(5) if k not in idle]
    if not others:
        assert (features.grad == 0).all()
        return
    rows = torch.cat([torch.arange(a, b) for k, (a, b, _) in enumerate(problem.layout) if k in others])
    alone = Problem(
        problem.features,
        problem.weight[rows],
        problem.bias[rows],
        [problem.targets[k] for k in others],
        weights[others],
        HeadLayout(tuple(problem.layout.heads[k] for k in others)),
    )
    _total, losses, _, (d_features, *_) = truth_of(alone)
    _, torch_losses, (torch_features, *_) = eager(alone)
    assert_as_accurate(out.losses[others], torch_losses, losses, "losses")
    assert_as_accurate(features.grad, torch_features, d_features, "gradient of features")


@by_every_plan
def test_a_learned_weight_of_zero_gets_its_gradient():
    problem = make_problem(HEADS["mixed"], 123)
    problem.task_weights[1] = 0.0
    out, (*_, d_task_weights) = outcome(problem)
    assert (out.losses > 0).all()
    assert torch.equal(d_task_weights, out.losses)


@by_every_plan
@pytest.mark.parametrize("columns", [33, 48])
@pytest.mark.parametrize("sparse", [(0,), (0, 1, 2, 3, 4), (1, 3)])
def test_sparse_labels_are_as_accurate_as_torch(sparse, columns, monkeypatch):
    monkeypatch.setattr(numba_plan, "COMPACTED_PASS_LOGITS", 0)
    problem = make_problem(HEADS["mixed"], 507, columns=columns)
    generator = torch.Generator().manual_seed(3)
    for k in sparse:
        gone = torch.rand(507, generator=generator) < 0.95
        problem.targets[k][gone] = torch.nan if problem.targets[k].is_floating_point() else -100
    correct, true_correct = assert_op_is_as_accurate_as_torch(problem)
    assert correct.tolist() == true_correct.tolist()


def test_rows_without_a_label_are_left_out_where_that_pays():
    heads = (HeadSpec(SOFTMAX, 40), HeadSpec(SOFTMAX, 50, ignore_index=3), HeadSpec(SOFTMAX, 2))
    problem = make_problem(heads, 2000)
    problem.targets[1][100:] = 3
    problem.targets[2][100:] = -100  # too narrow a head: another pass would cost more
    batch = numba_plan.survey_batch(problem.targets, problem.task_weights, problem.layout, True)
    dense, sparse = numba_plan.passes(batch, batch.computed())
    assert dense.heads["index"].tolist() == [0, 2]
    assert not len(dense.rows)
    assert sparse.heads["index"].tolist() == [1]
    assert sparse.rows.tolist() == (problem.targets[1][:100] != 3).nonzero().flatten().tolist()

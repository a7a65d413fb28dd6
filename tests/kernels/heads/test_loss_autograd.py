"""The fused op and torch's machinery: gradients, autocast, torch.func and torch.compile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mt2st_fast.kernels import HeadLayout, multitask_loss
from mt2st_fast.kernels.heads import known
from mt2st_fast.kernels.heads.on_numba import tile as numba_tile
from tests.kernels.heads.loss_problems import (
    DTYPES,
    HEADS,
    PLAN,
    by_every_plan,
    call,
    gradients_of,
    make_problem,
    outcome,
)

# --- autograd ------------------------------------------------------------------------------------------


@by_every_plan
@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2), (0, 3), (0, 1, 2)])
def test_frozen_arguments_get_no_gradient_and_the_others_theirs(frozen):
    problem = make_problem(HEADS["mixed"], 60)
    _, everything = outcome(problem)
    leaves = problem.leaves()
    for i in frozen:
        leaves[i].requires_grad_(False)
    call(problem, leaves).total.backward()
    for i, (leaf, expected) in enumerate(zip(leaves, everything, strict=True)):
        if i in frozen:
            assert leaf.grad is None
        else:
            assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize(
    ("wanted", "needs"),
    [((0,), (True, False, False)), ((1,), (False, True, False)), ((2,), (False, False, True))],
)
def test_gradients_that_nobody_needs_are_not_computed(wanted, needs, monkeypatch):
    problem = make_problem(HEADS["mixed"], 20)
    leaves = problem.leaves()
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i in wanted)
    seen = whole_calls(monkeypatch)
    call(problem, leaves).total.backward()
    ((asked, made),) = seen
    assert tuple(asked) == needs
    assert tuple(g is not None for g in made.gradients) == needs


def whole_calls(monkeypatch):
    """The needs and the result of calls that are one kernel call, of which nothing is known yet."""
    seen = []
    at_once = numba_tile.at_once

    def spy(tensors, n_weights, layout, needs, skips):
        seen.append((needs, at_once(tensors, n_weights, layout, needs, skips)))
        return seen[-1][1]

    monkeypatch.setattr(numba_tile, "at_once", spy)
    monkeypatch.setattr(known, "_known", {})
    return seen


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "nothing requires grad", "only task weights"])
def test_logit_gradient_is_made_only_where_one_flows(how, monkeypatch):
    problem = make_problem(HEADS["mixed"], 20)
    leaves = problem.leaves()
    if how in ("nothing requires grad", "only task weights"):
        for leaf in leaves[: 4 if how == "nothing requires grad" else 3]:
            leaf.requires_grad_(False)
    calls = whole_calls(monkeypatch)
    seen = []
    forward = numba_tile.forward

    def spy(heads_call):
        seen.append(heads_call.needs)
        return forward(heads_call)

    monkeypatch.setattr(numba_tile, "forward", spy)
    mode = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(how, torch.enable_grad)
    with mode():
        out = call(problem, leaves)
    assert [*seen, *(needs for needs, _ in calls)] == [(False, False, False)]
    monkeypatch.undo()
    assert torch.equal(out.losses, call(problem, problem.leaves()).losses)
    if how == "only task weights":
        out.total.backward()
        assert torch.equal(leaves[3].grad, out.losses)


def test_losses_and_correct_carry_no_gradient():
    for backend in ("numba", "reference"):
        out, _ = outcome(make_problem(HEADS["mixed"], 20), backend=backend)
        assert out.total.requires_grad
        assert not out.losses.requires_grad
        assert not out.correct.requires_grad


@by_every_plan
def test_retained_graph_gives_the_same_gradients_again():
    problem = make_problem(HEADS["mixed"], 60)
    leaves = problem.leaves()
    total = call(problem, leaves).total
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    second = torch.autograd.grad(total, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@by_every_plan
def test_gradients_accumulate():
    problem = make_problem(HEADS["mixed"], 60)
    _, once = outcome(problem)
    leaves = problem.leaves()
    for _ in range(2):
        call(problem, leaves).total.backward()
    assert all(torch.equal(leaf.grad, 2 * g) for leaf, g in zip(leaves, once, strict=True))


@by_every_plan
def test_upstream_gradient_scales_all():
    problem = make_problem(HEADS["mixed"], 60)
    _, plain = outcome(problem)
    leaves = problem.leaves()
    call(problem, leaves).total.mul(-4.0).backward()  # a power of two: exact
    assert all(torch.equal(leaf.grad, -4 * g) for leaf, g in zip(leaves, plain, strict=True))


@by_every_plan
def test_the_callers_tensors_are_left_alone():
    problem = make_problem(HEADS["mixed"], 60)
    leaves = problem.leaves()
    tensors = [*leaves, *problem.targets]
    before = [t.detach().clone() for t in tensors]
    call(problem, leaves).total.backward()
    for tensor, old in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor.detach(), old, rtol=0, atol=0, equal_nan=True)
        assert tensor._version == 0


def test_a_second_derivative_is_refused():
    problem = make_problem(HEADS["mixed"], 20)
    leaves = problem.leaves()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(call(problem, leaves).total, leaves, create_graph=True)
    leaves = problem.leaves()
    gradients = torch.autograd.grad(
        call(problem, leaves, backend="reference").total, leaves, create_graph=True
    )
    assert gradients[0].requires_grad


def test_torch_func_is_refused_and_the_reference_serves():
    problem = make_problem(HEADS["mixed"], 20)

    def total(features, backend):
        return call(replace(problem, features=features), backend=backend).total

    with pytest.raises(RuntimeError, match=r'use backend="reference" under torch\.func'):
        torch.func.grad(total)(problem.features, "numba")
    by_reference = torch.func.grad(total)(problem.features, "reference")
    _, (d_features, *_) = outcome(problem)
    torch.testing.assert_close(by_reference, d_features, rtol=1e-4, atol=1e-7)


def test_the_reference_gives_the_gradients_of_single_rows():
    problem = make_problem(HEADS["mixed"], 6)

    def total(features, *targets):
        one = replace(problem, features=features[None], targets=[target[None] for target in targets])
        return call(one, backend="reference").total

    by_row = torch.func.vmap(torch.func.grad(total))(problem.features, *problem.targets)
    for row in range(6):
        alone = torch.func.grad(total)(problem.features[row], *(target[row] for target in problem.targets))
        torch.testing.assert_close(by_row[row], alone)


# --- autocast, compile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_autocast_takes_features_in_its_dtype_and_keeps_float32_weights(backend):
    problem = make_problem(HEADS["mixed"], 123)
    leaves = problem.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        out = call(problem, leaves, backend=backend)
    gradients = gradients_of(out.total, leaves)
    assert [g.dtype for g in gradients] == [torch.float32] * 4
    rounded = replace(problem, features=problem.features.bfloat16())
    leaves = rounded.leaves()
    leaves[1] = leaves[1].detach().requires_grad_()
    if backend == "numba":
        expected = call(rounded, leaves)
        assert torch.equal(out.total, expected.total)
        for ours, same in zip(gradients, gradients_of(expected.total, leaves), strict=True):
            assert torch.equal(ours, same.float())


def test_backward_inside_the_autocast_region_does_not_round_more():
    problem = make_problem(HEADS["mixed"], 123)
    leaves = problem.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        total = call(problem, leaves).total
        inside = torch.autograd.grad(total, leaves, retain_graph=True)
    outside = torch.autograd.grad(total, leaves)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_autocast_leaves_float64_alone():
    problem = make_problem(HEADS["mixed"], 12, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        out = call(problem, backend="auto")
    assert torch.equal(out.losses, call(problem, backend="auto").losses)


def assert_compiles_to_the_same(problem, compiler):
    def loss(features, weight, bias, targets, task_weights):
        out = multitask_loss(
            features.relu(), weight, bias, targets, task_weights, problem.layout, backend="numba"
        )
        return 3.0 * out.total, out.losses, out.correct

    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
    results = []
    for function in (loss, compiled):
        leaves = problem.leaves()
        total, losses, correct = function(leaves[0], leaves[1], leaves[2], problem.targets, leaves[3])
        results.append((total, losses, correct, *gradients_of(total, leaves)))
    for eager_value, value in zip(*results, strict=True):
        torch.testing.assert_close(value, eager_value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiles_without_a_graph_break(dtype, bias):
    torch.compiler.reset()
    assert_compiles_to_the_same(make_problem(HEADS["mixed"], 37, dtype, bias=bias), "aot_eager")


def test_the_oracle_compiles_without_a_graph_break():
    torch.compiler.reset()
    problem = make_problem(HEADS["mixed"], 37)
    compiled = torch.compile(
        lambda *leaves: call(problem, leaves, backend="reference").total, fullgraph=True, backend="aot_eager"
    )
    leaves = problem.leaves()
    torch.testing.assert_close(compiled(*leaves), call(problem, leaves, backend="reference").total)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # torch's own, on import
def test_compiles_with_inductor():
    torch.compiler.reset()
    assert_compiles_to_the_same(make_problem(HEADS["mixed"], 37), "inductor")


def test_frozen_arguments_compiled():
    torch.compiler.reset()
    problem = make_problem(HEADS["mixed"], 37)
    leaves = problem.leaves()
    leaves[1].requires_grad_(False)
    compiled = torch.compile(lambda *leaves: call(problem, leaves).total, fullgraph=True, backend="aot_eager")
    compiled(*leaves).backward()
    assert leaves[1].grad is None
    _, (d_features, _, d_bias, _) = outcome(problem)
    assert torch.equal(leaves[0].grad, d_features)
    assert torch.equal(leaves[2].grad, d_bias)


# opcheck of torch 2.14 itself reads the .grad of tensors that it made.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@by_every_plan
@pytest.mark.parametrize("need_gradient", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_custom_op_is_registered_right(bias, need_gradient):
    problem = make_problem(HEADS["mixed"], 11, bias=bias)
    features, weight, bias_s, task_weights = problem.leaves() if need_gradient else (
        problem.features, problem.weight, problem.bias, problem.task_weights
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.mt2st_fast.multitask_forward,
        (
            features,
            weight,
            bias_s,
            problem.targets,
            task_weights,
            problem.layout.key,
            "numba",
            PLAN["forced"],
            [need_gradient, need_gradient, need_gradient and bias],
            True,
        ),
    )


def test_a_layout_survives_its_key():
    for heads in HEADS.values():
        layout = HeadLayout(heads)
        assert HeadLayout.from_key(layout.key) == layout

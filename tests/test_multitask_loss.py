"""The fused op on a CPU: as accurate as torch, the same bits every time, and clear about bad arguments.

Truth is the reference in float64, from the very inputs that the op got. Torch's own error is that of one
F.linear and one loss a head in the op's dtype, with autograd.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mt2st_fast.kernels import (
    HeadLayout,
    HeadSpec,
    Kind,
    choose_backend,
    multitask_loss,
    numba_chunked,
    numba_packed,
    numba_plan,
    numba_simd,
    numba_tile,
    reference,
)

SOFTMAX, BINARY, SQUARED, HUBER = Kind
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
D = 33
MARGIN = 2e-6  # a few float32 roundings: sums in another order, logits and bias added in two steps

HEADS = {
    "softmax": (HeadSpec(SOFTMAX, 17),),
    "softmax-2": (HeadSpec(SOFTMAX, 2),),
    "softmax-1": (HeadSpec(SOFTMAX, 1),),
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


@pytest.fixture(params=["tile", "tile-parallel", "packed", "chunked"])
def plan(request, monkeypatch):
    """Runs a test by every plan, each made to do at this size what it does at its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    name = request.param.removesuffix("-parallel")
    monkeypatch.setitem(PLAN, "forced", name)
    monkeypatch.setattr(numba_tile, "TILE_FLOATS", 0)  # the fewest rows a tile
    if request.param == "tile-parallel":
        monkeypatch.setattr(numba_tile, "PARALLEL_PRODUCTS", 0)
    monkeypatch.setattr(numba_packed, "CHUNK_BYTES", 1 << 12)
    monkeypatch.setattr(numba_chunked, "WIDE_HEAD", 3)
    monkeypatch.setattr(numba_chunked, "MOST_ROWS", 48)
    yield name
    torch.set_num_threads(before)


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


# --- accuracy ------------------------------------------------------------------------------------------


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
    problem = make_problem(HEADS[case], 4, torch.float64)
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


# --- rows that do not count, values that are not finite -------------------------------------------------


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


@by_every_plan
@pytest.mark.parametrize("case", ["softmax-all-options", "mixed"])
def test_fresh_tensors_are_never_read(case, monkeypatch):
    problem = make_problem(HEADS[case], 123)
    clean, clean_gradients = outcome(problem)
    filled = []
    empty = torch.empty

    def poisoned(*args, **options):
        fresh = empty(*args, **options)
        filled.append(fresh.fill_(torch.nan if fresh.is_floating_point() else -(2**40)))
        return filled[-1]

    monkeypatch.setattr(torch, "empty", poisoned)
    out, gradients = outcome(problem)
    monkeypatch.undo()
    assert filled
    for ours, expected in zip((*out, *gradients), (*clean, *clean_gradients), strict=True):
        assert torch.equal(ours, expected)


def test_fresh_scratch_memory_is_never_read():
    """Kernels take their scratch from malloc, which glibc fills with 0x7f bytes, a float32 near the largest."""
    program = textwrap.dedent("""
        import sys
        import test_multitask_loss as tests
        for plan in ("tile", "packed", "chunked"):
            for case in ("mixed", "softmax-all-options", "softmax-wide"):
                for N in (5, 123):
                    tests.PLAN["forced"] = plan
                    tests.assert_op_is_as_accurate_as_torch(tests.make_problem(tests.HEADS[case], N))
    """)
    environment = os.environ | {"MALLOC_PERTURB_": "128"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("width", [4, 8])
def test_blocks_fit_scratch_on_processors_with_narrower_vectors(width):
    """Every stage works in whole blocks of rows, scratch has room for whole vectors of rows."""
    done = run_with_vectors_of(width, "")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.long
@pytest.mark.parametrize("width", [4, 8])
def test_narrower_vectors_are_as_accurate_as_torch(width, tmp_path):
    program = """
        import test_multitask_loss as tests
        for plan in ("tile", "packed", "chunked"):
            tests.numba_chunked.WIDE_HEAD = 3
            tests.PLAN["forced"] = plan
            for N in (5, 123):
                tests.assert_op_is_as_accurate_as_torch(tests.make_problem(tests.HEADS["mixed"], N))
    """
    done = run_with_vectors_of(width, program, MALLOC_PERTURB_="128", NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]


def run_with_vectors_of(width, program, **environment):
    """Run a program where Numba is told of a processor with vectors of `width` float32 numbers."""
    if width > numba_simd.WIDTH:
        pytest.skip("this processor has narrower ones")
    told = """
        import llvmlite.binding
        real = llvmlite.binding.get_host_cpu_features()
        told = type(real)(real)
        gone = ("avx512", "evex512") if WIDTH == 8 else ("avx", "evex512", "fma", "f16c", "vaes", "vpclmulqdq")
        told.update({name: False for name in told if name.startswith(gone)})
        llvmlite.binding.get_host_cpu_features = lambda: told
        from mt2st_fast.kernels import numba_gemm, numba_simd
        assert numba_simd.WIDTH == WIDTH
        assert numba_simd.WIDTH % numba_gemm.BLOCK_ROWS == 0
    """
    return subprocess.run(
        [sys.executable, "-c", f"WIDTH = {width}\n" + textwrap.dedent(told) + textwrap.dedent(program)],
        cwd=Path(__file__).parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


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
    seen = []
    forward = numba_tile.forward

    def spy(*args):
        seen.append((args[6], forward(*args)))
        return seen[-1][1]

    monkeypatch.setattr(numba_tile, "forward", spy)
    call(problem, leaves).total.backward()
    ((asked, made),) = seen
    assert tuple(asked) == needs
    assert tuple(g.numel() > 0 for g in made.residual) == needs


@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "nothing requires grad", "only task weights"])
def test_logit_gradient_is_made_only_where_one_flows(how, monkeypatch):
    problem = make_problem(HEADS["mixed"], 20)
    leaves = problem.leaves()
    if how in ("nothing requires grad", "only task weights"):
        for leaf in leaves[: 4 if how == "nothing requires grad" else 3]:
            leaf.requires_grad_(False)
    seen = []
    forward = numba_tile.forward

    def spy(*args):
        seen.append(args[6])
        return forward(*args)

    monkeypatch.setattr(numba_tile, "forward", spy)
    mode = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(how, torch.enable_grad)
    with mode():
        out = call(problem, leaves)
    assert seen == [(False, False, False)]
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


# --- the same bits -------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    """Sets torch's threads and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def bits(problem, **options):
    out, gradients = outcome(problem, **options)
    return [t.clone() for t in (*out, *gradients)]


@by_every_plan
@pytest.mark.parametrize("dtype", DTYPES)
def test_twenty_runs_give_the_same_bits(dtype):
    problem = make_problem(HEADS["mixed"], 2007, dtype)
    first = bits(problem)
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(bits(problem), first, strict=True))


@pytest.mark.parametrize("case", ["mixed", "softmax-wide"])
def test_threads_do_not_change_the_packed_plans_own_bits(case, threads):
    problem = make_problem(HEADS[case], 1507)
    results = []
    for count in (1, 2):
        threads(count)
        total, losses, correct, _, _, d_bias, d_task_weights = bits(problem, plan="packed")
        # Features' and weight's gradients are torch's own GEMMs, which split the work by threads.
        results.append((total, losses, correct, d_bias, d_task_weights))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("case", HEADS)
def test_serial_and_parallel_loss_pass_agree(case, threads, monkeypatch):
    threads(2)
    problem = make_problem(HEADS[case], 507)
    results = []
    kernel = numba_packed.segment_loss
    for parallel in (False, True):
        used = []

        def forced(*args, parallel=parallel, used=used):
            used.append(kernel.parallel if parallel else kernel.serial)
            return used[-1](*args)

        monkeypatch.setattr(numba_packed, "segment_loss", lambda *args, forced=forced, **_: forced(*args))
        results.append(bits(problem, plan="packed"))
        assert len(set(used)) == 1
        assert len(used[0].overloads) > 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("case", ["mixed", "softmax-all-options", "binary"])
def test_every_split_of_the_rows_leaves_the_feature_gradient_alone(case, threads, monkeypatch):
    """A row's own results do not depend on who computed it; sums over rows do, in their last bits."""
    problem = make_problem(HEADS[case], 507)
    monkeypatch.setattr(numba_tile, "PARALLEL_PRODUCTS", 0)
    results = []
    for count in (1, 2):
        threads(count)
        _total, _losses, correct, d_features, *_ = bits(problem, plan="tile")
        results.append((correct, d_features))
        assert_op_is_as_accurate_as_torch(problem)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kernel", [numba_packed.segment_loss, numba_tile.tile_pass, numba_chunked.wide_head])
def test_serial_and_parallel_kernels_are_cached_apart(kernel):
    """Numba's cache tells functions apart by name, not by flags: one would be loaded for the other."""
    assert kernel.serial._cache._impl.filename_base != kernel.parallel._cache._impl.filename_base
    assert kernel.parallel.targetoptions["parallel"]


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


# --- bad arguments -------------------------------------------------------------------------------------


@by_every_plan
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("bad", [-1, 17, 2**40])
def test_a_class_outside_names_its_task(backend, bad):
    problem = make_problem(HEADS["mixed"], 300)
    problem = replace(problem, layout=HeadLayout(problem.layout.heads, ("upos", "b", "c", "d", "e")))
    problem.targets[0][299] = bad
    with pytest.raises(ValueError, match=rf"targets of upos: {bad} lies outside \[0, 17\)"):
        call(problem, backend=backend)


BAD = {
    "features 3d": (ValueError, "features must be", lambda p: replace(p, features=p.features[None])),
    "features int": (TypeError, "features must be", lambda p: replace(p, features=p.features.long())),
    "features complex": (TypeError, "features must be", lambda p: replace(p, features=p.features + 0j)),
    "weight rows": (ValueError, "weight must be", lambda p: replace(p, weight=p.weight[1:])),
    "weight columns": (ValueError, "weight must be", lambda p: replace(p, weight=p.weight[:, 1:])),
    "weight int": (TypeError, "weight must be", lambda p: replace(p, weight=p.weight.long())),
    "bias 2d": (ValueError, "bias must be", lambda p: replace(p, bias=p.bias[None])),
    "bias int": (TypeError, "bias must be", lambda p: replace(p, bias=p.bias.long())),
    "task_weights length": (
        ValueError,
        "task_weights must",
        lambda p: replace(p, task_weights=torch.ones(4)),
    ),
    "task_weights dtype": (
        TypeError,
        "task_weights must",
        lambda p: replace(p, task_weights=p.task_weights.double()),
    ),
    "targets missing": (ValueError, "targets: 4 given for 5", lambda p: replace(p, targets=p.targets[1:])),
    "targets float classes": (
        TypeError,
        "targets of task 0 must be int",
        lambda p: with_target(p, 0, torch.ones(9)),
    ),
    "targets bool classes": (
        TypeError,
        "targets of task 0 must be int",
        lambda p: with_target(p, 0, torch.ones(9, dtype=torch.bool)),
    ),
    "targets one-hot": (
        ValueError,
        "targets of task 0 must be",
        lambda p: with_target(p, 0, torch.ones(9, 17, dtype=torch.int64)),
    ),
    "targets int labels": (
        TypeError,
        "targets of task 1 must be float",
        lambda p: with_target(p, 1, torch.ones(9, 6, dtype=torch.int64)),
    ),
    "targets label count": (
        ValueError,
        "targets of task 1 must be",
        lambda p: with_target(p, 1, torch.ones(9, 5)),
    ),
    "targets flat values": (
        ValueError,
        "targets of task 2 must be",
        lambda p: with_target(p, 2, torch.ones(9)),
    ),
    "targets rows": (ValueError, "targets of task 4 must be", lambda p: with_target(p, 4, torch.ones(8, 2))),
    "weight device": (ValueError, "weight is on meta", lambda p: replace(p, weight=p.weight.to("meta"))),
    "targets device": (
        ValueError,
        "targets of task 0 are on meta",
        lambda p: with_target(p, 0, p.targets[0].to("meta")),
    ),
}


def with_target(problem, k, target):
    return replace(problem, targets=[target if i == k else t for i, t in enumerate(problem.targets)])


@pytest.mark.parametrize("case", BAD)
def test_a_bad_argument_is_named(case):
    error, message, spoil = BAD[case]
    with pytest.raises(error, match=message):
        call(spoil(make_problem(HEADS["mixed"], 9)))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"backend": "cuda"}, "backend=cuda is unknown; there are auto, reference, triton, numba"),
        ({"plan": "tiled"}, "plan=tiled is unknown; there are auto, tile, packed, chunked"),
        ({"plan": "tiled", "backend": "reference"}, "plan=tiled is unknown"),
    ],
)
def test_an_unknown_backend_or_plan_lists_those_there_are(option, message):
    with pytest.raises(ValueError, match=message):
        call(make_problem(HEADS["mixed"], 9), **option)


def test_a_backend_that_cannot_run_is_refused_and_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = make_problem(HEADS["mixed"], 9)
    with pytest.raises(RuntimeError, match=r"backend=triton cannot be honoured: .* the tensors are on cpu"):
        call(problem, backend="triton")
    with pytest.raises(RuntimeError, match=r"no kernel for torch\.float64"):
        call(make_problem(HEADS["mixed"], 9, torch.float64), backend="numba")


def test_the_environment_variable_is_honoured(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cpu, problem = torch.device("cpu"), make_problem(HEADS["mixed"], 9)
    monkeypatch.setenv("MT2ST_BACKEND", "reference")
    assert choose_backend(cpu, torch.float32).name == "reference"
    assert "MT2ST_BACKEND" in choose_backend(cpu, torch.float32).reason
    assert choose_backend(cpu, torch.float32, "numba").name == "numba"
    assert "_Fused" not in call(problem, problem.leaves(), backend="auto").total.grad_fn.name()
    for value, error in (("triton", RuntimeError), ("cuda", ValueError)):
        monkeypatch.setenv("MT2ST_BACKEND", value)
        with pytest.raises(error, match=f"MT2ST_BACKEND={value}"):
            call(problem, backend="auto")
    monkeypatch.setenv("MT2ST_BACKEND", "")
    assert choose_backend(cpu, torch.float32).name == "numba"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((SOFTMAX, 0), {}, "size must be"),
        ((SOFTMAX, 3), {"label_smoothing": 1.5}, "label_smoothing must"),
        ((HUBER, 3), {"delta": 0.0}, "delta must"),
        ((SOFTMAX, 3), {"class_weights": (1.0, 2.0)}, "class_weights needs 3"),
        ((SOFTMAX, 2), {"class_weights": (1.0, -2.0)}, "class_weights must not"),
        ((SOFTMAX, 2), {"class_weights": (1.0, torch.nan)}, "class_weights must not"),
        ((BINARY, 2), {"class_weights": (1.0, 2.0)}, "class_weights belongs to SOFTMAX"),
        ((SOFTMAX, 2), {"pos_weight": (1.0, 2.0)}, "pos_weight belongs to BINARY"),
    ],
)
def test_a_bad_head_option_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        HeadSpec(*arguments, **options)


def test_column_options_may_be_lists_or_tensors():
    expected = HeadSpec(SOFTMAX, 2, class_weights=(1.0, 2.0))
    assert hash(HeadSpec(SOFTMAX, 2, class_weights=[1, 2])) == hash(expected)
    assert HeadSpec(SOFTMAX, 2, class_weights=torch.tensor([1.0, 2.0])) == expected


def test_a_layout_needs_heads_and_as_many_names():
    with pytest.raises(ValueError, match="at least one head"):
        HeadLayout(())
    with pytest.raises(ValueError, match="1 names for 2 heads"):
        HeadLayout((HeadSpec(SOFTMAX, 2), HeadSpec(SQUARED, 1)), ("a",))


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

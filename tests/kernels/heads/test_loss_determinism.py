"""The fused op gives the same result every time: on fresh memory, in another order of work, with other vectors."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from mt2st_fast.kernels.heads.on_numba import tile as numba_tile
from mt2st_fast.kernels.machine import simd as numba_simd
from tests.kernels.heads.loss_problems import (
    DTYPES,
    HEADS,
    assert_op_is_as_accurate_as_torch,
    by_every_plan,
    make_problem,
    outcome,
)

# --- fresh memory, narrower vectors ----------------------------------------------------------------------


@by_every_plan
@pytest.mark.parametrize("case", ["softmax-all-options", "mixed"])
def test_fresh_tensors_are_never_read(case):
    problem = make_problem(HEADS[case], 123)
    clean, clean_gradients = outcome(problem)
    torch.use_deterministic_algorithms(True)  # fills them with NaN, and integers with the largest
    try:
        assert clean[0].new_empty(9).isnan().all()
        out, gradients = outcome(problem)
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, expected in zip((*out, *gradients), (*clean, *clean_gradients), strict=True):
        assert torch.equal(ours, expected)


def test_fresh_scratch_memory_is_never_read():
    """Kernels take their scratch from malloc, which glibc fills with 0x7f bytes, a float32 near the largest."""
    program = textwrap.dedent("""
        import sys
        import loss_problems as problems
        for plan in ("tile", "chunked"):
            for case in ("mixed", "softmax-all-options", "softmax-wide"):
                for N in (5, 123):
                    problems.PLAN["forced"] = plan
                    problems.assert_op_is_as_accurate_as_torch(problems.make_problem(problems.HEADS[case], N))
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
        import loss_problems as problems
        from mt2st_fast.kernels.heads.on_numba import chunked as numba_chunked
        for plan in ("tile", "chunked"):
            numba_chunked.WIDE_HEAD = 3
            problems.PLAN["forced"] = plan
            for N in (5, 123):
                problems.assert_op_is_as_accurate_as_torch(problems.make_problem(problems.HEADS["mixed"], N))
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
        from mt2st_fast.kernels.machine import gemm as numba_gemm, simd as numba_simd
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


@pytest.mark.parametrize("case", ["mixed", "softmax-all-options", "binary"])
def test_every_split_of_the_rows_leaves_the_feature_gradient_alone(case, threads, monkeypatch):
    """A row's own results do not depend on who computed it; sums over rows do, in their last bits."""
    problem = make_problem(HEADS[case], 507)
    monkeypatch.setattr(numba_tile, "LEAST_PRODUCTS", 1)
    results = []
    for count in (1, 2, 4):
        threads(count)
        _total, _losses, correct, d_features, *_ = bits(problem, plan="tile")
        results.append((correct, d_features))
        assert_op_is_as_accurate_as_torch(problem)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

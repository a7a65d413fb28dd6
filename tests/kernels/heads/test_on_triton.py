"""The Triton plans in the interpreter: as accurate as torch, the same bits, no stray writes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton")

from mt2st_fast.kernels.heads.on_triton import chunked as triton_chunked
from tests.kernels.heads.interpreted_heads import PROMISING
from tests.kernels.interpreter import run_shares

PLANS = (
    "packed",
    "packed-float16",
    "packed-no-bias",
    "packed-one-kind",
    "packed-many",
    "packed-wide",
    "packed-no-rows",
    "tile",
    "tile-float16",
    "tile-no-bias",
    "tile-one-kind",
    "tile-many",
    "tile-no-rows",
    "chunked",
    "chunked-float16",
    "chunked-no-bias",
    "chunked-narrow",
    "chunked-no-rows",
)
PROMISED = sorted(PROMISING & set(PLANS))

# What our largest error may exceed torch's by, relative to the largest true value: a few roundings of a
# float32 sum in another order. float16 gradients may differ by one rounding of the largest value.
MARGIN = {"float32": 2e-6, "float16": 2.0**-11}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Everything that the workers store of the plans, one a group, computed once."""
    groups = sorted({plan.split("-")[0] for plan in PLANS})
    folder = tmp_path_factory.mktemp("interpreter")
    return run_shares("tests.kernels.heads.interpret_plans", folder, [(group,) for group in groups])


def assert_as_accurate_as_torch(computed: dict[str, np.ndarray], name: str, margin: float) -> None:
    ours, torch_value, truth = (computed[f"{name}/{kind}"] for kind in ("ours", "torch", "truth"))
    assert ours.shape == truth.shape
    error, allowed = np.abs(ours - truth), np.abs(torch_value - truth).max(initial=0.0)
    allowed += margin * np.abs(truth).max(initial=0.0)
    # Written so that a NaN of ours fails.
    assert not error.size or error.max() <= allowed, f"error {error.max():.3g} > {allowed:.3g}"


@pytest.mark.parametrize("result", ["losses", "correct", "d_features", "d_weight", "d_bias"])
@pytest.mark.parametrize("plan", PLANS)
def test_plan_is_as_accurate_as_torch(plans, plan, result):
    if result == "d_bias" and plan.endswith("no-bias"):
        assert f"{plan}/d_bias/ours" not in plans
        return
    half = plan.endswith("float16") and result not in ("losses", "correct")
    margin = 0.0 if result == "correct" else MARGIN["float16" if half else "float32"]
    assert_as_accurate_as_torch(plans, f"{plan}/{result}", margin)


@pytest.mark.parametrize("plan", PLANS)
def test_plan_twice_gives_the_same_bits_in_the_parameters_dtypes(plans, plan):
    assert plans[f"{plan}/same-bits"]
    assert plans[f"{plan}/dtypes"]


@pytest.mark.parametrize("plan", PLANS)
def test_plan_writes_to_no_argument_it_does_not_own(plans, plan):
    assert plans[f"{plan}/writes-to-no-argument"]


@pytest.mark.parametrize("plan", PROMISED)
def test_an_upstream_gradient_of_one_changes_nothing(plans, plan):
    assert plans[f"{plan}/upstream-1"]


@pytest.mark.parametrize("plan", PLANS)
def test_residual_is_what_residual_like_says(plans, plan):
    assert plans[f"{plan}/residual-like"]


@pytest.mark.parametrize("plan", PROMISED)
def test_gradients_nobody_needs_are_none_and_change_no_other(plans, plan):
    assert plans[f"{plan}/needs"]


@pytest.mark.parametrize("plan", PROMISED)
def test_skipping_a_task_of_weight_zero_changes_no_gradient(plans, plan):
    assert plans[f"{plan}/skip"]


@pytest.mark.parametrize("plan", sorted({plan.split("-")[0] for plan in PLANS}))
def test_plan_has_finite_gradients_where_classes_lie_outside(plans, plan):
    assert np.isnan(plans[f"{plan}-outside/losses"]).tolist() == [True, True, False]
    d_weight = plans[f"{plan}-outside/d_weight"]
    assert np.isfinite(d_weight).all()
    assert (d_weight[3:7] == 0).all()
    assert (d_weight[:3] != 0).all()
    assert np.isfinite(plans[f"{plan}-outside/d_features"]).all()


@pytest.mark.parametrize(
    ("n_rows", "width", "budget_bytes", "expected"),
    [
        (16_384, 131_072, 4 << 30, 16_384),
        (16_385, 131_072, 4 << 30, 8_320),
        (40_000, 131_072, 4 << 30, 13_440),
        (40_000, 131_072, 1 << 20, 4_096),
        (100, 131_072, 1 << 20, 100),
        (0, 131_072, 4 << 30, 1),
    ],
)
def test_chunks_are_even_within_the_budget_and_never_slivers(n_rows, width, budget_bytes, expected):
    assert triton_chunked.chunk_rows(n_rows, width, 2, budget_bytes) == expected

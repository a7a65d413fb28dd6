"""The Triton plans in the interpreter: as accurate as torch, the same bits, no stray writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from mt2st_fast.kernels.heads.on_triton import chunked as triton_chunked
from tests.kernels.heads.interpreted_heads import (
    CHANGES_NOTHING,
    KEPT,
    PROMISING,
    RESULTS,
    assert_result_is_as_accurate_as_torchs,
)
from tests.kernels.interpreter import run_shares

PLANS = (
    "packed",
    "packed-float16",
    "packed-no-bias",
    "packed-one-kind",
    "packed-many",
    "packed-equal",
    "packed-wide",
    "packed-one-class",
    "packed-no-rows",
    "tile",
    "tile-float16",
    "tile-no-bias",
    "tile-one-kind",
    "tile-many",
    "tile-equal",
    "tile-one-class",
    "tile-no-rows",
    "chunked",
    "chunked-float16",
    "chunked-no-bias",
    "chunked-narrow",
    "chunked-equal",
    "chunked-one-class",
    "chunked-no-rows",
)
PROMISED = sorted(PROMISING & set(PLANS))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Everything that the workers store of the plans, one a group, computed once."""
    groups = sorted({plan.split("-")[0] for plan in PLANS})
    folder = tmp_path_factory.mktemp("interpreter")
    return run_shares("tests.kernels.heads.interpret_plans", folder, [(group,) for group in groups])


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("plan", PLANS)
def test_plan_is_as_accurate_as_torch(plans, plan, result):
    assert_result_is_as_accurate_as_torchs(plans, plan, result)


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("plan", PLANS)
def test_plan_keeps_what_every_plan_promises(plans, plan, what):
    assert plans[f"{plan}/{what}"]


@pytest.mark.parametrize("what", CHANGES_NOTHING)
@pytest.mark.parametrize("plan", PROMISED)
def test_what_nobody_needs_changes_nothing_of_the_rest(plans, plan, what):
    assert plans[f"{plan}/{what}"]


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


def test_a_single_chunk_of_all_columns_is_no_view():
    """Every view costs the host microseconds, of which a call of wide heads has few hundred."""
    whole = torch.arange(12.0).view(3, 4)
    assert triton_chunked._part(whole, slice(0, 3)) is whole
    assert triton_chunked._part(whole, slice(0, 4), axis=1) is whole
    assert torch.equal(triton_chunked._part(whole, slice(1, 3)), whole[1:])
    assert torch.equal(triton_chunked._part(whole, slice(0, 3), axis=1), whole[:, :3])


@pytest.mark.parametrize("plan", ["packed-one-class", "tile-one-class", "chunked-one-class"])
def test_a_head_of_one_class_has_no_gradient(plans, plan):
    assert not plans[f"{plan}/d_weight/ours"][0].any()
    assert plans[f"{plan}/d_bias/ours"][0] == 0

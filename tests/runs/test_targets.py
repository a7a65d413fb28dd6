"""Targets of each seed's own, where curves come to them, and plateaus."""

from __future__ import annotations

import math

import pytest

from mt2st_fast.runs.arms import arms_of
from mt2st_fast.runs.targets import first_reaching, make_targets, plateau
from tests.runs.made_up_runs import run_of

RUNS = {
    "stl": [run_of(1, 0.5, 0.8, 0.7), run_of(2, 0.4, 0.6)],
    "mtl": [run_of(1, 0.9, 0.85), run_of(2, 0.5, 0.75)],
    "switch": [run_of(1, 0.1, 0.55), run_of(2, 0.7)],
}


def test_targets_are_of_each_seed():
    targets = {t.key: t for t in make_targets(RUNS, arms_of(list(RUNS), ["fused"]), None)}
    assert list(targets) == ["common", "stl_best", "mtl_best", "mtl_best_less"]
    assert targets["common"].of_seed == {1: 0.55, 2: 0.55}
    assert targets["stl_best"].of_seed == {1: 0.8, 2: 0.6}
    assert targets["stl_best"].median == pytest.approx(0.7)
    assert targets["mtl_best_less"].of_seed == pytest.approx({1: 0.898, 2: 0.748})


def test_a_given_target_stands_in_for_what_all_reach():
    targets = make_targets(RUNS, arms_of(list(RUNS), ["fused"]), 0.66)
    assert [t.key for t in targets] == ["given", "stl_best", "mtl_best", "mtl_best_less"]
    assert targets[0].of_seed == {1: 0.66, 2: 0.66}


def test_without_baselines_there_is_only_what_all_reach():
    (only,) = make_targets({"switch": RUNS["switch"]}, arms_of(["switch"], ["fused"]), None)
    assert only.key == "common"


def test_the_first_engine_sets_the_targets():
    runs = {"stl": RUNS["stl"], "stl (torch)": RUNS["mtl"]}
    targets = make_targets(runs, arms_of(["stl"], ["fused", "torch"]), None)
    assert targets[1].of_seed == {1: 0.8, 2: 0.6}


def test_a_curve_comes_to_a_target_at_its_first_point_there():
    run = run_of(1, 0.2, math.nan, 0.5, 0.4, 0.6)
    assert first_reaching(run, 0.5)["step"] == 3
    assert first_reaching(run, 0.55)["step"] == 5
    assert first_reaching(run, 0.61) is None


@pytest.mark.parametrize(
    ("qualities", "margin", "step"),
    [
        ([0.5, 0.80, 0.79, 0.801], 0.002, 2),  # what comes after rises by 0.001
        ([0.5, 0.80, 0.79, 0.803], 0.002, None),  # it still rises at its end
        ([0.9, 0.1, 0.2, 0.3], 0.002, 1),  # by its best, not by what it is at
        ([0.5, 0.6, 0.7, 0.7], 0.15, 2),
        ([0.25, 0.5, 0.75, 0.75], 0.25, 3),  # a rise by the margin is none by less
        ([math.nan, 0.7, 0.7], 0.002, 2),
        ([0.7], 0.002, None),
        ([-9.0, -2.0, -2.0], 0.002, 2),
    ],
)
def test_a_plateau_is_where_the_best_rises_by_less(qualities, margin, step):
    found = plateau(run_of(1, *qualities), margin)
    assert (found and found["step"]) == step

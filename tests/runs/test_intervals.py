"""Medians, quartiles and intervals: against numpy and scipy, and what they refuse to say."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast.runs.intervals import change_of_medians, difference, median, median_of_differences, spread


@pytest.mark.parametrize("n", [1, 2, 5, 6, 9])
def test_quartiles_are_numpys(n):
    values = np.random.default_rng(n).normal(size=n)
    found = spread(list(values))
    assert [found["q1"], found["median"], found["q3"]] == pytest.approx(
        np.quantile(values, [0.25, 0.5, 0.75])
    )


def test_a_run_that_never_arrived_is_later_than_any_other():
    assert spread([3.0, None, 1.0, 2.0, None]) == {"q1": 2.0, "median": 3.0, "q3": None}
    assert spread([1.0, None]) == {"q1": None, "median": None, "q3": None}
    assert median([1.0, 2.0, None]) == 2.0
    assert median([1.0, None, None]) is None


@pytest.mark.parametrize("statistic", [change_of_medians, median_of_differences])
def test_the_interval_is_that_of_scipys_paired_bootstrap(statistic):
    scipy_stats = pytest.importorskip("scipy.stats")
    chance = np.random.default_rng(3)
    base = chance.uniform(5, 10, size=12)
    own = base * chance.uniform(0.5, 1.1, size=12)  # paired: both are long where the seed is hard
    found = difference(statistic, list(own), list(base))
    theirs = scipy_stats.bootstrap(
        (own, base), lambda a, b, axis=-1: statistic(a, b), paired=True, vectorized=True, method="percentile",
        n_resamples=10_000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert found["value"] == pytest.approx(float(statistic(own, base)))
    width = theirs.high - theirs.low
    assert found["low"] == pytest.approx(theirs.low, abs=0.05 * width)
    assert found["high"] == pytest.approx(theirs.high, abs=0.05 * width)
    assert found == difference(statistic, list(own), list(base))  # the same runs, the same interval


def test_pairing_sees_what_the_spread_of_seeds_hides():
    base = [2.0, 7.0, 11.0, 4.0, 9.0, 6.0]
    found = difference(median_of_differences, [b - 1.0 for b in base], base)
    assert (found["value"], found["low"], found["high"]) == (-1.0, -1.0, -1.0)


def test_what_cannot_be_said_is_not():
    nothing = {"value": None, "low": None, "high": None}
    assert difference(change_of_medians, [1.0, 2.0], [2.0, 4.0]) == {"value": -0.5, "low": None, "high": None}
    # One run of five never arrived: its median stands, an interval does not.
    found = difference(change_of_medians, [1.0, 1.0, 1.0, 1.0, None], [2.0] * 5)
    assert found == {"value": -0.5, "low": None, "high": None}
    assert difference(change_of_medians, [1.0] * 3, [None, None, 1.0]) == nothing
    assert difference(change_of_medians, [None] * 3, [1.0] * 3) == nothing
    assert difference(change_of_medians, [1.0] * 3, [0.0] * 3) == nothing

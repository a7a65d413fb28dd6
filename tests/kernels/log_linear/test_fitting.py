"""Passes of AdaGrad on a log-linear model against the oracle, and what they learn."""

from __future__ import annotations

import numpy as np
import pytest

from mt2st_fast.kernels import fit_log_linear
from mt2st_fast.kernels.log_linear import reference

V, C = 30, 4


def rows(n=200, seed=0):
    """Rows of three ids, one of them in every row, whose sum of true weights says the class."""
    numbers = np.random.default_rng(seed)
    ids_nk = np.stack([np.zeros(n, int), *(numbers.integers(1, V - 1, n) for _ in range(2))], axis=1)
    truth_vc = numbers.normal(size=(V, C)) * 2
    return ids_nk, truth_vc[ids_nk].sum(1).argmax(1)


@pytest.mark.parametrize("passes", [1, 4])
def test_weights_equal_the_oracles(passes):
    ids_nk, classes_n = rows()
    options = {"rate": 0.2, "passes": passes}
    found = fit_log_linear(ids_nk, classes_n, V, C, **options)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, reference.fit_log_linear(ids_nk, classes_n, V, C, **options), rtol=1e-3, atol=1e-4
    )


def test_an_id_twice_in_a_row_equals_the_oracle():
    ids_nk, classes_n = np.array([[1, 1, 2], [2, 3, 3]]), np.array([0, 2])
    found = fit_log_linear(ids_nk, classes_n, 5, 3, rate=0.1, passes=3)
    np.testing.assert_allclose(
        found, reference.fit_log_linear(ids_nk, classes_n, 5, 3, rate=0.1, passes=3), rtol=1e-4, atol=1e-6
    )


def test_it_tells_the_classes_of_other_rows():
    ids_nk, classes_n = rows(2_000)
    weights_vc = fit_log_linear(ids_nk[:1_500], classes_n[:1_500], V, C, rate=0.2, passes=5)
    assert (weights_vc[ids_nk[1_500:]].sum(1).argmax(1) == classes_n[1_500:]).mean() > 0.9


def test_ids_of_no_row_weigh_nothing_and_calls_repeat():
    ids_nk, classes_n = rows()
    one, other = (fit_log_linear(ids_nk, classes_n, V, C, rate=0.2, passes=2) for _ in range(2))
    assert not one[V - 1].any()
    np.testing.assert_array_equal(one, other)


def test_huge_logits_stay_finite():
    ids_nk, classes_n = np.zeros((50, 400), int), np.zeros(50, int)
    assert np.isfinite(fit_log_linear(ids_nk, classes_n, 1, 3, rate=10.0, passes=5)).all()

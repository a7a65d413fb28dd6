"""Nearest rows by cosine: how many, which are left out, and in what order."""

from __future__ import annotations

import numpy as np

from mt2st_fast.words.cosines import nearest_rows, unit_rows

UNIT = unit_rows(np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0], [5.0, 0.0], [1.0, 1.0]], np.float32))


def test_rows_have_length_1_and_those_of_length_0_stay():
    np.testing.assert_allclose(np.linalg.norm(UNIT, axis=1), [1, 0, 1, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(unit_rows(np.zeros(2)), np.zeros(2))


def test_the_nearest_come_first_and_of_equals_the_first_row():
    found = nearest_rows(UNIT[0], UNIT, 4)
    assert [row for row, _ in found] == [0, 3, 4, 1]
    np.testing.assert_allclose([cosine for _, cosine in found], [1, 1, 0.5**0.5, 0], rtol=1e-6)


def test_rows_that_are_left_out_do_not_count():
    assert [row for row, _ in nearest_rows(UNIT[0], UNIT, 2, (0,))] == [3, 4]
    assert [row for row, _ in nearest_rows(UNIT[0], UNIT, 2, {0, 3})] == [4, 1]
    assert len(nearest_rows(UNIT[0], UNIT, -1, (0,))) == 4
    assert len(nearest_rows(UNIT[0], UNIT, 9, (0,))) == 4

"""What a corpus checks, and hiding labels."""

from dataclasses import replace

import numpy as np
import pytest

from mt2st_fast.data import (
    MISSING,
    Corpus,
    Splits,
    TargetColumn,
    Vocabulary,
    check_main,
    hide_labels,
)
from mt2st_fast.errors import InputError


def classes(values, size=2):
    return TargetColumn("classes", tuple("abcdefgh"[:size]), np.array(values, dtype=np.int64))


def bounds(*values):
    return np.array(values, dtype=np.int64)


def corpus(n_units=100, length=3, level="token", groups=None):
    T = n_units * length
    N = T if level == "token" else n_units
    return Corpus(
        np.zeros(T, dtype=np.int32), np.arange(0, T + 1, length), {"main": classes([0] * N)}, level, groups
    )


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("classes", np.array([0, 2]), "must lie in"),
        ("classes", np.array([0, -1]), "must lie in"),
        ("classes", np.array([0.0]), "int64"),
        ("labels", np.zeros((3, 2)), "float32"),
        ("labels", np.zeros((3, 1), dtype=np.float32), "float32"),
        ("labels", np.full((3, 2), 0.5, dtype=np.float32), "0, 1 or NaN"),
        ("values", np.full((3, 2), np.inf, dtype=np.float32), "infinite"),
        ("ranks", np.zeros(3), "ranks"),
    ],
)
def test_target_columns_refuse_wrong_values(kind, values, message):
    with pytest.raises(ValueError, match=message):
        TargetColumn(kind, ("a", "b"), values)


def test_labelled_rows_of_each_kind():
    nan = np.nan
    assert classes([0, MISSING, 1]).labelled().tolist() == [True, False, True]
    values = TargetColumn("values", ("x", "y"), np.array([[nan, nan], [nan, 1]], dtype=np.float32))
    assert values.labelled().tolist() == [False, True]
    assert values.size == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bounds": bounds(0, 2)}, "rise from 0 to 4"),
        ({"bounds": bounds(0, 3, 2, 4)}, "rise from 0 to 4"),
        ({"bounds": np.array([0, 4], dtype=np.int32)}, "int64"),
        ({"tokens": np.zeros(4, dtype=np.int64)}, "int32"),
        ({"tokens": np.full(4, -1, dtype=np.int32)}, "negative"),
        ({"targets": {"t": classes([0])}}, "task t has 1 targets for 4 rows"),
        ({"level": "page"}, "page"),
        ({"groups": bounds(0, 1)}, "groups must rise from 0 to 2"),
    ],
)
def test_corpus_refuses_parts_that_do_not_fit(change, message):
    good = {"tokens": np.zeros(4, dtype=np.int32), "bounds": bounds(0, 2, 4), "targets": {}}
    Corpus(**good)
    with pytest.raises(ValueError, match=message):
        Corpus(**{**good, **change})


def test_an_unknown_task_lists_those_that_exist():
    with pytest.raises(InputError, match="no task 'pos'; available: main"):
        corpus().column("pos")


def test_splits_refuse_parts_that_differ():
    small, vocabulary = corpus(2), Vocabulary.build(["a"])
    Splits(small, small, small, vocabulary, "x", "main")
    with pytest.raises(ValueError, match="dev contains a type id"):
        Splits(small, replace(small, tokens=small.tokens + 1), small, vocabulary, "x", "main")
    with pytest.raises(ValueError, match="test and train differ in their level or tasks"):
        Splits(small, small, replace(small, targets={}), vocabulary, "x", "main")
    with pytest.raises(ValueError, match="kind or classes of task main"):
        Splits(small, small, replace(small, targets={"main": classes([0] * 6, 3)}), vocabulary, "x", "main")


def test_hiding_keeps_whole_sentences():
    kept = hide_labels(corpus(), "main", 0.05, seed=1).column("main").labelled().reshape(100, 3)
    assert (kept.all(axis=1) | ~kept.any(axis=1)).all()
    assert kept.any(axis=1).sum() == 5


def test_hiding_is_deterministic_and_smaller_fractions_are_subsets():
    def kept(fraction, seed):
        return hide_labels(corpus(level="document"), "main", fraction, seed).column("main").labelled()

    assert (kept(0.2, 7) == kept(0.2, 7)).all()
    assert (kept(0.2, 7) != kept(0.2, 8)).any()
    assert (kept(0.2, 7) | ~kept(0.1, 7)).all()
    assert kept(0.2, 7).sum() == 20


def test_hiding_goes_by_group_where_there_are_groups():
    grouped = corpus(groups=np.arange(0, 101, 10))
    kept = hide_labels(grouped, "main", 0.2, seed=1).column("main").labelled().reshape(10, 30)
    assert (kept.all(axis=1) | ~kept.any(axis=1)).all()
    assert kept.any(axis=1).sum() == 2


def test_hiding_counts_units_with_labels_only_and_keeps_one_at_least():
    values = np.full(300, MISSING)
    values[270:] = 1  # 10 of 100 sentences
    some = replace(corpus(), targets={"main": classes(values), "other": classes([0] * 300)})
    hidden = hide_labels(some, "main", 0.5, seed=1)
    assert hidden.column("main").labelled().sum() == 15
    assert hidden.column("other") is some.column("other")
    assert some.column("main").labelled().sum() == 30
    assert hide_labels(some, "main", 0.001, seed=1).column("main").labelled().sum() == 3


def test_hiding_dense_labels_gives_nan():
    dense = TargetColumn("values", ("x",), np.ones((4, 1), dtype=np.float32))
    four = Corpus(np.zeros(4, dtype=np.int32), bounds(0, 1, 2, 3, 4), {"x": dense}, "document")
    assert np.isnan(hide_labels(four, "x", 0.25, seed=1).column("x").values).sum() == 3


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_hiding_refuses_a_fraction_outside_its_range(fraction):
    with pytest.raises(InputError, match="label fraction"):
        hide_labels(corpus(), "main", fraction, seed=1)


def test_check_main():
    check_main(corpus(), "main")
    with pytest.raises(InputError, match="no training row has a label for the main task 'main'"):
        check_main(replace(corpus(1), targets={"main": classes([MISSING] * 3)}), "main")

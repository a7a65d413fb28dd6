"""Classes that training never saw: how many rows of which part, which names, in one line."""

from __future__ import annotations

import numpy as np

from mt2st_fast.data import MISSING, Corpus, Splits, TargetColumn, Vocabulary
from mt2st_fast.data.record import alike_classes, labels_read, never_seen, unseen_classes


def splits_of(kind, names, **columns):
    """Documents of one word, with those targets of the task t in each part."""

    def corpus(values):
        target = np.array(values, np.int64 if kind == "classes" else np.float32)
        n = len(target)
        return Corpus(
            np.zeros(n, np.int32), np.arange(n + 1), {"t": TargetColumn(kind, names, target)}, "document"
        )

    parts = {part: corpus(columns[part]) for part in ("train", "dev", "test")}
    return Splits(**parts, vocabulary=Vocabulary(["w"], np.array([1])), name="x", main="t")


def test_classes_are_counted_by_part_the_most_frequent_first():
    splits = splits_of("classes", tuple("abcd"), train=[0, 1, MISSING], dev=[2, 3, 3, 0], test=[1, 3])
    [unseen] = unseen_classes(splits)
    assert unseen.rows == {"dev": 3, "test": 1}
    assert unseen.names == ("d", "c")
    assert unseen.line() == (
        "t: classes that do not occur in training, so they cannot be learned, in 3 dev rows and 1 test row: d, c"
    )
    assert never_seen(splits.train.column("t")) == ("c", "d")
    [labels] = labels_read(splits)
    assert labels["labelled"] == {"train": 2, "dev": 4, "test": 2}
    assert labels["unseen"] == {"dev": 3, "test": 1}


def test_labels_are_counted_by_row():
    rows = [[1, 0, 0], [np.nan, np.nan, np.nan]]
    splits = splits_of("labels", tuple("abc"), train=rows, dev=[[1, 1, 1], [1, 0, 0]], test=rows)
    [unseen] = unseen_classes(splits)
    assert unseen.rows == {"dev": 1}
    assert unseen.names == ("b", "c")


def test_a_class_in_another_spelling_is_told():
    names = ("True", "TRUE", "x", "y")
    [unseen] = unseen_classes(splits_of("classes", names, train=[0], dev=[1, 2, 3], test=[1]))
    assert unseen.line().endswith(
        ": TRUE, x, y; training has 'True', not 'TRUE': spell them alike in every file"
    )


def test_training_classes_that_look_alike_are_told():
    names = ("Pos", "pos", "n\u00e9", "ne\u0301", "x", "X")
    splits = splits_of("classes", names, train=[0, 1, 2, 3, 4], dev=[5], test=[1])
    assert alike_classes(splits) == [
        "t: different classes, though they differ just in case, blanks or signs that look alike: 'Pos' and 'pos', "
        "'n\\xe9' and 'ne\\u0301'; spell them alike if they are the same"
    ]
    assert "training has 'x', not 'X'" in unseen_classes(splits)[0].line()
    assert alike_classes(splits_of("classes", ("a", "b"), train=[0, 1], dev=[0], test=[0])) == []
    assert alike_classes(splits_of("values", ("t",), train=[[1]], dev=[[2]], test=[[3]])) == []


def test_nothing_is_said_where_training_saw_all_or_there_are_numbers():
    assert unseen_classes(splits_of("classes", ("a", "b"), train=[0], dev=[0], test=[MISSING])) == []
    assert unseen_classes(splits_of("values", ("t",), train=[[1]], dev=[[2]], test=[[3]])) == []

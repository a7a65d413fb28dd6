"""Counts over the labels of training alone, as fastText counts them."""

from __future__ import annotations

import math

import numpy as np

from mt2st_fast.data.labelled_text import Labels
from mt2st_fast.words.label_counts import KnownLabelCounts


def test_labels_and_documents_that_training_does_not_know_are_left_out():
    # Documents 0 to 3: good; new; bad and new; none.
    labels = Labels(("bad", "good", "new"), np.array([1, 2, 0, 2]), np.array([0, 1, 2, 2]))
    counts = KnownLabelCounts(labels, 4, ("good", "bad"))
    counts.add(np.array([[True, True], [True, False]]))
    counts.add(np.array([[True, False], [True, False]]))
    assert counts.documents == 2
    assert (counts.precision, counts.recall) == (1 / 3, 1 / 2)
    scores = counts.scores()
    assert scores["good"] == {"precision": 0.5, "recall": 1.0, "f1score": 2 / 3}
    assert scores["bad"] == {"precision": 0.0, "recall": 0.0, "f1score": 0.0}


def test_without_documents_numbers_are_undefined():
    nothing = Labels((), np.array([], np.int64), np.array([], np.int64))
    counts = KnownLabelCounts(nothing, 1, ("good",))
    counts.add(np.array([[True]]))
    assert counts.documents == 0
    assert math.isnan(counts.precision)
    assert math.isnan(counts.recall)

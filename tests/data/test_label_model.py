"""The label model: which tasks tell the main task's labels, and what it says of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mt2st_fast.data import (
    MISSING,
    Corpus,
    Splits,
    TargetColumn,
    TokenBatches,
    Vocabulary,
    complete_labels,
)
from mt2st_fast.data.label_model import LOG_SURE, MODEL_SHARE, LabelModel, telling_tasks
from mt2st_fast.errors import InputError

N, LENGTH = 4_000, 10


def classes(values, n):
    return TargetColumn("classes", tuple(map(str, range(n))), np.asarray(values, np.int64))


def corpus(level="token", *, share=0.1):
    """Rows whose class is told by a task at the row, by one at the next row, or by none.

    Words are numbered at random, so that they tell nothing. Whole sentences have main labels, or none.
    """
    numbers = np.random.default_rng(0)
    truth = numbers.integers(0, 4, N)
    tag = (truth + 1) % 4
    before = np.roll(truth, 1)  # the next row's label is this row's class
    bounds = np.arange(0, N + 1, LENGTH) if level == "token" else np.arange(N + 1)
    labelled = np.arange(N) % (LENGTH * round(1 / share)) < LENGTH
    columns = {
        "main": classes(np.where(labelled, truth, MISSING), 4),
        "tag": classes(np.where(numbers.random(N) < 0.1, MISSING, tag), 4),
        "before": classes(before, 4),
        "random": classes(numbers.integers(0, 4, N), 4),
        "sets": TargetColumn("labels", ("p",), np.zeros((N, 1), np.float32)),
    }
    return Corpus(numbers.integers(0, 50, N).astype(np.int32), bounds, columns, level), truth


@pytest.mark.parametrize(("level", "telling"), [("token", ("tag", "before")), ("document", ("tag",))])
def test_tasks_tell_by_their_labels_at_the_row_and_at_neighbours_in_a_sentence(level, telling):
    found, _ = corpus(level)
    assert telling_tasks(found, "main", tuple(found.targets)) == telling
    assert telling_tasks(found, "main", ("random", "sets")) == ()
    assert telling_tasks(found, "sets", ("tag", "before")) == ()  # only classes are told


def test_tasks_that_tell_too_little_together_tell_nothing(monkeypatch):
    from mt2st_fast.data import label_model

    monkeypatch.setattr(label_model, "LEAST_TOGETHER", 0.999)
    text, _ = corpus()
    assert telling_tasks(text, "main", ("tag", "before")) == ()


def test_few_labels_tell_nothing():
    text, truth = corpus()
    few = classes(np.where(np.arange(N) < LENGTH, truth, MISSING), 4)
    assert (
        telling_tasks(Corpus(text.tokens, text.bounds, {**text.targets, "main": few}), "main", ("tag",)) == ()
    )


def test_rows_are_labelled_by_other_labels():
    text, truth = corpus()
    other = np.flatnonzero(text.column("main").values == MISSING)
    told = LabelModel(text, "main", ("tag", "before")).log_probabilities(other)
    assert told.dtype == torch.float32
    torch.testing.assert_close(told.exp().sum(1), torch.ones(len(other)))
    at_end = other % LENGTH == LENGTH - 1  # of a sentence: no next row
    right = told.argmax(1).numpy() == truth[other]
    assert right[~at_end].mean() > 0.99
    assert 0.85 < right[at_end].mean() < 0.97  # a tenth of these have neither


def test_evidence_of_inputs_and_labels_adds_up_without_the_frequency_of_classes():
    text, _ = corpus()
    model = LabelModel(text, "main", ("tag",))
    rows = np.arange(20, 220)
    logits = 8 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).double()
    asked = []

    def logits_of(some):
        asked.extend(some)
        return logits[some - 20]

    labels = text.column("main").values
    counts = np.bincount(labels[labels != MISSING], minlength=4) + 1
    clues = model.log_probabilities(rows)
    both = MODEL_SHARE * (logits - torch.from_numpy(np.log(counts / counts.sum()))) + clues
    is_sure = clues.amax(1) >= LOG_SURE
    expected = torch.where(is_sure, clues.argmax(1), both.argmax(1))
    np.testing.assert_array_equal(model.classes(rows, logits_of), expected.numpy())
    assert asked == rows[~is_sure.numpy()].tolist()
    assert 20 < len(asked) < 180
    assert (expected != clues.argmax(1)).any()
    assert (both.argmax(1) != expected).any()


def test_batches_label_rows_by_both():
    text, truth = corpus()
    batches = TokenBatches(text, 64, 1, "main", share=0.25, self_training=True)
    assert batches.labelled_by == ("tag", "before")
    batches.enter_phase(("main",))
    batches.take_own_labels(batches.own_labels(lambda inputs: torch.zeros(len(inputs), 4), 1_000))
    own = batches.active_columns()["main"]
    assert (own == truth).mean() > 0.98
    without = TokenBatches(text, 64, 1, "main", tasks=("main", "random"), share=0.25, self_training=True)
    assert without.labelled_by == ()


def test_fewer_rows_are_read_where_all_take_too_long(monkeypatch):
    from mt2st_fast.data import label_model

    text, _ = corpus()
    read = []
    fit = label_model.fit_log_linear

    def counted(ids_nk, *args, **options):
        read.append(len(ids_nk))
        return fit(ids_nk, *args, **options)

    monkeypatch.setattr(label_model, "fit_log_linear", counted)
    for most in (10**9, 4 * 7 * 150):  # classes, columns, rows
        monkeypatch.setattr(label_model, "MOST_NUMBERS", most)
        LabelModel(text, "main", ("tag",))
    assert read == [400, 134]


@pytest.mark.parametrize("level", ["token", "document"])
@pytest.mark.parametrize("kept_out", [False, True])
def test_labels_of_one_class_are_told_by_nothing(level, kept_out):
    """A model with more clues is surer of the only class, though the clues say nothing."""
    text, _ = corpus(level)
    labelled = np.flatnonzero(text.column("main").values != MISSING)
    values = np.full(N, MISSING)
    values[labelled] = 1
    if not kept_out:  # the others are in units that are fitted, so that none kept out tells classes apart
        _, unit = np.unique(text.unit_of_row[labelled], return_inverse=True)
        values[labelled[unit % 5 == 0][:5]] = 2
    text = Corpus(text.tokens, text.bounds, {**text.targets, "main": classes(values, 4)}, level)
    assert telling_tasks(text, "main", ("random", "tag")) == ()


def test_fewer_rows_are_held_out_where_there_are_many_classes(monkeypatch):
    from mt2st_fast.data import label_model

    seen = []
    told = LabelModel.log_probabilities

    def counted(self, rows):
        seen.append(len(rows))
        return told(self, rows)

    monkeypatch.setattr(LabelModel, "log_probabilities", counted)
    for most in (10**9, 4 * 30):  # classes, rows
        monkeypatch.setattr(label_model, "MOST_HELD_OUT", most)
        text, _ = corpus()
        assert telling_tasks(text, "main", ("tag",)) == ("tag",)
    assert set(seen) == {80, 27}


def splits_of(text, auxiliary=("tag", "before", "random")):
    words = Vocabulary([f"w{i:02}" for i in range(50)], np.ones(50, np.int64))
    return Splits(text, text, text, words, "made up", "main", auxiliary)


def test_labels_are_completed_by_the_tasks_that_tell_them():
    text, truth = corpus()
    completed = complete_labels(splits_of(text))
    found, given = completed.train.column("main").values, text.column("main").values
    has_label = given != MISSING
    assert (found[has_label] == given[has_label]).all()
    assert (found[~has_label] == truth[~has_label]).mean() > 0.95
    assert completed.dev is text  # held-out rows are measured by their own labels
    assert completed.notes == (
        "3,600 training rows got the label for 'main' that the labels of tag, before tell",
    )


def test_labels_that_cannot_be_completed_are_refused():
    text, truth = corpus()
    with pytest.raises(InputError, match="the labels of random do not tell those of main"):
        complete_labels(splits_of(text, ("random",)))
    all_labelled = replace(text, targets={**text.targets, "main": classes(truth, 4)})
    with pytest.raises(InputError, match="every training row has a label of main"):
        complete_labels(splits_of(all_labelled))
    with pytest.raises(InputError, match="made up has no labels"):
        complete_labels(replace(splits_of(text), main=None, auxiliary=()))

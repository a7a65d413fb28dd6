"""Self-training's labels: made from logits, kept as text, and drawn with a model's own."""

import json
from itertools import islice

import numpy as np
import pytest
import torch

from mt2st_fast.data import MISSING, BagBatches, Corpus, TargetColumn, TokenBatches
from mt2st_fast.data.own_labels import labels_from, packed, unpacked
from mt2st_fast.errors import InputError

LABELLED = [3, 10, 40, 41]
T = 60


def corpus(labelled=LABELLED, main=None):
    """Token t has type t, so that a window's middle says which row it is."""
    if main is None:
        values = np.full(T, MISSING)
        values[labelled] = 1
        main = TargetColumn("classes", tuple("abcdefg"), values)
    aux = TargetColumn("classes", tuple("xy"), np.arange(T) % 2)
    return Corpus(np.arange(T, dtype=np.int32), np.arange(0, T + 1, 5), {"main": main, "aux": aux})


def batches_of(corpus, **options):
    return TokenBatches(corpus, 8, 1, "main", share=0.25, **{"self_training": True, **options})


def logits_of(inputs):
    """The class of row t is t modulo 7."""
    return torch.nn.functional.one_hot(inputs[:, 1].long() % 7, 7).float()


def drawn(batches, n):
    return [(inputs[:, 1].tolist(), targets["main"].tolist()) for inputs, targets in islice(batches, n)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("classes", np.array([1, 0])),
        ("labels", np.array([[0, 1], [1, 0]], np.float32)),
        ("values", np.array([[-1, 2], [3, -4]], np.float32)),
    ],
)
def test_labels_are_of_the_columns_kind_and_survive_as_text(kind, expected):
    found = labels_from(torch.tensor([[-1.0, 2.0], [3.0, -4.0]]), kind)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    again = unpacked(json.loads(json.dumps(packed(found))), expected)
    assert again.dtype == expected.dtype
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("most", [3, 255, 256, 70_000])
def test_many_classes_survive_as_text(most):
    labels = np.arange(most + 1, dtype=np.int64)
    np.testing.assert_array_equal(unpacked(packed(labels), labels), labels)


def test_a_single_task_phase_draws_rows_by_own_labels_beside_a_labelled_one():
    batches = batches_of(corpus())
    batches.enter_phase(("main",))
    assert batches.take_own_labels(batches.own_labels(logits_of, len(batches))) == 3 * len(batches)
    seen = set()
    for rows, labels in drawn(batches, len(batches)):
        assert len(rows) == 4 == batches.rows_a_batch(("main",), own_labels=True)
        assert rows[0] in LABELLED
        assert labels[0] == 1
        assert not set(rows[1:]) & set(LABELLED)
        assert labels[1:] == [row % 7 for row in rows[1:]]
        seen |= set(rows[1:])
    assert len(seen) == 3 * len(batches)


def test_an_eighth_of_a_larger_batch_is_labelled():
    batches = TokenBatches(corpus(), 32, 1, "main", share=0.5, self_training=True)
    batches.enter_phase(("main",))
    batches.take_own_labels(batches.own_labels(logits_of, 5))
    for rows, _ in drawn(batches, len(batches)):
        assert [row in LABELLED for row in rows] == [True] * 4 + [False] * 28


def test_a_longer_run_draws_the_labelled_rows_again():
    batches = batches_of(corpus())
    batches.enter_phase(("main",))
    assert batches.take_own_labels(batches.own_labels(logits_of, 2)) == 6
    seen = {row for rows, _ in drawn(batches, 6) for row in rows[1:]}
    assert len(seen) == 6


def test_no_more_rows_are_labelled_than_there_are():
    batches = batches_of(corpus())
    batches.enter_phase(("main",))
    assert batches.take_own_labels(batches.own_labels(logits_of, 1_000)) == T - len(LABELLED)


def test_where_many_rows_are_labelled_their_share_of_a_batch_is_that_of_all_rows():
    batches = batches_of(corpus(labelled=range(45)))  # three quarters
    batches.enter_phase(("main",))
    batches.take_own_labels(batches.own_labels(logits_of, 5))
    for rows, _ in drawn(batches, len(batches)):
        assert sum(row < 45 for row in rows) == 12
        assert len(rows) == 16


def test_without_own_labels_a_single_task_phase_draws_labelled_rows_only():
    batches = batches_of(corpus())
    batches.enter_phase(("main",))
    assert all(set(rows) <= set(LABELLED) for rows, _ in drawn(batches, 5))
    assert batches.rows_a_batch(("main",)) == 2


def test_own_labels_end_with_their_phase():
    batches = batches_of(corpus())
    batches.enter_phase(("main",))
    batches.take_own_labels(batches.own_labels(logits_of, 5))
    batches.enter_phase(("main", "aux"))
    for rows, labels in drawn(batches, len(batches)):
        assert [label != MISSING for label in labels] == [row in LABELLED for row in rows]


def test_where_nearly_all_rows_are_labelled_a_batch_still_has_one_of_the_others():
    batches = batches_of(corpus(labelled=range(T - 1)))
    batches.enter_phase(("main",))
    assert batches.take_own_labels(batches.own_labels(logits_of, 3)) == 1
    assert all(rows.count(T - 1) == 1 for rows, _ in drawn(batches, 3))


def test_batches_resume_with_the_same_own_labels():
    def begun():
        batches = batches_of(corpus())
        batches.enter_phase(("main",))
        batches.take_own_labels(batches.own_labels(logits_of, 5))
        return batches, drawn(batches, 3)

    batches, before = begun()
    assert len({row for rows, _ in before for row in rows[1:]}) == 9
    state = json.loads(json.dumps(batches.state_dict()))
    resumed = batches_of(corpus())
    resumed.load_state_dict(state)
    assert drawn(resumed, 4) == drawn(batches, 4)


def test_parts_of_the_rows_have_the_same_own_labels():
    whole = batches_of(corpus())
    parts = [batches_of(corpus()) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.take_part(rank, 2)
    for each in (whole, *parts):
        each.enter_phase(("main",))
        each.take_own_labels(each.own_labels(logits_of, 5))
    for of_whole, *of_parts in zip(drawn(whole, 4), *(drawn(part, 4) for part in parts), strict=True):
        for k in (0, 1):
            assert of_whole[k][0::2] == of_parts[0][k]
            assert of_whole[k][1::2] == of_parts[1][k]


def test_sets_of_labels_and_documents():
    values = np.full((T, 2), np.nan, np.float32)
    values[LABELLED] = [1, 0]
    base = corpus(main=TargetColumn("labels", ("p", "q"), values))
    documents = Corpus(base.tokens, np.arange(T + 1), base.targets, level="document")
    batches = BagBatches(documents, 8, "main", share=0.25, self_training=True)
    batches.enter_phase(("main",))
    batches.take_own_labels(
        batches.own_labels(lambda inputs: torch.tensor([[-1.0, 1.0]] * len(inputs[1][1:])), 4)
    )
    for (_, _), targets in islice(batches, 4):
        assert targets["main"].tolist() == [[1, 0], [0, 1], [0, 1], [0, 1]]


def test_what_cannot_self_train_is_refused():
    with pytest.raises(
        InputError, match="self_training is not possible: every row has a label of main; leave it out"
    ):
        batches_of(corpus(labelled=range(T)))
    base = corpus()
    documents = Corpus(base.tokens, np.arange(T + 1), base.targets, level="document")
    with pytest.raises(
        InputError, match="self_training is not possible: fixed batches are composed before the run"
    ):
        BagBatches(documents, 8, "main", fixed_batches=True, self_training=True)

"""Batches as rows of a corpus that lies on a device: the very batches that cross from the host otherwise."""

import json
from itertools import islice

import pytest
import torch

from mt2st_fast.data import evaluation_batches, resident
from mt2st_fast.data.resident import STEPS_AHEAD, ResidentBatch
from tests.data.test_batches import assert_same_batches, token_batches, token_corpus

CPU = torch.device("cpu")


def plain(batches, count):
    found = []
    while len(found) < count:
        found += islice(batches, count - len(found))
    return found


def of_rows(batches, count, stream=None):
    """(batches, the stream that they are of)."""
    stream = stream or batches.resident_on(CPU)
    return [batch.materialise() for batch in islice(stream, count)], stream


@pytest.mark.parametrize("labelled", [range(60), range(0, 60, 9)], ids=["all", "rare"])
def test_they_are_the_same_batches_over_many_epochs(labelled):
    corpus = token_corpus(labelled=labelled)
    count = STEPS_AHEAD + 30  # an epoch is 8
    assert_same_batches(of_rows(token_batches(corpus), count)[0], plain(token_batches(corpus), count))


def test_rows_cross_many_steps_at_once(monkeypatch):
    made = []
    fill = resident.ResidentStream._fill
    monkeypatch.setattr(
        resident.ResidentStream, "_fill", lambda self, rows: (made.append(len(rows)), fill(self, rows))
    )
    of_rows(token_batches(token_corpus()), 24)
    assert made == [8, 8, 8]  # an epoch at a time: a checkpoint at its end has nothing to put back


@pytest.mark.parametrize("at", [1, 5, 8, 11])
def test_a_phase_entered_between_two_batches_begins_with_the_next_one(at):
    ours, theirs = (
        token_batches(token_corpus(labelled=range(40))),
        token_batches(token_corpus(labelled=range(40))),
    )
    before, stream = of_rows(ours, at)
    expected = plain(theirs, at)
    ours.enter_phase(["main"])
    theirs.enter_phase(["main"])
    after, _ = of_rows(ours, 10, stream)
    assert_same_batches(before + after, expected + plain(theirs, 10))
    assert set(after[0][1]) == {"main"}


@pytest.mark.parametrize("at", [1, 5, 8, 11])
def test_a_state_is_that_of_the_batch_handed_out_last(at):
    ours, theirs, again = (token_batches(token_corpus()) for _ in range(3))
    _, stream = of_rows(ours, at)
    plain(theirs, at)
    state = json.loads(json.dumps(ours.state_dict()))
    assert state == theirs.state_dict()
    expected = plain(theirs, 12)
    assert_same_batches(of_rows(ours, 12, stream)[0], expected)  # asking has moved nothing
    again.load_state_dict(state)
    assert_same_batches(of_rows(again, 12)[0], expected)


def test_loading_a_state_forgets_what_was_drawn_ahead():
    batches = token_batches(token_corpus())
    start = batches.state_dict()
    first, stream = of_rows(batches, 3)
    batches.load_state_dict(start)
    assert_same_batches(of_rows(batches, 3, stream)[0], first)


def test_plain_and_resident_batches_follow_one_another():
    batches, theirs = token_batches(token_corpus()), token_batches(token_corpus())
    first, _ = of_rows(batches, 3)
    assert_same_batches(first + plain(batches, 3), plain(theirs, 6))


def test_two_batches_share_a_key_unless_their_phase_or_size_differs():
    batches = token_batches(token_corpus())
    stream = batches.resident_on(CPU)
    first, second = islice(stream, 2)
    assert isinstance(first, ResidentBatch)
    assert first.key == second.key
    assert first.with_tasks(("main",)).key != first.key
    assert first.with_rows(first.rows[:3]).key != first.key
    assert first.with_tasks(("aux", "main")).materialise()[1].keys() == {"aux", "main"}
    batches.enter_phase(["main", "aux"])
    assert next(stream).key != first.key


def test_held_out_batches_are_views_of_what_lies_there():
    batches = evaluation_batches(token_corpus(), 16, 1)
    found = list(batches.resident_on(CPU))
    assert_same_batches(found, list(batches))
    again = list(batches.resident_on(CPU))
    assert [x.data_ptr() for x, _ in found] == [x.data_ptr() for x, _ in again]
    assert found[0][0].untyped_storage().data_ptr() == found[1][0].untyped_storage().data_ptr()


def test_what_does_not_fit_stays_on_the_host(monkeypatch):
    corpus = token_corpus()
    batches = token_batches(corpus)
    # 60 rows of 3 int32 and of two int64 classes and two float32 scores.
    monkeypatch.setattr(
        "mt2st_fast.data.batches.memory_budget", lambda device: 60 * (3 * 4 + 2 * 8 + 2 * 4) - 1
    )
    assert batches.resident_on(CPU) is None
    assert evaluation_batches(corpus, 16, 1).resident_on(CPU) is None
    monkeypatch.setattr("mt2st_fast.data.batches.memory_budget", lambda device: 60 * (3 * 4 + 2 * 8 + 2 * 4))
    assert batches.resident_on(CPU) is not None

"""Batches: windows, bags, shares, phases, resuming."""

import json
from dataclasses import replace
from itertools import chain, islice, pairwise

import numpy as np
import pytest
import torch

from mt2st_fast.data import (
    MISSING,
    BagBatches,
    Corpus,
    Sampler,
    TargetColumn,
    TokenBatches,
    evaluation_batches,
)
from mt2st_fast.errors import InputError


def classes(values):
    values = np.asarray(values, dtype=np.int64)
    return TargetColumn("classes", tuple(map(str, range(max(1, values.max() + 1)))), values)


def token_corpus(T=60, labelled=range(60)):
    """Token t has type t, so that a window's middle says which row it is; sentences of 3 and 4 tokens."""
    ends = np.sort(np.concatenate([np.arange(0, T + 1, 7), np.arange(3, T, 7), [T]]))
    main = np.full(T, MISSING)
    main[list(labelled)] = 1
    score = np.arange(2 * T, dtype=np.float32).reshape(T, 2)
    return Corpus(
        np.arange(T, dtype=np.int32),
        np.unique(ends),
        {
            "main": classes(main),
            "aux": classes(np.arange(T)),
            "score": TargetColumn("values", ("x", "y"), score),
        },
    )


def token_batches(corpus, batch_size=8, **settings):
    return TokenBatches(corpus, batch_size, 1, "main", **settings)


def rows_of(batch):
    return batch[0][:, 1].tolist()


def assert_same_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for (our_inputs, our_targets), (their_inputs, their_targets) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_inputs, their_inputs, rtol=0, atol=0)
        torch.testing.assert_close(our_targets, their_targets, rtol=0, atol=0, equal_nan=True)


def test_windows_end_at_sentence_borders():
    corpus = Corpus(
        np.array([5, 6, 7, 8, 9], dtype=np.int32), np.array([0, 2, 2, 3, 5]), {"main": classes([0] * 5)}
    )
    (inputs, targets), (rest, _) = evaluation_batches(corpus, 3, window=2)
    assert inputs.tolist() == [[-1, -1, 5, 6, -1], [-1, 5, 6, -1, -1], [-1, -1, 7, -1, -1]]
    assert rest.tolist() == [[-1, -1, 8, 9, -1], [-1, 8, 9, -1, -1]]
    assert inputs.dtype == torch.int32
    assert targets["main"].dtype == torch.int64


@pytest.mark.parametrize("window", [0, 1, 3])
def test_training_windows_and_targets_are_those_of_their_rows(window):
    corpus = token_corpus()
    unit = corpus.unit_of_token
    for inputs, targets in TokenBatches(corpus, 16, window, "main"):
        assert inputs.shape == (16, 2 * window + 1)
        rows = inputs[:, window].tolist()
        for row, ids in zip(rows, inputs.tolist(), strict=True):
            around = range(row - window, row + window + 1)
            assert ids == [i if 0 <= i < 60 and unit[i] == unit[row] else -1 for i in around]
        assert targets["aux"].tolist() == rows
        assert targets["score"].tolist() == [[2 * row, 2 * row + 1] for row in rows]
        assert targets["score"].dtype == torch.float32


def test_bags_hold_whole_documents():
    corpus = Corpus(
        np.array([1, 2, 3, 4, 5, 6], dtype=np.int32),
        np.array([0, 2, 2, 3, 6]),
        {"main": classes([0, 1, 2, 3])},
        "document",
    )
    (inputs, targets), (rest, _) = evaluation_batches(corpus, 3)
    assert inputs[0].tolist() == [1, 2, 3]
    assert inputs[1].tolist() == [0, 2, 2, 3]
    assert targets["main"].tolist() == [0, 1, 2]
    assert rest[0].tolist() == [4, 5, 6]
    ((ids, offsets), targets) = next(iter(BagBatches(corpus, 4, "main")))
    documents = [ids[start:end].tolist() for start, end in pairwise(offsets)]
    assert documents == [[[1, 2], [], [3], [4, 5, 6]][row] for row in targets["main"].tolist()]
    assert (ids.dtype, offsets.dtype) == (torch.int32, torch.int64)


def test_a_pass_over_all_rows_holds_each_row_once():
    batches = token_batches(token_corpus(), batch_size=12)
    assert len(batches) == batches.steps_per_epoch == 5
    first, second = ([row for batch in batches for row in rows_of(batch)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second


def test_batches_keep_their_size_across_the_end_of_a_pass():
    batches = token_batches(token_corpus(), batch_size=16)
    rows = [rows_of(batch) for batch in batches]
    assert [len(batch) for batch in rows] == [16] * 4
    assert sorted(islice(chain.from_iterable(rows), 60)) == list(range(60))


def test_a_batch_is_no_larger_than_the_corpus():
    batches = token_batches(token_corpus(), batch_size=512)
    assert (batches.batch_size, len(batches)) == (60, 1)


def test_rare_main_labels_fill_their_share_of_each_batch():
    batches = token_batches(token_corpus(labelled=[3, 10, 40]), share=0.5)
    main_rows = []
    for _, targets in islice(iter(batches), 6):
        has_main = targets["main"] != MISSING
        assert has_main.sum() == 4
        main_rows += targets["aux"][has_main].tolist()
    assert [main_rows.count(row) for row in (3, 10, 40)] == [8, 8, 8]


def test_the_rest_of_a_batch_passes_over_the_other_rows():
    batches = token_batches(token_corpus(labelled=range(12)), share=0.25)
    others = [row for batch in islice(iter(batches), 8) for row in rows_of(batch) if row >= 12]
    assert sorted(others) == list(range(12, 60))


def test_main_labels_that_are_not_rare_are_drawn_uniformly():
    batches = token_batches(token_corpus(labelled=range(30)), batch_size=12, share=0.5)
    assert sorted(row for batch in batches for row in rows_of(batch)) == list(range(60))


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_single_task_phase_has_the_main_rows_of_a_multi_task_batch_and_no_others(share):
    labelled = [3, 10, 40, 41]
    batches = token_batches(token_corpus(labelled=labelled), batch_size=8, share=share)
    n_main = round(8 * share)
    n_steps = len(batches)
    for inputs, targets in batches:
        assert len(inputs) == 8
        assert (targets["main"] != MISSING).sum() == n_main
    batches.enter_phase(("main",))
    assert len(batches) == n_steps
    drawn = []
    for batch in batches:
        assert len(rows_of(batch)) == n_main == batches.rows_a_batch(("main",))
        assert list(batch[1]) == ["main"]
        drawn += rows_of(batch)
    assert set(drawn) == set(labelled)


def test_a_single_task_phase_fills_its_batches_where_main_labels_are_not_rare():
    batches = token_batches(token_corpus(labelled=range(30)), batch_size=12, share=0.5)
    batches.enter_phase(("main",))
    assert all(sorted(rows_of(batch))[-1] < 30 and len(batch[0]) == 12 for batch in batches)
    assert batches.rows_a_batch(("main",)) == batches.rows_a_batch(batches.tasks) == 12


def test_a_main_task_that_is_the_only_one_fills_its_batches():
    batches = token_batches(token_corpus(labelled=range(4)), batch_size=8, tasks=("main",))
    assert all(len(batch[0]) == 8 and set(rows_of(batch)) == set(range(4)) for batch in batches)


def test_a_phase_entered_between_two_batches_counts_from_the_next_one():
    batches = token_batches(token_corpus(), batch_size=12)
    delivered = []
    for step, (_, targets) in enumerate(batches):
        delivered.append(tuple(targets))
        if step == 1:
            batches.enter_phase(("main", "score"))
    assert delivered == [("main", "aux", "score")] * 2 + [("main", "score")] * 3


class WatchedTargets(dict):
    """Targets that record which tasks' labels are looked at."""

    def __init__(self, targets):
        super().__init__(targets)
        self.touched = set()

    def __getitem__(self, task):
        self.touched.add(task)
        return super().__getitem__(task)


def test_labels_of_retired_tasks_are_never_touched():
    watched = WatchedTargets(token_corpus().targets)
    batches = token_batches(replace(token_corpus(), targets=watched))
    batches.state_dict()  # the first one makes a checksum of all
    batches.enter_phase(("main",))
    watched.touched.clear()
    list(batches)
    batches.load_state_dict(batches.state_dict())
    list(batches)
    assert watched.touched <= {"main"}


def two_phases(batches, n_batches, switch_at, state_at=None):
    """Batches as a trainer would take them, and the state after `state_at` of them."""
    taken, state = [], None
    while len(taken) < n_batches:
        for batch in batches:
            taken.append(batch)
            if len(taken) == switch_at:
                batches.enter_phase(("main",))
            if len(taken) == state_at:
                state = json.loads(json.dumps(batches.state_dict()))
            if len(taken) == n_batches:
                break
    return taken, state


@pytest.mark.parametrize("labelled", [range(60), [3, 10, 40]], ids=["all labelled", "rare labels"])
def test_resuming_at_any_batch_goes_on_with_the_same_batches(labelled):
    corpus = token_corpus(labelled=labelled)
    whole, _ = two_phases(token_batches(corpus), 24, switch_at=13)
    for position in range(1, 24):
        _, state = two_phases(token_batches(corpus), 24, switch_at=13, state_at=position)
        resumed = token_batches(corpus)
        resumed.load_state_dict(state)
        taken, _ = two_phases(resumed, 24 - position, switch_at=13 - position)
        assert_same_batches(taken, whole[position:])


def test_an_epoch_that_was_resumed_ends_where_it_would_have():
    batches = token_batches(token_corpus())
    assert len(batches) == 8
    next(iter(batches))
    resumed = token_batches(token_corpus())
    resumed.load_state_dict(batches.state_dict())
    assert [len(list(resumed)), len(list(resumed))] == [7, 8]


def test_bags_resume_too():
    corpus = replace(token_corpus(), targets={})
    corpus = Corpus(corpus.tokens, corpus.bounds, {"main": classes(np.arange(corpus.n_units))}, "document")
    batches = BagBatches(corpus, 5, "main")
    iterator = iter(batches)
    next(iterator)
    resumed = BagBatches(corpus, 5, "main")
    resumed.load_state_dict(batches.state_dict())
    assert_same_batches(list(iterator), list(resumed))


def test_the_seed_decides_the_order():
    def first(seed):
        return rows_of(next(iter(token_batches(token_corpus(), seed=seed))))

    assert first(1) == first(1) != first(2)


def test_resuming_with_other_settings_is_refused():
    state = token_batches(token_corpus()).state_dict()
    for settings in ({"batch_size": 9}, {"seed": 2}, {"share": 0.4}):
        with pytest.raises(InputError, match=next(iter(settings))):
            token_batches(token_corpus(), **settings).load_state_dict(state)
    with pytest.raises(InputError, match="main_rows=60, but these have 59"):
        token_batches(token_corpus(labelled=range(59))).load_state_dict(state)


def test_resuming_on_other_data_is_refused():
    corpus = token_corpus()
    state = token_batches(corpus).state_dict()
    column = corpus.targets["aux"]
    renamed = replace(column, class_names=tuple(f"{name}!" for name in column.class_names))
    shuffled = replace(column, values=np.roll(column.values, 1))
    tokens = corpus.tokens.copy()
    tokens[3] ^= 1
    changes = [{"targets": {**corpus.targets, "aux": other}} for other in (renamed, shuffled)]
    for change in [*changes, {"tokens": tokens}]:
        with pytest.raises(InputError, match="the training data has changed since the checkpoint"):
            token_batches(replace(corpus, **change)).load_state_dict(state)
    token_batches(token_corpus()).load_state_dict(state)


def test_missing_labels_are_delivered_as_such():
    corpus = token_corpus(labelled=[0])
    score = np.full((60, 2), np.nan, dtype=np.float32)
    corpus = replace(corpus, targets={**corpus.targets, "score": TargetColumn("values", ("x", "y"), score)})
    _, targets = next(iter(evaluation_batches(corpus, 4, window=1, tasks=("main", "score"))))
    assert targets["main"].tolist() == [1, -100, -100, -100]
    assert targets["score"].isnan().all()
    assert list(targets) == ["main", "score"]


def test_evaluation_passes_over_all_rows_each_time():
    batches = evaluation_batches(token_corpus(), 7, window=1)
    assert len(batches) == 9
    for _ in range(2):
        assert [row for batch in batches for row in rows_of(batch)] == list(range(60))


def test_read_only_arrays_serve():
    corpus = token_corpus()
    for values in (corpus.tokens, corpus.column("main").values):
        values.setflags(write=False)
    assert len(list(token_batches(corpus))) == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch size must be positive, not 0"),
        ({"share": 0}, "main share 0"),
        ({"share": 1.5}, r"main share 1\.5"),
        ({"seed": -1}, "seed -1"),
        ({"tasks": ("main", "pos")}, "no task 'pos'; available: main, aux, score"),
        ({"tasks": ("aux",)}, "needs the main task 'main'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        token_batches(token_corpus(), **settings)


def test_wrong_levels_phases_and_missing_labels_are_named():
    corpus = token_corpus()
    with pytest.raises(InputError, match="use TokenBatches"):
        BagBatches(corpus, 4, "main")
    with pytest.raises(InputError, match="need a window"):
        evaluation_batches(corpus, 4)
    with pytest.raises(InputError, match="window -1"):
        TokenBatches(corpus, 4, -1, "main")
    with pytest.raises(InputError, match="these batches have no task 'pos'; available: main, aux, score"):
        token_batches(corpus).enter_phase(("main", "pos"))
    with pytest.raises(InputError, match="no training row has a label"):
        token_batches(token_corpus(labelled=[]))
    with pytest.raises(InputError, match="no training row has a label"):
        Sampler(np.zeros(3, dtype=bool), 2)


def test_a_batch_may_have_one_labelled_row_thousands_of_times():
    """As with --batch-size 8192 and a single main label."""
    labelled = np.arange(9000) == 17
    sampler = Sampler(labelled, batch_size=8192)
    rows = sampler.next_rows()
    assert len(rows) == 8192
    assert (rows == 17).sum() == 1638

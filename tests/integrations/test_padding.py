"""Labels of rows of different lengths, and where the heads are in a model: what needs no other library."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from mt2st_fast import Classification, InputError, MultiLabel, MultiTaskHeads, Regression
from mt2st_fast.integrations.collating import DataCollatorForMultiTask, check_labels_arrive
from mt2st_fast.integrations.finding import heads_of, say_frozen
from mt2st_fast.integrations.padding import TokenSpan, label_batch

TASKS = {
    "tag": Classification(4),
    "number": Classification(3, ignore_index=-1),
    "genre": Classification(2, pooling="first"),
    "score": Regression(),
    "topics": MultiLabel(2, pooling="mean"),
}
NAN = float("nan")


def test_labels_lie_where_their_tokens_do_and_what_is_missing_is_marked():
    rows = [
        {"tag": [3, 1], "number": None, "genre": 1, "score": [0.5, 1.5], "topics": [1, 0]},
        {"tag": [0, -100, 2], "number": torch.tensor([2, -1, 0]), "score": [[1.0], [2.0], [3.0]]},
    ]
    right = label_batch(TASKS, rows, [TokenSpan(0, 2, 4), TokenSpan(0, 3, 4)])
    assert right["tag"].tolist() == [[3, 1, -100, -100], [0, -100, 2, -100]]
    assert right["number"].tolist() == [[-1, -1, -1, -1], [2, -1, 0, -1]]
    assert right["genre"].tolist() == [1, -100]
    expected = torch.tensor([[0.5, 1.5, NAN, NAN], [1.0, 2.0, 3.0, NAN]]).unsqueeze(2)
    torch.testing.assert_close(right["score"], expected, equal_nan=True)
    torch.testing.assert_close(right["topics"], torch.tensor([[1.0, 0.0], [NAN, NAN]]), equal_nan=True)
    left = label_batch(TASKS, rows, [TokenSpan(2, 2, 4), TokenSpan(1, 3, 4)])
    assert left["tag"].tolist() == [[-100, -100, 3, 1], [-100, 0, -100, 2]]


def test_what_nobody_labelled_costs_nothing():
    torch.manual_seed(0)
    heads = MultiTaskHeads(6, TASKS, "tag")
    labels = label_batch(TASKS, [{}, {"genre": 1}], [TokenSpan(0, 2, 3), TokenSpan(0, 3, 3)])
    out = heads(torch.randn(2, 3, 6), labels)
    assert [loss > 0 for loss in out.losses.tolist()] == [name == "genre" for name in heads.active]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tags": [1, 2]}, "there are labels of tags, which is not a task; available: tag, number"),
        ({"tag": [1, 2, 3]}, r"the labels of tag in row 0 must be \(2,\), one per token, not \(3,\)"),
        ({"genre": [1, 0]}, r"the labels of genre in row 0 must be \(\), one per row, not \(2,\)"),
        ({"tag": [0.5, 1.0]}, "the labels of tag in row 0 must be whole numbers, not torch.float32"),
        ({"tag": [True, False]}, "must be whole numbers, not torch.bool"),
        ({"tag": ["NOUN", "VERB"]}, "the labels of tag in row 0 must be numbers of one shape"),
        ({"topics": [1, 0, 1]}, r"the labels of topics in row 0 must be \(2,\), one per row, not \(3,\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(row, message):
    with pytest.raises(InputError, match=message):
        label_batch(TASKS, [row], [TokenSpan(0, 2, 2)])


def test_the_heads_of_a_model_are_found_wherever_they_are():
    heads = MultiTaskHeads(6, TASKS, "tag")
    assert heads_of(nn.Sequential(nn.Linear(2, 6), nn.ModuleDict({"inner": heads}))) is heads
    assert heads_of(heads) is heads
    peft_like = nn.ModuleDict({"original_module": MultiTaskHeads(6, TASKS, "tag"), "trained": heads})
    assert heads_of(nn.Sequential(peft_like)) is heads
    with pytest.raises(
        InputError, match="needs exactly one MultiTaskHeads for its phases, but Linear has none"
    ):
        heads_of(nn.Linear(2, 2))
    with pytest.raises(InputError, match="Sequential has several: 0, 1"):
        heads_of(nn.Sequential(heads, MultiTaskHeads(6, TASKS, "tag")))


class Padding:
    """What a tokenizer of transformers does to rows of ids."""

    def pad(self, rows, return_tensors):
        places = max(len(row["input_ids"]) for row in rows)
        return {"input_ids": torch.tensor([[*row["input_ids"], *[0] * places][:places] for row in rows])}


def test_labels_may_be_columns_named_by_their_tasks():
    collate = DataCollatorForMultiTask(Padding(), TASKS)
    by_task = {"tag": [3, 1], "genre": 1, "score": None}
    nested, flat = {"input_ids": [5, 6], "labels": by_task}, {"input_ids": [5, 6], **by_task}
    of_both = {"input_ids": [5, 6], "genre": 1, "labels": {"tag": [3, 1], "genre": None}}
    expected = collate([nested])["labels"]
    for row in (flat, of_both, flat | {"labels": None}):
        batch = collate([row])
        assert sorted(batch) == ["input_ids", "labels"]
        for name, labels in batch["labels"].items():
            torch.testing.assert_close(labels, expected[name], equal_nan=True)
    with pytest.raises(
        InputError, match='row 1 has labels of genre twice: in "labels", and in a column of its own'
    ):
        collate([flat, nested | {"genre": 0}])


@pytest.mark.parametrize("labels", [[1, 2], 1, "x"])
def test_labels_that_are_not_by_task_are_refused(labels):
    with pytest.raises(InputError, match=r"the labels of row 0 must be \{task: labels\}, not "):
        DataCollatorForMultiTask(Padding(), TASKS)([{"input_ids": [5], "labels": labels}])


def test_columns_of_texts_are_named():
    row = {"input_ids": [5], "text": "five", "words": ["five"]}
    with pytest.raises(
        InputError, match=r"no inputs of an encoder: text, words; remove them: rows.remove_columns"
    ):
        DataCollatorForMultiTask(Padding(), TASKS)([row])


@pytest.mark.parametrize(
    "labels",
    [
        [None, 2],
        [NAN, 2.0],
        torch.tensor([NAN, 2.0]),
        np.array([NAN, 2.0]),
        torch.tensor([-1, 2], dtype=torch.int8),
    ],
)
def test_a_label_of_a_token_may_be_missing_as_tables_say_it(labels):
    got = label_batch(TASKS, [{"number": labels}], [TokenSpan(0, 2, 3)])["number"]
    assert got.tolist() == [[-1, 2, -1]]
    assert got.dtype == torch.int64


def test_arrays_of_a_data_set_may_be_read_only():
    labels = np.array([1, 2])
    labels.flags.writeable = False
    assert label_batch(TASKS, [{"tag": labels}], [TokenSpan(0, 2, 2)])["tag"].tolist() == [[1, 2]]


class Rows:
    column_names: ClassVar = ["input_ids"]


class Loader:
    dataset, collate_fn = Rows(), DataCollatorForMultiTask(Padding(), TASKS)


def test_rows_that_have_lost_their_labels_are_refused():
    with pytest.raises(InputError, match=r'no column "labels" and none of a task \(tag, number'):
        check_labels_arrive(Loader())
    for column in ("labels", "genre"):
        loader = Loader()
        loader.dataset = Rows()
        loader.dataset.column_names = ["input_ids", column]
        check_labels_arrive(loader)
    check_labels_arrive(None)


def test_heads_that_peft_has_frozen_are_named(caplog):
    heads = MultiTaskHeads(6, TASKS, "tag")
    for name in ("tag", "genre"):
        heads.linear(name).requires_grad_(False)
    heads.linear("number").weight.requires_grad_(False)  # as an adapter leaves its layer, whose bias trains
    heads.set_active(("tag", "number", "score"))
    say_frozen(heads)
    assert "the heads of tag are frozen" in caplog.text
    assert 'modules_to_save=["heads"]' in caplog.text
    caplog.clear()
    say_frozen(MultiTaskHeads(6, TASKS, "tag"))
    assert not caplog.text

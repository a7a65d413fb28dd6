"""Labels of rows of different lengths, and where the heads are in a model: what needs no other library."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mt2st_fast import Classification, InputError, MultiLabel, MultiTaskHeads, Regression
from mt2st_fast.integrations.finding import heads_of
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

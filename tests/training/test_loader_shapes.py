"""Loaders of another shape get one line that shows the shape wanted."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from mt2st_fast import Classification, MultiTaskHeads, SingleTask, Trainer

X, Y = torch.randn(16, 3), torch.randint(0, 2, (16,))


class Stream(IterableDataset):
    def __iter__(self):
        yield from [(X, {"a": Y})] * 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DataLoader(Stream(), batch_size=None),
            "train must be an iterable of batches with a length, not DataLoader",
        ),
        (
            [{"inputs": X, "labels": Y}],
            r"must be \(inputs, \{task: target\}\), not \{'inputs': Tensor, 'labels': Tensor\}",
        ),
        ([(X, Y)], r"must be \(inputs, \{task: target\}\), not \(Tensor, Tensor\)"),
        ([(X, Y, Y)], r"not \(Tensor, Tensor, Tensor\)"),
        ([X], "not Tensor"),
        ([(X, {"a": Y.numpy()})], r"targets of a in train must be tensors, not numpy's: torch\.from_numpy"),
    ],
    ids=["stream", "dictionary", "pair", "triple", "tensor", "numpy"],
)
def test_the_shape_wanted_is_shown(data, message):
    heads = MultiTaskHeads(8, {"a": Classification(2)}, "a")
    trainer = Trainer(torch.nn.Linear(3, 8), heads, schedule=SingleTask(), device="cpu")
    with pytest.raises(TypeError, match=message) as refused:
        trainer.fit(data, epochs=1)
    assert "\n" not in str(refused.value)

"""Sources of batches: inputs of any nesting, the steps of an epoch, loaders that cannot serve."""

from __future__ import annotations

import multiprocessing
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mt2st_fast import Trainer
from mt2st_fast.training.inputs.batch import to_device
from mt2st_fast.training.inputs.sources import Source


def test_inputs_of_any_nesting_go_to_the_device():
    Pair = namedtuple("Pair", "words mask")
    pair = Pair(torch.zeros(2), [torch.ones(1), "text"])
    moved = to_device({"a": pair, "b": (torch.zeros(1), None)}, torch.device("meta"))
    assert isinstance(moved["a"], Pair)
    assert moved["a"].words.device.type == moved["a"].mask[0].device.type == "meta"
    assert moved["a"].mask[1] == "text"
    assert isinstance(moved["b"], tuple)
    packed = nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    assert to_device(packed, torch.device("cpu")).batch_sizes.tolist() == [2, 1]


def test_steps_per_epoch_count_the_last_incomplete_step(toy):
    assert Source(toy.batches(5), "tag", ("tag",), accumulate=2).steps_per_epoch == 3


def test_what_every_loader_declares_of_its_data_must_stay(toy):
    class Declaring(list):
        def __init__(self, unit):
            super().__init__(toy.batches(2))
            self.data_settings = {"unit": unit}

    def settings(*units):
        train = dict(zip(("tag", "score"), map(Declaring, units), strict=True))
        return Source(train, "tag", ("tag", "score")).settings

    assert settings("a", "a") == {"unit": "a"}
    assert len({str(settings(*units)) for units in (("a", "a"), ("a", "b"), ("b", "a"), ("b", "b"))}) == 4


def test_a_loader_that_can_be_iterated_once_only_is_refused(toy):
    class Once:
        def __init__(self, batches):
            self.iterator = iter(batches)

        def __len__(self):
            return 2

        def __iter__(self):
            return self.iterator

    with pytest.raises(ValueError, match="train has no batches in this epoch"):
        Trainer(toy.encoder(), toy.heads()).fit(Once(toy.batches(2)), epochs=2)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_no_worker_of_a_loader_outlives_its_run(toy):
    loader = DataLoader(toy.batches(6), batch_size=None, num_workers=1, multiprocessing_context="fork")
    before = len(multiprocessing.active_children())
    trainer = Trainer(toy.encoder(), toy.heads(), device="cpu")
    trainer.fit(loader, steps=3)
    assert trainer.step == 3
    assert len(multiprocessing.active_children()) == before

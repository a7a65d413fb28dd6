"""Data that is not what it was is refused by name where a run goes on, and an order that is new is not."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

from mt2st_fast import InputError
from tests.training.small_runs import ROWS, N, Stop, X, Y, batches, trainer_of


def as_batch(samples):
    x, y = zip(*samples, strict=True)
    return torch.stack(x), {"a": torch.stack(y)}


class Items(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Plain:
    """Batches in the order of `draw`; nothing of them can be seen but by going through them."""

    def __init__(self, x, y, draw, noise=None):
        self.x, self.y, self.draw, self.noise = x, y, draw, noise

    def __len__(self):
        return len(self.x) // ROWS

    def __iter__(self):
        order = torch.as_tensor(np.array(self.draw(len(self.x)), np.int64))
        for rows in order.split(ROWS):
            x = self.x[rows]
            yield x if self.noise is None else x + self.noise(x.shape), {"a": self.y[rows]}


def by_python(n):
    return random.sample(range(n), n)


def loader(data, **options):
    return DataLoader(data, batch_size=ROWS, collate_fn=as_batch, **options)


SOURCES = {
    "list": batches,
    "tuple": lambda x, y: tuple(batches(x, y)),
    "tensors": lambda x, y: loader(TensorDataset(x, y)),
    "tensors, shuffled": lambda x, y: loader(TensorDataset(x, y), shuffle=True),
    "subset": lambda x, y: loader(Subset(TensorDataset(x, y), range(0, N, 2)), shuffle=True),
    "concatenated": lambda x, y: loader(
        ConcatDataset([TensorDataset(x[:40], y[:40]), TensorDataset(x[40:], y[40:])])
    ),
    "items": lambda x, y: loader(Items(x, y), shuffle=True),
    "items, own generator": lambda x, y: loader(
        Items(x, y), shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "iterable": lambda x, y: Plain(x, y, range),
    "by random": lambda x, y: Plain(x, y, by_python),
    "by numpy": lambda x, y: Plain(x, y, np.random.permutation),
    "order of its own": lambda x, y: Plain(x, y, np.random.default_rng().permutation),
}


def shuffled_labels(x, y):
    return x, y[torch.randperm(N, generator=torch.Generator().manual_seed(9))]


CHANGES = {
    "labels": shuffled_labels,
    "contents": lambda x, y: (x + 1, y),
}


def stopped_and_resumed(path, first, second, *, stop=11, **options):
    trainer_of(callbacks=[Stop(stop)]).fit(first, epochs=3, checkpoint=path)
    torch.manual_seed(77)
    random.seed(77)
    np.random.seed(77)
    resumed = trainer_of(**options)
    resumed.fit(second, epochs=3, checkpoint=path, resume=True)
    return resumed


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("source", SOURCES)
def test_changed_data_is_refused(tmp_path, source, change):
    make = SOURCES[source]
    with pytest.raises(InputError, match="train has changed since the checkpoint") as refused:
        stopped_and_resumed(tmp_path / "c", make(X, Y), make(*CHANGES[change](X, Y)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_data_is_never_refused(tmp_path, source):
    make = SOURCES[source]
    assert stopped_and_resumed(tmp_path / "c", make(X, Y), make(X.clone(), Y.clone())).step in (12, 24)


@pytest.mark.parametrize("source", sorted(SOURCES.keys() - {"order of its own"}))
def test_orders_that_torch_python_and_numpy_draw_come_again(tmp_path, source):
    ends = []
    for stop in (None, 3, 11):  # the random numbers of every run but the first are others where it goes on
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        data, path = SOURCES[source](X, Y), tmp_path / str(stop)
        trainer = trainer_of(callbacks=[Stop(stop)])
        trainer.fit(data, epochs=3, checkpoint=path)
        if stop is not None:
            trainer = trainer_of()
            torch.manual_seed(77)
            random.seed(77)
            np.random.seed(77)
            trainer.fit(SOURCES[source](X, Y), epochs=3, checkpoint=path, resume=True)
        ends.append(trainer)
    for other in ends[1:]:
        assert other.history == ends[0].history
        assert torch.equal(other.encoder.weight, ends[0].encoder.weight)


def test_one_label_of_many_is_enough_where_rows_can_be_seen(tmp_path):
    y = Y.clone()
    y[63] = (y[63] + 1) % 3
    for make in (batches, SOURCES["tensors, shuffled"]):
        with pytest.raises(
            InputError, match=r"train has changed since the checkpoint \(had 64 rows, \w+, and has 64"
        ):
            stopped_and_resumed(tmp_path / "c", make(X, Y), make(X, y), stop=1)


def test_other_batches_of_the_same_rows_are_the_same_data(tmp_path):
    order = torch.randperm(N)
    assert stopped_and_resumed(tmp_path / "c", batches(), batches(X[order], Y[order])).step == 24


def test_another_split_is_other_data(tmp_path):
    def half(seed):
        return loader(random_split(TensorDataset(X, Y), [32, 32], torch.Generator().manual_seed(seed))[0])

    assert stopped_and_resumed(tmp_path / "c", half(1), half(1), stop=3).step == 12
    with pytest.raises(InputError, match="train has changed"):
        stopped_and_resumed(tmp_path / "d", half(1), half(2), stop=3)


def test_rows_that_never_come_again_are_not_refused_and_that_is_said(tmp_path, caplog):
    def make():
        return Plain(
            X, Y, range, lambda shape: torch.from_numpy(np.random.default_rng().random(shape, np.float32))
        )

    with caplog.at_level(logging.WARNING, "mt2st_fast"):
        assert stopped_and_resumed(tmp_path / "c", make(), make()).step == 24
    assert "its data cannot be compared" in caplog.text


def test_another_length_names_the_fix(tmp_path):
    for source in ("list", "items"):
        make = SOURCES[source]
        with pytest.raises(
            InputError, match=r"steps an epoch 8, this run has 6; use the original data and batch size"
        ):
            stopped_and_resumed(tmp_path / "c", make(X, Y), make(X[:48], Y[:48]))

"""Hugging Face datasets as they are iterated: dictionaries, in memory and as streams; skipped without the library."""

from __future__ import annotations

import pytest
import torch

from tests.training.small_runs import Stop, X, Y, assert_same, batches, trainer_of

datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("default")  # other people's code warns of what is to come there


def in_memory():
    return datasets.Dataset.from_dict({"x": X.tolist(), "a": Y.tolist()}).with_format("torch")


def a_stream(shuffled=True):
    rows = datasets.IterableDataset.from_generator(
        lambda: ({"x": x, "a": a} for x, a in zip(X.tolist(), Y.tolist(), strict=True))
    )
    rows = rows.shuffle(seed=1, buffer_size=16) if shuffled else rows
    return rows.with_format("torch").batch(8)


@pytest.mark.parametrize("loaded", [True, False])
def test_batches_of_a_data_set_are_those_of_its_columns(loaded):
    data = torch.utils.data.DataLoader(in_memory(), batch_size=8) if loaded else in_memory().batch(8)
    trainer, same = trainer_of(), trainer_of()
    trainer.fit(data, val=data, epochs=2)
    same.fit(batches(), val=batches(), epochs=2)
    assert_same(trainer, same)
    assert trainer.history.evaluations[-1].metrics == same.history.evaluations[-1].metrics


def test_a_stream_is_as_long_as_its_steps():
    trainer, same = trainer_of(), trainer_of()
    trainer.fit(a_stream(shuffled=False), steps=20)
    same.fit(batches(), steps=20)
    assert_same(trainer, same)


def test_every_pass_over_a_shuffled_stream_has_an_order_of_its_own():
    seen = []
    encoder = torch.nn.Linear(3, 4)
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    trainer_of(encoder).fit(a_stream(), steps=16)
    first, second = torch.cat(seen[:8]), torch.cat(seen[8:])
    assert not torch.equal(first, second)
    assert torch.equal(first.sort(0).values, second.sort(0).values)


@pytest.mark.parametrize("stop", [1, 7, 8, 9, 13])
def test_a_stream_goes_on_where_it_stood(tmp_path, stop):
    straight = trainer_of()
    straight.fit(a_stream(shuffled=False), steps=16)
    trainer_of(callbacks=[Stop(stop)]).fit(a_stream(shuffled=False), steps=16, checkpoint=tmp_path / "c")
    resumed = trainer_of()
    resumed.fit(a_stream(shuffled=False), steps=16, checkpoint=tmp_path / "c", resume=True)
    assert_same(straight, resumed)

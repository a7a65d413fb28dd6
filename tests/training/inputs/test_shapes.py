"""Pairs, dictionaries, streams; loaders of another shape get one line that shows the shape wanted."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mt2st_fast import (
    AdaptiveSwitch,
    AdaptiveTaskSelector,
    Classification,
    InputError,
    MultiTask,
    MultiTaskHeads,
    SingleTask,
    Switch,
    Trainer,
)
from tests.training.small_runs import Stop, assert_same, batches, trainer_of

X, Y = torch.randn(16, 3), torch.randint(0, 2, (16,))


class Stream(IterableDataset):
    def __iter__(self):
        yield from [(X, {"a": Y})] * 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DataLoader(Stream(), batch_size=None),
            r"train must be an iterable of batches with a length, not DataLoader; .* fit\(stream, steps=10_000\)",
        ),
        (
            [{"inputs": X, "labels": Y}],
            r"or a dictionary with the tasks' targets under their names, not \{'inputs': Tensor, 'labels': Tensor\}",
        ),
        ([{"a": Y}], r"must be \(inputs, \{task: target\}\), or .*, not \{'a': Tensor\}"),
        ([(X, Y)], r"must be \(inputs, \{task: target\}\), or .*, not \(Tensor, Tensor\)"),
        ([(X, Y, Y)], r"not \(Tensor, Tensor, Tensor\)"),
        ([X], "not Tensor"),
        ([(X, {"a": Y.numpy()})], r"targets of a in train must be tensors, not numpy's: torch\.from_numpy"),
    ],
    ids=["stream", "dictionary", "no inputs", "pair", "triple", "tensor", "numpy"],
)
def test_the_shape_wanted_is_shown(data, message):
    heads = MultiTaskHeads(8, {"a": Classification(2)}, "a")
    trainer = Trainer(torch.nn.Linear(3, 8), heads, schedule=SingleTask(), device="cpu")
    with pytest.raises(TypeError, match=message) as refused:
        trainer.fit(data, epochs=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("with_held_out", [False, True])
def test_what_is_no_input_is_named(with_held_out):
    heads = MultiTaskHeads(8, {"a": Classification(2)}, "a")
    trainer = Trainer(nn.Linear(3, 8), heads, schedule=SingleTask(), device="cpu")
    pairs, more = [(X, {"a": Y})], [{"inputs": X, "a": Y, "b": Y}]
    message = (
        "a batch has the inputs inputs, b, which Linear does not take as a dictionary; .* so remove those that "
        "are not"
    )
    with pytest.raises(TypeError, match=message) as refused:
        trainer.fit(pairs if with_held_out else more, val=more if with_held_out else None, epochs=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            X.tolist(),
            "the inputs of a batch are a list of numbers, not a tensor, and Linear does not take it",
        ),
        (X.numpy(), "the inputs of a batch are an array of NumPy, not a tensor"),
        ({"x": X, "more": X.tolist()}, "the input more of a batch is a list of numbers, not a tensor"),
    ],
    ids=["list", "array", "one of two"],
)
def test_numbers_outside_of_tensors_are_named(inputs, message):
    heads = MultiTaskHeads(8, {"a": Classification(2)}, "a")
    trainer = Trainer(nn.Linear(3, 8), heads, schedule=SingleTask(), device="cpu")
    with pytest.raises(TypeError, match=message + r'.* with_format\("torch"\) .*\(\w+Error: ') as refused:
        trainer.fit([(inputs, {"a": Y})], epochs=1)
    assert "\n" not in str(refused.value)


class Returning(nn.Linear):
    """An encoder that returns what another library's does."""

    made = staticmethod(lambda features: features)

    def forward(self, inputs):
        return self.made(super().forward(inputs))


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda f: {"last_hidden_state": f}, "not dict"),
        (lambda f: (f, f, f), r"not tuple \(Tensor, Tensor, Tensor\)"),
        (lambda f: (f, (f, f)), r"not tuple \(Tensor, tuple\)"),
        (lambda f: None, "not NoneType"),
    ],
    ids=["dictionary", "triple", "states of an LSTM", "nothing"],
)
def test_what_an_encoder_must_return_is_said(made, shown):
    heads = MultiTaskHeads(8, {"a": Classification(2)}, "a")
    encoder = Returning(3, 8)
    encoder.made = made
    with pytest.raises(
        TypeError, match=rf"an encoder must return features, .*, or \(features, mask\), {shown}"
    ):
        Trainer(encoder, heads, schedule=SingleTask(), device="cpu").fit([(X, {"a": Y})], epochs=1)


class OfDictionary(nn.Linear):
    """An encoder of several inputs."""

    def forward(self, inputs):
        return super().forward(inputs["x"]) + inputs["more"]


def as_dictionaries(pairs):
    return [{"x": x, **targets} for x, targets in pairs]


def collated(pairs):
    return [{"x": x, "labels": targets} for x, targets in pairs]


def with_more(pairs):
    return [{"x": x, "more": torch.zeros(len(x), 4), **targets} for x, targets in pairs]


@pytest.mark.parametrize("shaped", [as_dictionaries, collated, with_more])
@pytest.mark.parametrize("schedule", [SingleTask, AdaptiveSwitch, AdaptiveTaskSelector])
def test_a_dictionary_is_the_pair_that_it_says(shaped, schedule):
    def go(data, held_out, encoder):
        trainer = trainer_of(
            encoder, schedule=schedule(), backward="autograd"
        )  # the same bits from any encoder
        history = trainer.fit(data, val=held_out, epochs=2, evaluate_every=3)
        return trainer, [evaluation.metrics for evaluation in history.evaluations]

    def encoder_of(kind):
        torch.manual_seed(7)
        return kind(3, 4)

    pairs = [(x, {"a": t["a"], "b": t["a"].flip(0)}) for x, t in batches()]
    kind = OfDictionary if shaped is with_more else nn.Linear
    given, metrics = go(shaped(pairs), shaped(pairs[:2]), encoder_of(kind))
    expected, others = go(pairs, pairs[:2], encoder_of(nn.Linear))
    assert_same(given, expected)
    assert metrics == others


def test_a_dictionary_of_data_that_changed_is_seen(tmp_path):
    data = as_dictionaries(batches())
    trainer_of(callbacks=[Stop(3)]).fit(data, epochs=2, checkpoint=tmp_path / "c")
    other = as_dictionaries([(x + 1, targets) for x, targets in batches()])
    with pytest.raises(InputError, match="train has changed since the checkpoint"):
        trainer_of().fit(other, epochs=2, checkpoint=tmp_path / "c", resume=True)


class Endless(IterableDataset):
    """The same rows in every pass, which nobody knows the length of."""

    def __init__(self, n=5):
        self.n = n

    def __iter__(self):
        return iter(batches()[: self.n])


def stream(n=5):
    return DataLoader(Endless(n), batch_size=None)


def test_a_stream_takes_steps_which_are_one_pass():
    trainer = trainer_of(schedule=Switch(at=0.5), log_every=1)
    history = trainer.fit(stream(), steps=8)
    assert (trainer.step, trainer.epoch) == (8, 1)
    assert [phase.first_step for phase in history.phases] == [0, 4]
    same = trainer_of(schedule=Switch(at_step=4), log_every=1)
    same.fit([*batches()[:5], *batches()[:3]], epochs=1)
    assert_same(trainer, same)


def test_a_stream_in_a_data_loader_is_told_of_every_pass():
    class Counting(Endless):
        def __init__(self):
            super().__init__()
            self.passes = []

        def set_epoch(self, number):
            self.passes.append(number)

    data = Counting()
    trainer_of().fit(DataLoader(data, batch_size=None), steps=12)
    assert data.passes == [0, 1, 2]


def test_steps_of_a_stream_are_made_of_several_batches():
    trainer = trainer_of(accumulate=2)
    trainer.fit(stream(6), steps=3)
    same = trainer_of(accumulate=2)
    same.fit(batches()[:6], epochs=1)
    assert_same(trainer, same)


def test_steps_of_a_loader_with_a_length_are_less_or_more_than_a_pass():
    trainer = trainer_of()
    trainer.fit(batches(), steps=12)
    assert (trainer.step, trainer.epoch) == (12, 1.5)
    same = trainer_of()
    same.fit(batches(), epochs=1.5)
    assert_same(trainer, same)


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_a_stream_is_resumed_and_may_then_be_longer(tmp_path, stop):
    straight = trainer_of(schedule=MultiTask())
    both = [(x, {"a": t["a"], "b": t["a"]}) for x, t in batches()]

    class Both(Endless):
        def __iter__(self):
            return iter(both[: self.n])

    data = DataLoader(Both(), batch_size=None)
    straight.fit(data, steps=11)
    trainer_of(schedule=MultiTask(), callbacks=[Stop(stop)]).fit(data, steps=8, checkpoint=tmp_path / "c")
    resumed = trainer_of(schedule=MultiTask())
    resumed.fit(data, steps=11, checkpoint=tmp_path / "c", resume=True)
    assert resumed.step == 11
    assert_same(straight, resumed)


def test_how_long_a_run_is_is_said_once():
    with pytest.raises(InputError, match="epochs and steps are both given"):
        trainer_of().fit(batches(), epochs=2, steps=3)
    with pytest.raises(InputError, match="steps must be a whole number of at least 1, not 0"):
        trainer_of().fit(stream(), steps=0)
    with pytest.raises(
        ValueError, match="train has no batches in this epoch; it must be iterable once per epoch"
    ):
        trainer_of().fit(iter(batches()), steps=9)

"""A rate that is too high ends in one line that names task, step, epoch and the rate in use, in every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mt2st_fast import (
    SGD,
    Classification,
    InputError,
    LazyAdam,
    MultiLabel,
    MultiTask,
    MultiTaskHeads,
    NonFiniteLossError,
    Regression,
    RowwiseAdagrad,
    Trainer,
    Word2Vec,
    train_supervised,
)
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.training.divergence import Rates, check_finite_parameters

WORDS, STEPS = 12, 30
TASKS = {"a": Classification(3), "b": MultiLabel(2), "c": Regression(1)}
RULES = {
    "sgd": lambda p: SGD(p, lr=1e30),
    "adagrad": lambda p: RowwiseAdagrad(p, lr=1e30),
    "adam": lambda p: LazyAdam(p, lr=1e30),
}

RATES = Rates(lambda step: 0.1, 0.1, steps_done=8, steps_per_epoch=4)


def data(kind, n=8):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, WORDS, (n, 3), generator=generator, dtype=torch.int32)
    targets = {
        "a": torch.randint(0, 3, (n,), generator=generator),
        "b": torch.randint(0, 2, (n, 2), generator=generator).float(),
        "c": torch.randn(n, 1, generator=generator),
    }
    inputs = ids if kind == "window" else (ids.flatten(), torch.arange(0, 3 * n + 1, 3))
    return [(inputs, targets)] * STEPS


def encoder_of(kind):
    if kind == "window":
        return WindowEncoder(WORDS, 4, window=1, hidden=6, dropout=0.0, sparse=True)
    return BagEncoder(WORDS, 6, sparse=True)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "options",
    [{}, {"backward": "autograd"}, {"accumulate": 3, "backward": "autograd"}, {"clip_norm": 1e38}],
    ids=["one call", "eager", "accumulated", "clipped"],
)
@pytest.mark.parametrize("kind", ["window", "bag"])
def test_every_engine_ends_in_one_line(kind, options, rule):
    torch.manual_seed(1)
    heads = MultiTaskHeads(6, TASKS, "a")
    trainer = Trainer(
        encoder_of(kind),
        heads,
        schedule=MultiTask(),
        optimizer=RULES[rule],
        device="cpu",
        log_every=4,
        **options,
    )
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(data(kind), epochs=1)
    message = str(caught.value)
    assert "\n" not in message
    for part in (" at step ", "in epoch 0.", "at a rate of 1e+30", "lower lr (1e+30)"):
        assert part in message
    assert "the loss of " in message or "trained on a, b, c" in message


def test_an_engine_that_takes_one_call_is_among_those_tried():
    heads = MultiTaskHeads(6, TASKS, "a")
    for kind in ("window", "bag"):
        optimizer = lambda p: SGD(p, lr=1e-3)  # noqa: E731
        trainer = Trainer(encoder_of(kind), heads, schedule=MultiTask(), optimizer=optimizer, device="cpu")
        assert trainer.fit(data(kind), epochs=1).phases[0].engine == "one kernel call"


def said_by(call):
    """What `call` returned, and the line that it ended in instead."""
    try:
        return call(), ""
    except InputError as error:
        return None, str(error)


WORD_MODELS = (
    {"sg": 0},
    {"sg": 1},
    {"hs": 1, "negative": 0},
    {"max_n": 3, "min_n": 2, "bucket": 50},
)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("options", WORD_MODELS)
def test_word_vectors_stay_finite_or_end_in_one_line(alpha, options):
    sentences = [["a", "b", "c", "d"], ["b", "c", "e"], ["a", "d", "e"]] * 600
    model, message = said_by(
        lambda: Word2Vec(sentences, min_count=1, vector_size=8, alpha=alpha, epochs=2, sample=0, **options)
    )
    if model is not None:
        assert np.isfinite(model.vectors).all()
        assert np.isfinite(model.losses).all()
        return
    assert "\n" not in message
    for part in (
        "no longer finite at step ",
        "in epoch ",
        "trained on context at a rate of ",
        f"({alpha:g})",
    ):
        assert part in message


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("loss", ["softmax", "ova"])
@pytest.mark.parametrize("lr", [5.0, 1e20, 1e38])
def test_classifiers_stay_finite_or_end_in_one_line(tmp_path, loss, lr):
    path = tmp_path / "train.txt"
    path.write_text("__label__a x y\n__label__b z y\n__label__a x x\n__label__b z z\n" * 8, "utf-8")
    model, message = said_by(lambda: train_supervised(path, lr=lr, loss=loss, dim=4, epoch=5, batch_size=8))
    if model is not None:
        assert model.encoder.table.isfinite().all()
        return
    assert "\n" not in message
    assert f"lower lr ({lr:g})" in message
    assert " at step " in message


@pytest.mark.parametrize("numbers", [[3e38, 3e38], [], [[-3e38], [-3e38]]])
def test_large_parameters_whose_sum_overflows_are_finite(numbers):
    check_finite_parameters([("table", torch.tensor(numbers))], ["main"], RATES)


@pytest.mark.parametrize("lost", [float("nan"), float("inf"), -float("inf")])
def test_one_lost_number_is_found_among_large_ones(lost):
    tables = [("fine", torch.tensor([3e38, 3e38])), ("table", torch.tensor([[3e38, 1.0], [lost, -3e38]]))]
    with pytest.raises(NonFiniteLossError, match=r"^table is no longer finite, trained on main at step 7"):
        check_finite_parameters(tables, ["main"], RATES)

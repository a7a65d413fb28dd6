"""Options of train_supervised: fastText's names, families, and what is refused by name."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch

from mt2st_fast import (
    Classification,
    InputError,
    MultiLabel,
    NonFiniteLossError,
    RowwiseAdagrad,
    WordVectors,
    train_supervised,
)
from mt2st_fast.data.labelled_text import read_labelled_text
from mt2st_fast.words import supervised
from mt2st_fast.words.fasttext_options import REFUSED

SMALL = {"dim": 4, "epoch": 1, "batch_size": 8}


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("__label__a x y rare\n__label__b z y\n__label__a x x\n__label__b z z\n" * 1, "utf-8")
    return path


def test_fasttexts_names_are_the_same_options(train):
    by_theirs = train_supervised(
        input=train, minCount=2, wordNgrams=2, bucket=50, loss="softmax", thread=1, ws=5, neg=5,
        lrUpdateRate=100, t=1e-4, minCountLabel=1, verbose=0, pretrainedVectors="",
        autotuneValidationFile="", **SMALL,
    )  # fmt: skip
    by_ours = train_supervised(train, min_count=2, word_ngrams=2, bucket=50, **SMALL)
    assert "rare" not in by_theirs.words
    assert torch.equal(by_theirs.encoder.table, by_ours.encoder.table)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_fasttext_has_and_we_have_not_is_refused_by_name(train, name):
    with pytest.raises(InputError, match=f"^{name}='?7'?: ") as caught:
        train_supervised(train, **{name: 7}, **SMALL)
    assert "\n" not in str(caught.value)
    for harmless in (*REFUSED[name][0], None):
        train_supervised(train, **{name: harmless}, **SMALL)


@pytest.mark.parametrize("loss", ["hs", "ns", "hinge"])
def test_other_losses_are_refused_by_name(train, loss):
    with pytest.raises(InputError, match=f"loss='{loss}': "):
        train_supervised(train, loss=loss, **SMALL)


def test_an_option_under_both_names_is_refused(train):
    with pytest.raises(InputError, match="wordNgrams is fastText's name for word_ngrams"):
        train_supervised(train, wordNgrams=2, word_ngrams=1)
    with pytest.raises(InputError, match="input is fastText's name for path"):
        train_supervised(train, input=train)


def test_the_loss_says_whether_labels_stand_alone(tmp_path, train):
    model = train_supervised(train, loss="ova", **SMALL | {"epoch": 60, "lr": 0.2})
    assert model.test(train)["label"] == 1
    assert isinstance(model.heads.tasks["label"], MultiLabel)
    only_softmax = train_supervised(train, loss="softmax", **SMALL)
    assert isinstance(only_softmax.heads.tasks["label"], Classification)
    several = tmp_path / "several.txt"
    several.write_text("__label__a __label__b x\n__label__a y\n")
    with pytest.raises(
        InputError, match="several labels of the family label, but loss='softmax' allows only one"
    ):
        train_supervised(several, loss="softmax", **SMALL)


def test_threads_are_torchs_for_the_training_alone(train, monkeypatch):
    before, seen = torch.get_num_threads(), []
    fit = supervised.Trainer.fit
    monkeypatch.setattr(
        supervised.Trainer,
        "fit",
        lambda *args, **kwargs: seen.append(torch.get_num_threads()) or fit(*args, **kwargs),
    )
    train_supervised(train, thread=before + 1, **SMALL)
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_pretrained_vectors_are_begun_with(tmp_path, train):
    given = WordVectors(["z", "other", "x"], np.arange(12, dtype=np.float32).reshape(3, 4) + 1)
    given.write(tmp_path / "given.vec")
    model = train_supervised(
        train,
        pretrainedVectors=str(tmp_path / "given.vec"),
        minn=2,
        maxn=2,
        bucket=10,
        **SMALL | {"lr": 1e-9},
    )
    assert model.words == ["x", "z", "y", "rare", "other"]
    assert model.features.vocabulary.counts[-1] == 0
    for word in given.words:
        row = model.encoder.table.detach()[model.words.index(word)].numpy()
        assert row == pytest.approx(given.vectors[given.index_of[word]], abs=1e-5)
    with pytest.raises(InputError, match="vectors of dimension 4; use dim=4, not 8"):
        train_supervised(train, pretrained_vectors=tmp_path / "given.vec", dim=8)


# --- families ------------------------------------------------------------------------------------------------


@pytest.fixture
def doubtful(tmp_path):
    path = tmp_path / "doubtful.txt"
    path.write_text("__label__a__b x\n__label__a__c y\n__label__d z\n")
    return path


def test_labels_that_may_name_families_are_told_of_in_one_line(doubtful, caplog):
    with caplog.at_level(logging.INFO, "mt2st_fast"):
        model = train_supervised(doubtful, **SMALL)
    assert model.labels == {"a": ("b", "c"), "label": ("d",)}
    (record,) = caplog.records
    assert record.name == "mt2st_fast"
    message = record.getMessage()
    assert "\n" not in message
    assert "a (2 labels), label (1 label)" in message
    assert "families=False" in message


@pytest.mark.parametrize("families", [True, False])
def test_families_are_as_they_are_said_to_be(doubtful, caplog, families):
    with caplog.at_level(logging.INFO, "mt2st_fast"):
        model = train_supervised(doubtful, families=families, **SMALL | {"epoch": 40})
    assert not caplog.records
    expected = {"a": ("b", "c"), "label": ("d",)} if families else {"label": ("a__b", "a__c", "d")}
    assert model.labels == expected
    assert set(model.test(doubtful)) == set(expected)
    assert min(model.test(doubtful).values()) == 1


def test_plain_labels_are_not_told_of(train, caplog):
    with caplog.at_level(logging.INFO, "mt2st_fast"):
        train_supervised(train, **SMALL)
    assert not caplog.records


def test_two_labels_do_not_become_one_in_silence(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("__label__label__x a\n__label__x b\n")
    with pytest.raises(
        InputError, match="__label__label__x and __label__x are both class x of the family label"
    ):
        read_labelled_text(path)
    assert read_labelled_text(path, families=False).labels["label"].names == ("label__x", "x")


# --- nonsense ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dim", (0,)),  # tests/test_numeric_options.py has what no number may be
        ("min_count", (0,)),
        ("word_ngrams", (0,)),
        ("bucket", (0, 3_000_000_000)),
        ("batch_size", (0,)),
        ("threads", (0,)),
        ("epoch", (0,)),
        ("lr", (0,)),
        ("dropout", (1,)),
        ("label", ("", " ", "a b", 3)),
        ("families", ("yes", 2)),
    ],
)
def test_nonsense_is_refused_by_name(train, name, values):
    for value in values:
        with pytest.raises(InputError, match=f"^{name} must be ") as caught:
            train_supervised(train, **{name: value})
        assert "\n" not in str(caught.value)


def test_a_message_names_an_option_as_it_was_given(train):
    for name, value, says in (
        ("minCount", 10**6, "or a smaller minCount"),
        ("wordNgrams", 0, "wordNgrams must be"),
    ):
        with pytest.raises(InputError, match=says):
            train_supervised(train, **{name: value}, **SMALL)
    with pytest.raises(InputError, match="or a smaller min_count"):
        train_supervised(train, min_count=10**6, **SMALL)


def test_ngrams_longer_than_every_document_cost_nothing(train):
    assert train_supervised(train, word_ngrams=10**12, bucket=50, **SMALL).predict("x y rare").labels


def test_options_that_nobody_would_read_are_refused(train):
    with pytest.raises(InputError, match="lr and optimizer are both given"):
        train_supervised(train, lr=0.1, optimizer=lambda parameters: RowwiseAdagrad(parameters, lr=0.1))
    with pytest.raises(InputError, match="weight_decay only applies to"):
        train_supervised(train, weight_decay=0.1)
    for name, near in (
        ("epochs", "; did you mean epoch?"),
        ("wordNgram", "; did you mean wordNgrams?"),
        ("qqq", ""),
    ):
        with pytest.raises(InputError, match=re.escape(f"train_supervised has no option {name}{near}") + "$"):
            train_supervised(train, **{name: 1})


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_rate_that_is_too_high_is_named_as_it_was_given(train):
    with pytest.raises(NonFiniteLossError, match=r"lower lr \(1e\+38\)"):
        train_supervised(train, lr=1e38, **SMALL | {"epoch": 20})


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 0.1},
        {"accumulate": 2},
        {"optimizer": lambda parameters: torch.optim.Adagrad(parameters, lr=0.1)},
    ],
    ids=["clip_norm", "accumulate", "optimizer"],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch's own optimizer
def test_options_of_the_trainer_that_need_gradients_train(train, options):
    model = train_supervised(train, **SMALL, **options)
    assert model.trainer.step > 0


@pytest.mark.parametrize("given", [["__label__a one line"], None, 3])
def test_an_input_that_is_no_path_is_named(given):
    with pytest.raises(InputError, match=f"must be the path of a file .*, not a {type(given).__name__}"):
        train_supervised(given)

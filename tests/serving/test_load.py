"""One function loads every kind of saved model."""

from __future__ import annotations

import pytest
import torch

from mt2st_fast import (
    InputError,
    MultiTaskHeads,
    SupervisedModel,
    TextModel,
    Word2Vec,
    load,
    save_modules,
    train_supervised,
)
from mt2st_fast.model_folder import write_model
from tests.serving.test_text_model import TEXT, made


def test_a_model_comes_back_as_what_it_was(tmp_path):
    text_model = made("token")
    text_model.save(tmp_path / "run" / "model")
    found = load(tmp_path / "run")
    assert isinstance(found, TextModel)
    assert torch.equal(found.logits(TEXT), text_model.logits(TEXT))

    (tmp_path / "t.txt").write_text("__label__x good\n__label__y bad\n" * 20)
    classifier = train_supervised(tmp_path / "t.txt", dim=4, epoch=2, batch_size=8)
    classifier.save(tmp_path / "classifier")
    found = load(tmp_path / "classifier")
    assert isinstance(found, SupervisedModel)
    assert found.predict("good", k=-1) == classifier.predict("good", k=-1)

    words = Word2Vec([["a", "b", "c"]] * 30, min_count=1, vector_size=4)
    words.save(tmp_path / "words")
    found = load(tmp_path / "words")
    assert isinstance(found, Word2Vec)
    assert (found.vectors == words.vectors).all()

    save_modules(tmp_path / "modules", text_model._trained, text_model.heads)
    _, heads = load(tmp_path / "modules")
    assert isinstance(heads, MultiTaskHeads)
    assert torch.equal(heads.linear("pos").weight, text_model.heads.linear("pos").weight)


def test_a_kind_of_tomorrow_is_named(tmp_path):
    write_model(tmp_path / "m", "oracle", {}, {})
    with pytest.raises(InputError, match="a model of the kind 'oracle', which this version cannot load"):
        load(tmp_path / "m")
    with pytest.raises(InputError, match="is not a model"):
        load(tmp_path)

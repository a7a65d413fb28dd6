"""Taggers and classifiers that are kept: the same answers in a fresh process, words never seen included."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mt2st_fast import (
    BagEncoder,
    Classification,
    MultiLabel,
    MultiTaskHeads,
    Regression,
    SubwordVectors,
    WindowEncoder,
)
from mt2st_fast.data.subwords import subword_rows
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.serving import words as words_module
from mt2st_fast.serving.text_model import Labels, TextModel
from mt2st_fast.serving.words import OpenVocabulary

WORDS = [f"word{i}" for i in range(40)] + ["die", "Katze", "schläft"]
TEXT = [["die", "Katze", "schläft", "."], [], ["Die", "unbekannte", "word3", "unbekannte"], ["word1"]]
TASKS = {"pos": Classification(3), "marks": MultiLabel(2), "length": Regression(1)}
LABELS = {
    "pos": Labels("classes", ("ADJ", "NOUN", "VERB")),
    "marks": Labels("labels", ("a", "b")),
    "length": Labels("values", ("length",)),
}


def made(level, hidden=8, **options):
    torch.manual_seed(2)
    vocabulary = Vocabulary(WORDS, np.arange(len(WORDS), 0, -1))
    table = subword_rows(vocabulary.words, vocabulary.counts, min_count=5, buckets=50, **options)
    rows = {"rows_of_type": torch.from_numpy(table.rows), "num_rows": table.num_rows, "sparse": True}
    if level == "token":
        encoder = WindowEncoder(len(WORDS), 6, window=1, hidden=hidden, dropout=0.5, **rows)
    else:
        encoder = BagEncoder(len(WORDS), 6, dropout=0.5, **rows)
    heads = MultiTaskHeads(encoder.out_features, TASKS, "pos")
    return TextModel(encoder, heads, vocabulary, table, LABELS, "blanks", "test")


def by_hand(model, task):
    """(N, C) logits of TEXT, word vector by word vector."""
    vectors = SubwordVectors(model.vocabulary, model.table, model._trained)
    rows = []
    for unit in TEXT:
        of_words = torch.from_numpy(vectors.vectors(unit)) if unit else torch.zeros(0, 6)
        if model.level == "document":
            rows.append(of_words.mean(0) if unit else torch.zeros(6))
            continue
        padded = torch.cat([torch.zeros(1, 6), of_words, torch.zeros(1, 6)])
        rows += [padded[t : t + 3].flatten() for t in range(len(unit))]
    features = torch.stack(rows)
    hidden = getattr(model._trained, "hidden", None)
    if hidden is not None:
        features = hidden(features).relu()
    return model.heads.logits(features, task).detach()


@pytest.mark.parametrize("hidden", [8, None])
@pytest.mark.parametrize("level", ["token", "document"])
@pytest.mark.parametrize("task", TASKS)
def test_logits_are_those_of_the_words(level, hidden, task):
    model = made(level, hidden)
    torch.testing.assert_close(model.logits(TEXT, task), by_hand(model, task), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", ["token", "document"])
def test_a_fresh_process_says_the_same(level, tmp_path):
    model = made(level)
    model.save(tmp_path / "m")
    program = (
        "import json, sys\nfrom mt2st_fast.serving.text_model import TextModel\n"
        "model, text = TextModel.load(sys.argv[1]), json.loads(sys.argv[2])\n"
        "print(json.dumps([[model.probabilities(text, t).tolist(), model.predict(text, t)] for t in model.tasks]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "m"), json.dumps(TEXT)],
        capture_output=True,
        text=True,
        check=True,
    )
    here = [[model.probabilities(TEXT, t).tolist(), model.predict(TEXT, t)] for t in model.tasks]
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


@pytest.mark.parametrize("level", ["token", "document"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_say_the_same(level, copied):
    model = made(level)
    other = copied(model)
    assert torch.equal(other.logits(TEXT), model.logits(TEXT))
    with torch.no_grad():
        other._trained.table.zero_()
    assert model.logits(TEXT).std() > 0.01  # of their own


def test_predictions_stand_where_their_words_do():
    model = made("token")
    probabilities = model.probabilities(TEXT)
    assert probabilities.sum(1) == pytest.approx(np.ones(9), abs=1e-5)
    flat = [LABELS["pos"].names[c] for c in probabilities.argmax(1)]
    assert model.predict(TEXT) == [flat[:4], [], flat[4:8], flat[8:]]
    marks = model.probabilities(TEXT, "marks") >= 0.5
    assert [tag for unit in model.predict(TEXT, "marks") for tag in unit] == [
        tuple(name for name, is_on in zip("ab", row, strict=True) if is_on) for row in marks
    ]
    assert len(made("document").predict(TEXT)) == 4
    assert model.predict([]) == []
    assert model.probabilities([]).shape == (0, 3)


def test_batches_make_no_difference(monkeypatch):
    # Up to rounding: the kernel adds up in the same order for every row.
    model = made("token")
    text = [[f"word{i % 60}" for i in range(n)] for n in (1, 7, 0, 5000, 30, 2)] * 2
    at_once = model.logits(text)
    one_by_one = torch.cat([model.logits([unit]) for unit in text])
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(words_module, "NEW_TYPES", 3)  # words are forgotten and met again
    torch.testing.assert_close(made("token").logits(text), at_once, rtol=1e-5, atol=1e-6)


def test_words_with_more_parts_than_any_type_fit():
    model = made("token", min_n=3, max_n=5)
    text = [["Donaudampfschifffahrtsgesellschaft", "die"], ["Rindfleischetikettierung"]]
    vectors = SubwordVectors(model.vocabulary, model.table, model._trained)
    opened = OpenVocabulary(model.vocabulary, model.table, model._trained)
    for unit in text:
        ids = torch.from_numpy(opened.ids(unit))
        found = opened.encoder.pool(ids).detach().numpy()
        np.testing.assert_allclose(found, vectors.vectors(unit), rtol=1e-5, atol=1e-6)


def test_what_is_asked_wrongly_is_named():
    model = made("token")
    with pytest.raises(InputError, match="the model has no task tag; available: pos, marks, length"):
        model.predict(TEXT, "tag")
    with pytest.raises(InputError, match="a unit must be a list of words"):
        model.predict(["die Katze"])


@pytest.mark.parametrize("level", ["token", "document"])
@pytest.mark.parametrize(
    ("units", "message"),
    [
        (
            [["die"], ["die", 1, None]],
            r"^units\[1\] contains 1, which is not a string; pass words as strings$",
        ),
        ([["die", None]], r"^units\[0\] contains None, which is not a string"),
        ([["die", b"Katze"]], r"^units\[0\] contains b'Katze', which is not a string"),
        ([["die"], [["Katze"]]], r"^units\[1\] contains \['Katze'\], which is not a string"),
        ([["die"], None], r"^units\[1\] is None, not a list of words"),
        (7, "^units must be a list of lists of words, not of type int"),
        (
            (unit for unit in TEXT),
            "^units must be a list of lists of words, not of type generator",
        ),
    ],
)
def test_what_is_no_word_is_named_with_its_unit(level, units, message):
    model = made(level)
    with pytest.raises(InputError, match=message) as caught:
        model.predict(units)
    assert "\n" not in str(caught.value)
    assert len(model.predict(TEXT)) == len(TEXT)  # nothing is left of it


@pytest.mark.parametrize("level", ["token", "document"])
def test_threads_that_ask_one_model_take_turns(level, monkeypatch):
    texts = [[f"{word}{i}" if i % 3 else word for word in WORDS] for i in range(24)]
    expected = [made(level).logits([text]) for text in texts]
    model, inside, met = made(level), [], []
    features = TextModel._features

    def watched(self, units):
        met.extend(inside)
        inside.append(units)
        time.sleep(0.005)
        yield from features(self, units)
        inside.remove(units)

    monkeypatch.setattr(TextModel, "_features", watched)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda text: model.logits([text]), texts))
    assert not met
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)

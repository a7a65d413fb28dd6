"""A classifier that is kept: the same numbers from its folder, and what it can be asked."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from mt2st_fast import InputError, SupervisedModel, Switch, load_model, train_supervised
from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.line_bags import LineBags
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.words import bag_scorer
from mt2st_fast.words.fasttext_models import Classifier

TEXTS = ["goal match poor", "soup great", "", "unseen kickings bread", "the the a", "übel 日本 goal"]
ANOTHER_PROCESS = """
import json, sys
from mt2st_fast import load_model
model = load_model(sys.argv[1], device="cpu")
found = [model.predict(text, k=-1, family=f) for f in model.labels for text in json.loads(sys.argv[2])]
print(json.dumps([[list(labels), [p.hex() for p in probabilities]] for labels, probabilities in found]))
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Two families, and one with several labels on a document."""
    lines = [
        f"__label__topic__{topic} __label__tone__{tone} "
        + " ".join(f"__label__has__{word}" for word in words.split()[:2])
        + f" {words} the a {'fine great' if tone == 'good' else 'poor dull'}"
        for topic, words in (("sport", "goal match team"), ("food", "soup bread salt"), ("art", "film"))
        for tone in ("good", "bad")
        for _ in range(2 if topic == "art" else 20)
    ]
    path = tmp_path_factory.mktemp("data") / "train.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(train):
    return train_supervised(
        train, dim=8, epoch=6, word_ngrams=2, minn=2, maxn=3, bucket=300, batch_size=16, families=True,
        dropout=0.1, device="cpu",
    )  # fmt: skip


def everything(model):
    return [model.predict(text, k=-1, family=family) for family in model.labels for text in TEXTS]


def test_a_fresh_process_has_the_same_probabilities_bit_for_bit(model, tmp_path):
    model.save(tmp_path / "m")
    command = [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path / "m"), json.dumps(TEXTS)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    expected = [[list(labels), [p.hex() for p in values]] for labels, values in everything(model)]
    assert found == expected
    assert len({tuple(values) for _, values in found}) > 10


def by_folder(model, tmp_path):
    model.save(tmp_path / "m")
    return load_model(tmp_path / "m", device="cpu")


def by_torch(model, tmp_path):
    torch.save(model, tmp_path / "m.pt")
    return torch.load(tmp_path / "m.pt", weights_only=False)


WAYS = {
    "folder": by_folder,
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "torch.save": by_torch,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_kept_model_answers_as_the_trained_one(model, train, tmp_path, way):
    kept = WAYS[way](model, tmp_path)
    assert everything(kept) == everything(model)
    assert (kept.main, kept.labels, kept.words) == (model.main, model.labels, model.words)
    assert kept.test(train) == model.test(train)
    scores, of_trained = (each.test_label(train, family="has", k=-1, threshold=0) for each in (kept, model))
    assert scores == of_trained
    assert kept.vector("goalie").tolist() == model.vector("goalie").tolist()
    assert kept.features.vocabulary.counts.tolist() == model.features.vocabulary.counts.tolist()
    for what in ("trainer", "history"):
        with pytest.raises(RuntimeError, match="loaded or copied; its trainer and history are not saved"):
            getattr(kept, what)
    # And it can be kept again.
    assert everything(pickle.loads(pickle.dumps(kept))) == everything(model)


def test_heads_that_retired_are_kept(train, tmp_path):
    model = train_supervised(
        train, dim=8, epoch=4, main="tone", schedule=Switch(at=0.5), batch_size=16, families=True
    )
    kept = by_folder(model, tmp_path)
    assert kept.main == "tone"
    assert kept.heads.active == model.heads.active == ("tone",)
    assert everything(kept) == everything(model)


def test_a_copy_is_its_own(model):
    kept = copy.deepcopy(model)
    kept.encoder.table.data.zero_()
    assert model.encoder.table.any()


def test_what_is_no_such_model_is_named(tmp_path, model):
    with pytest.raises(InputError, match="missing: is not a model"):
        load_model(tmp_path / "missing")
    model.save(tmp_path / "m")
    content = (tmp_path / "m" / "model.json").read_text("utf-8")
    (tmp_path / "m" / "model.json").write_text(content.replace("goal", "goat"), "utf-8")
    with pytest.raises(InputError, match="damaged"):
        SupervisedModel.load(tmp_path / "m")


@pytest.mark.parametrize("device", ["nonsense", *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_there_is_named(tmp_path, model, device):
    model.save(tmp_path / "m")
    with pytest.raises(InputError, match=f"device {device} is"):
        load_model(tmp_path / "m", device=device)


# --- predictions ---------------------------------------------------------------------------------------------


def test_a_list_is_predicted_as_its_texts_are(model, monkeypatch):
    monkeypatch.setattr(bag_scorer, "ROWS_AT_ONCE", 4)
    calls = []
    handle = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    for family in model.labels:
        found = model.predict(TEXTS, k=-1, family=family)
        for one, text in zip(found, TEXTS, strict=True):
            alone = model.predict(text, k=-1, family=family)
            assert dict(zip(*one, strict=True)) == pytest.approx(dict(zip(*alone, strict=True)), abs=1e-6)
    handle.remove()
    assert len(calls) == len(model.labels) * (2 + len(TEXTS))
    assert model.predict([]) == []
    assert model.predict(np.array(TEXTS, object))[0].labels == ("sport",)


def test_k_and_threshold_choose_labels(model):
    text = "goal match great"
    labels, probabilities = model.predict(text, k=-1)
    assert set(labels) == {"sport", "food", "art"}
    assert sum(probabilities) == pytest.approx(1)
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert model.predict(text, k=2).labels == labels[:2]
    assert model.predict(text, k=99) == (labels, probabilities)
    between = (probabilities[0] + probabilities[1]) / 2
    assert model.predict([text], k=-1, threshold=between) == [(labels[:1], probabilities[:1])]
    assert model.predict(text, k=-1, threshold=1.0) == ((), ())


def test_labels_in_a_text_are_no_words_of_it(model):
    plain = model.predict("goal poor", k=-1)
    assert model.predict("__label__topic__food goal __label__new poor", k=-1) == plain
    assert model.text_vector("__label__x goal").tolist() == model.text_vector("goal").tolist()


def test_texts_are_cut_as_a_file_is():
    texts = ["a\u3000b\x00c\r", "", "\u00a0", "__label__x d a"]
    features = BagFeatures(Vocabulary(list("abcd"), [1] * 4), 1, 0)
    ids, bounds = LineBags(features, "__label__")(texts)
    assert [["abcd"[i] for i in ids[first:last]] for first, last in itertools.pairwise(bounds)] == [
        ["a", "b", "c"],
        [],
        [],
        ["d", "a"],
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("goal\nsoup", {}, "text 0 contains a line feed; a text must be one line"),
        (["goal", "soup\n"], {}, "text 1 contains a line feed"),
        (["goal", 3], {}, "text 1 is not a string but int"),
        (None, {}, "not NoneType"),
        (b"goal", {}, "not bytes"),
        ("a\ud800", {}, "a lone surrogate"),
        ("goal", {"k": 0}, "k must be a whole number of at least 1, or -1"),
        ("goal", {"k": -2}, "k must be"),
        ("goal", {"k": 1.5}, "k must be"),
        ("goal", {"threshold": float("nan")}, "threshold must be a probability"),
        ("goal", {"threshold": 1.5}, "threshold must be a probability"),
        ("goal", {"family": "size"}, "unknown label family size"),
    ],
)
def test_questions_that_make_no_sense_are_named(model, text, options, message):
    with pytest.raises(InputError, match=message) as caught:
        model.predict(text, **options)
    assert "\n" not in str(caught.value)


# --- fastText's names ----------------------------------------------------------------------------------------


def test_scores_of_each_label(tmp_path):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("__label__a x\n__label__b y\n__label__c z\n" * 30)
    model = train_supervised(train, dim=8, epoch=20, batch_size=16)
    test.write_text("__label__a x\n__label__b x\n__label__b y\n__label__new y\nno label\n")
    found = model.test_label(test)
    assert list(found) == ["a", "b", "c", "new"]
    assert found["a"] == {"precision": 0.5, "recall": 1.0, "f1score": pytest.approx(2 / 3)}
    assert found["b"] == {"precision": 0.5, "recall": 0.5, "f1score": 0.5}
    assert found["new"]["recall"] == found["new"]["f1score"] == 0
    assert all(np.isnan(score) for score in (found["new"]["precision"], *found["c"].values()))
    assert model.test_label(test, k=-1)["c"]["precision"] == 0
    assert model.test_label(test, k=-1)["b"]["recall"] == 1
    assert np.isnan(model.test_label(test, threshold=1.0)["a"]["precision"])
    test.write_text("__label__k__a x\n")
    with pytest.raises(InputError, match="no label of label; available: k"):
        model.test_label(test)


def test_labels_that_training_never_saw_are_told_and_wrong(tmp_path, caplog):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("__label__0 x\n__label__1 y\n" * 30)
    model = train_supervised(train, dim=8, epoch=20, batch_size=16)
    assert model.test(train) == {"label": 1}
    assert not caplog.messages
    test.write_text("__label__0.0 x\n__label__1.0 y\n__label__1.0 y\n__label__new y\n")
    line = (
        f"{test}: label: classes that do not occur in training, so they cannot be learned, in 4 rows: 0.0, 1.0, new; "
        "training has '0', not '0.0': spell them alike in every file"
    )
    assert model.test(test) == {"label": 0}
    assert caplog.messages == [line]
    model.test_label(test)
    assert caplog.messages == [line, line]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A model of one family whose documents have several labels."""
    train = tmp_path_factory.mktemp("data") / "train.txt"
    train.write_text("__label__a __label__b x\n__label__b y\n__label__c z\n" * 30)
    return train_supervised(train, dim=8, epoch=30, batch_size=16, device="cpu")


def test_labels_that_training_never_saw_are_missed_among_several(several, tmp_path):
    test = tmp_path / "test.txt"
    test.write_text("__label__a __label__new x\n__label__new y\n__label__c z\nno label z\n")
    names = ["a", "b", "c", "new"]
    true = np.array([[1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]])
    guessed = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    assert [several.predict(t, k=-1, threshold=0.5).labels for t in "yz"] == [("b",), ("c",)]
    assert several.test(test) == {"label": pytest.approx(f1_score(true, guessed, average="micro"))}
    found = several.test_label(test)
    expected = f1_score(true, guessed, average=None)
    assert {name: found[name]["f1score"] for name in names} == pytest.approx(
        dict(zip(names, expected, strict=True))
    )
    test.write_text("__label__new x\n")
    assert several.test(test) == {"label": 0}


def test_any_of_several_labels_is_right_where_training_had_one_each(tmp_path, caplog):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("__label__a x\n__label__b y\n__label__c z\n" * 30)
    model = train_supervised(train, dim=8, epoch=20, batch_size=16)
    test.write_text(
        "__label__b __label__a x\n__label__a __label__b y\n__label__a __label__new z\n__label__c z\n"
    )
    assert model.test(test) == {"label": 0.75}  # fastText's precision at 1
    assert Classifier(model).test(test)[1] == 0.75
    assert caplog.messages[-1] == (
        f"{test}: label: 3 documents have several labels, but training documents had one each; a predicted label "
        "counts as correct if it is any of them"
    )
    caplog.clear()
    test.write_text("__label__a __label__a x\n")
    assert model.test(test) == {"label": 1}
    assert not caplog.messages


def test_one_rule_says_what_is_predicted(model, several):
    assert several.choice("label") == (-1, 0.5)
    assert several.choice("label", k=2) == (2, 0)
    assert several.choice("label", threshold=0.3) == (-1, 0.3)
    assert model.choice("topic") == (1, 0)
    assert model.choice("topic", threshold=0.3) == (1, 0.3)
    with pytest.raises(InputError, match="k must be"):
        model.choice("topic", k=0)


def test_scores_where_documents_have_several_labels(model, train):
    found = model.test_label(train, family="has")
    assert set(found) == {"goal", "match", "soup", "bread", "film"}
    assert found["goal"]["recall"] == 1
    assert found["goal"]["precision"] > 0.9
    # One label a document: half of those of two are missed.
    found = model.test_label(train, family="has", k=1, threshold=0)
    assert found["goal"]["recall"] + found["match"]["recall"] == 1


def test_labels_have_their_numbers_of_documents(model):
    family = model.families["has"]
    assert family.names == model.labels["has"]
    assert dict(zip(family.names, family.counts, strict=True)) == {
        "goal": 40, "match": 40, "soup": 40, "bread": 40, "film": 4,
    }  # fmt: skip


def test_probabilities_are_those_of_table_and_head(model):
    table, head = model.encoder.table.detach().numpy(), model.heads.linear("topic")
    assert table.shape == (len(model.words) + 300, 8)
    for word in ("goal", "日本"):
        _, rows = model.features.subwords(word)
        assert model.vector(word) == pytest.approx(table[rows].mean(0), abs=1e-6)
    expected = head(torch.from_numpy(model.text_vector("goal"))).softmax(0).tolist()
    labels, probabilities = model.predict("goal", k=-1)
    order = [model.labels["topic"].index(label) for label in labels]
    assert probabilities == pytest.approx([expected[i] for i in order], abs=1e-5)

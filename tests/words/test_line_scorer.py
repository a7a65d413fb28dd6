"""Single lines give what many lines together give, in a small part of the time."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mt2st_fast import InputError, train_supervised
from mt2st_fast.fasttext import Classifier
from mt2st_fast.words import bag_scorer
from mt2st_fast.words.line_scorer import MOST_LINES
from tests.training.test_host_work import own_calls

WORDS = ["soup", "warm", "cold", "Österreich", "naïve", "日本", "bread", "host"]
OPTIONS = {
    "words": {},
    "word n-grams": {"word_ngrams": 3, "bucket": 500},
    "character n-grams": {"minn": 2, "maxn": 4, "bucket": 500},
    "both": {"word_ngrams": 2, "minn": 1, "maxn": 3, "bucket": 500},
}
LINES = [
    "soup cold",
    "",
    " \t ",
    "none of these words",
    "\ufeffsoup warm",
    "soup\0warm\rcold\x1cbread\u3000host\u2028warm",
    "Österreich naïve 日本 日本 unseen ünseen",
    "__label__good soup __label__tone__x cold",
    "soup " * 3000 + "cold",
    "x" * 20_000,
]


@pytest.fixture(scope="module", params=OPTIONS)
def model(request, tmp_path_factory):
    rng = np.random.default_rng(5)
    lines = []
    for i in range(120):
        tone = "good" if i % 3 else "bad"
        tags = " ".join(f"__label__tag__{t}" for t in "abc" if rng.random() < 0.5)
        words = " ".join(rng.choice(WORDS, 5))
        lines.append(f"__label__tone__{tone} {tags} {words} {'warm' if i % 3 else 'cold'}")
    path = tmp_path_factory.mktemp("lines") / "lines.txt"
    path.write_text("\n".join(lines), "utf-8")
    return train_supervised(str(path), dim=24, epoch=8, min_count=1, **OPTIONS[request.param])


def together(model, lines, **options):
    """What the lines get among so many that they are computed together."""
    return model.predict([*lines, *["soup"] * (MOST_LINES + 1)], **options)[: len(lines)]


@pytest.mark.parametrize("options", [{}, {"k": -1}, {"k": 2, "threshold": 0.3}, {"k": -1, "threshold": 0.5}])
@pytest.mark.parametrize("family", ["tone", "tag"])
def test_a_line_alone_has_the_labels_and_probabilities_of_many(model, family, options):
    for line, expected in zip(LINES, together(model, LINES, family=family, **options), strict=True):
        labels, probabilities = model.predict(line, family=family, **options)
        assert labels == expected.labels
        assert type(probabilities) is tuple
        np.testing.assert_allclose(probabilities, expected.probabilities, rtol=5e-6)
    assert model.predict(LINES[:3], family=family, **options) == [
        model.predict(line, family=family, **options) for line in LINES[:3]
    ]


def test_bags_are_the_same_and_vectors_up_to_rounding(model):
    for line in LINES:
        ((ids, _),) = model._scorer.bags([line])
        assert model._of_lines._bag(line).tolist() == ids.tolist()
        alone = model._scorer.vectors(ids, np.array([0, len(ids)]))[0].detach().numpy()
        np.testing.assert_allclose(model.text_vector(line), alone, rtol=0, atol=5e-6 * abs(alone).max())
    for word in [*WORDS, "unseen", ""]:
        _, ids = model.features.subwords(word)
        alone = model._scorer.vectors(ids, np.array([0, len(ids)]))[0].detach().numpy()
        np.testing.assert_allclose(model.vector(word), alone, rtol=0, atol=5e-6 * abs(alone).max())


def test_a_lone_surrogate_and_other_texts_are_refused_as_in_a_list(model):
    for text, message in [("soup \ud800", "lone surrogate"), ("a\nb", "line feed"), (b"soup", "bytes")]:
        for call in (model.predict, model.text_vector):
            with pytest.raises(InputError, match=message):
                call(text)


def test_a_changed_model_is_followed(model):
    changed = copy.deepcopy(model)
    before = changed.predict("soup cold")
    with torch.no_grad():
        changed.encoder.table.mul_(-1)
        changed.heads.linear("tone").bias += torch.tensor([0.5, 0.0])
    (expected,) = together(changed, ["soup cold"])
    found = changed.predict("soup cold")
    assert found != before
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=5e-6)
    changed.encoder.register_forward_hook(lambda *_: torch.zeros(1, 24))
    assert changed.text_vector("soup cold").tolist() == [0.0] * 24
    changed.heads.linear("tone").register_forward_hook(lambda *_: torch.tensor([[0.0, 9.0]]))
    assert changed.predict("soup").labels == (changed.labels["tone"][1],)


def test_threads_get_what_one_after_the_other_gets(model):
    lines = [f"{a} {b} new{i % 7}" for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)] * 4
    expected = [model.predict(line, k=-1) for line in lines]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda line: model.predict(line, k=-1), lines)) == expected
    many = [lines[i:] for i in range(8)]
    expected_many = [model.predict(some) for some in many]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(model.predict, many)) == expected_many


def test_a_line_takes_little_of_this_packages_python(model):
    """Not so much as kernels do, of which one call costs more than a line."""
    assert sum(own_calls(lambda: model.predict("soup warm cold host")).values()) <= 60
    assert sum(own_calls(lambda: model.vector("soup")).values()) <= 10


def test_the_first_blocks_of_lines_get_what_later_ones_get(model, monkeypatch):
    wanted = {"tone": (1, 0.0), "tag": (-1, 0.2)}
    blocks = [LINES[:4], [], LINES[4:8], LINES[8:], ["soup"]]
    for most in (0, 6, 4096):
        monkeypatch.setattr(bag_scorer, "FEW_LINES", most)
        for family, (k, threshold) in wanted.items():
            label = model.labeller([family], k, threshold)
            expected = [together(model, block, family=family, k=k, threshold=threshold) for block in blocks]
            for block, predictions in zip(blocks, expected, strict=True):
                found = [row for (choices,) in label(block) for row in zip(*choices, strict=True)]
                assert len(found) == len(block)
                for (labels, shares, count), prediction in zip(found, predictions, strict=True):
                    names = [model.labels[family][c] for c in labels[:count]]
                    assert tuple(names) == prediction.labels
                    np.testing.assert_allclose(shares[:count], prediction.probabilities, rtol=5e-6)
    monkeypatch.setattr(bag_scorer, "FEW_PROBABILITIES", 3)
    assert len(model.labeller(["tone"])(LINES)) == 1


def test_nearest_neighbours_are_searched_in_vectors_that_are_made_once(model):
    classifier = Classifier(model)
    first = classifier.get_nearest_neighbors("soup", 3)
    found = own_calls(lambda: classifier.get_nearest_neighbors("soup", 3))
    assert not found["word_vectors"]
    assert [word for _, word in first] == [
        word for _, word in Classifier(model).get_nearest_neighbors("soup", 3)
    ]
    assert pickle.loads(pickle.dumps(classifier)).get_nearest_neighbors("soup", 3) == first
    changed = classifier.get_input_matrix()
    changed[: len(classifier.words)] = np.random.default_rng(0).random(changed[: len(classifier.words)].shape)
    copied = Classifier(copy.deepcopy(model))
    copied.get_nearest_neighbors("soup", 3)
    copied.set_matrices(changed, copied.get_output_matrix())
    assert copied.get_nearest_neighbors("soup", 3) == Classifier(copied.model).get_nearest_neighbors(
        "soup", 3
    )
    assert copied.get_nearest_neighbors("soup", 3) != first

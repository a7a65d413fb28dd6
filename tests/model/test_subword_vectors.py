"""Vectors of any string, in the vocabulary or not, as the trained encoder has them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mt2st_fast import BagEncoder, SubwordVectors, WindowEncoder
from mt2st_fast.data import Vocabulary, open_data, subword_rows
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment

STEMS = {"sport": ["kick", "sprint", "wrestl", "jump"], "food": ["grill", "roast", "stew", "simmer"]}
ENDINGS = ["", "s", "ed", "ing", "er"]
WORDS, COUNTS = ["walking", "walked", "house", "of", "Rare"], [5, 4, 3, 2, 1]


def make(words=WORDS, counts=COUNTS, kind=BagEncoder, **options):
    """Vectors over a random table, the same for vocabularies that differ in rare words alone."""
    vocabulary = Vocabulary(words, counts)
    table = subword_rows(words, vocabulary.counts, **({"buckets": 500} | options))
    torch.manual_seed(0)
    rows = torch.from_numpy(table.rows)
    return SubwordVectors(vocabulary, table, kind(len(words), 8, rows_of_type=rows, num_rows=table.num_rows))


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("kind", [BagEncoder, WindowEncoder])
def test_types_have_the_vectors_of_the_encoder(kind):
    vectors = make(kind=kind)
    np.testing.assert_array_equal(vectors.vectors(WORDS), vectors.encoder.vectors().numpy())
    np.testing.assert_array_equal(vectors.vector("house"), vectors.encoder.vectors()[2].numpy())


@pytest.mark.parametrize(
    "options", [{}, {"min_n": 3, "max_n": 5}, {"buckets": 0}, {"max_prefix": 0, "shape": False}]
)
@pytest.mark.parametrize("word", ["walks", "Talking", "übung", "a", "", "two words"])
def test_an_unseen_word_has_the_vector_it_would_have_as_a_type_without_counts(word, options):
    as_type = make([*WORDS, word], [*COUNTS, 0], **options)
    vectors = make(**options)
    assert vectors.table.num_rows == as_type.table.num_rows
    expected = as_type.encoder.vectors()[-1].numpy()
    np.testing.assert_array_equal(vectors.vector(word), expected)
    # Beside words of more parts and of fewer.
    np.testing.assert_allclose(vectors.vectors(["extraordinary", word, "of"])[1], expected, atol=1e-6)
    assert expected.any()


def test_no_words_have_no_vectors():
    assert make().vectors([]).shape == (0, 8)


def test_training_moves_unseen_forms_to_their_stems(tmp_path):
    unseen = {stem + "ing": (stem, topic) for topic, stems in STEMS.items() for stem in stems[:2]}
    chance = random.Random(0)
    rows = []
    for i in range(600):
        topic = chance.choice(list(STEMS))
        words = [chance.choice(STEMS[topic]) + chance.choice(ENDINGS) for _ in range(8)]
        # A word that comes once is what <unk> is trained by.
        rows.append(" ".join([*(word for word in words if word not in unseen), f"once{i}"]) + f",{topic}")
    (tmp_path / "documents.csv").write_text("text,topic\n" + "\n".join(rows) + "\n", encoding="utf-8")
    data = f"csv:{tmp_path / 'documents.csv'}"
    splits = open_data(data, "topic", ())
    config = Config(
        data, "topic", (), strategy="stl", epochs=10, batch_size=32, lr=0.02, dim=16, device="cpu"
    )
    experiment = Experiment.prepare(config, splits)
    assert not any(word in splits.vocabulary for word in unseen)

    def nearer_to_its_stem():
        """Cosine to the stem less that to the stems of the other topic."""
        vector, gaps = experiment.vectors.vector, []
        for word, (stem, topic) in unseen.items():
            strangers = [other for names in STEMS if names != topic for other in STEMS[names]]
            to_strangers = np.mean([cosine(vector(word), vector(other)) for other in strangers])
            gaps.append(cosine(vector(word), vector(stem)) - to_strangers)
        return np.mean(gaps)

    before = nearer_to_its_stem()
    experiment.run()
    assert nearer_to_its_stem() > 0.8
    assert nearer_to_its_stem() > 0.4 + before


def test_what_does_not_belong_together_is_refused():
    a, b = make(), make(WORDS[:4], COUNTS[:4], buckets=9)
    with pytest.raises(ValueError, match="the vocabulary has 5 types, but the subwords were made for 4"):
        SubwordVectors(a.vocabulary, b.table, b.encoder)
    with pytest.raises(ValueError, match="the encoder's table has 506 rows, but the subwords need 15"):
        SubwordVectors(b.vocabulary, b.table, a.encoder)

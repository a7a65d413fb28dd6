"""Spans in tagged sentences: those that conlleval finds, in every scheme of tags, and never over a sentence's end."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mt2st_fast import Classification, MultiTaskHeads
from mt2st_fast.data import Corpus, Splits, TargetColumn, Vocabulary
from mt2st_fast.data.corpus import MISSING
from mt2st_fast.serving.scores import scores
from mt2st_fast.serving.spans import SpanScore, are_span_tags, span_score
from mt2st_fast.serving.text_model import Labels


def score(present: str, found: str, missing: tuple[int, ...] = ()) -> SpanScore:
    """Compare taggings given as text, sentences separated by |."""
    sentences = [(a.split(), b.split()) for a, b in zip(present.split("|"), found.split("|"), strict=True)]
    gold, guess = ([tag for pair in sentences for tag in pair[side]] for side in (0, 1))
    tags = sorted({*gold, *guess})
    bounds = np.cumsum([0, *(len(a) for a, _ in sentences)])
    labelled = ~np.isin(np.arange(len(gold)), missing)
    return span_score(
        tags, *(np.array([tags.index(t) for t in side]) for side in (gold, guess)), labelled, bounds
    )


@pytest.mark.parametrize(
    ("tagging", "spans"),
    [
        ("B-NP I-NP O B-NP", 2),
        ("I-NP I-NP O I-NP", 2),  # IOB1
        ("I-NP B-NP I-NP", 2),  # IOB1: B only between spans of one type
        ("B-NP I-VP", 2),  # another type is another span
        ("B-NP E-NP S-NP S-NP", 3),  # IOBES
        ("B-NP L-NP U-NP I-NP", 3),  # BILOU, and a tag that does not follow from the one before
        ("E-NP E-NP", 2),
        ("O O", 0),
        ("B-NP I-NP | I-NP O", 2),  # no span goes over the end of a sentence
        ("B-NP I-NP | | I-NP", 2),  # nor over one without words
    ],
)
def test_spans_are_counted_in_every_scheme(tagging, spans):
    assert score(tagging, tagging) == SpanScore(spans, spans, spans)


def test_a_span_is_right_with_the_same_words_and_type():
    found = score("B-A I-A O B-B | B-A", "B-A O O B-A | B-A")
    assert found == SpanScore(3, 3, 1)
    assert found.figures() == {
        "present": 3, "found": 3, "right": 1, "precision": 1 / 3, "recall": 1 / 3, "f1": pytest.approx(1 / 3),
    }  # fmt: skip


def test_a_word_without_a_label_is_outside_in_both():
    assert score("B-A I-A B-A", "B-A I-A B-A", missing=(1,)) == SpanScore(2, 2, 2)
    none = score("B-A", "B-A", missing=(0,))
    assert none == SpanScore(0, 0, 0)
    assert all(map(math.isnan, (none.f1, none.precision, none.recall)))


def by_hand(sentence):
    """The spans of a sentence as conlleval's script walks over it."""
    spans, start = set(), None
    before, kind_before = "O", ""
    for i, tag in enumerate([*sentence, "O"]):
        place, _, kind = tag.partition("-")
        ends = before != "O" and (place in "OBSU" or before in "ESLU" or kind != kind_before)
        begins = place != "O" and (place in "BSU" or before in "OESLU" or kind != kind_before)
        if ends:
            spans.add((start, i - 1, kind_before))
        if begins:
            start = i
        before, kind_before = place, kind
    return spans


def test_random_taggings_are_scored_as_by_hand():
    chance = random.Random(0)
    tags = ["O", *(f"{place}-{kind}" for place in "BIESLU" for kind in "XY")]
    for _ in range(200):
        pairs = [
            [[chance.choice(tags) for _ in range(n)] for _ in range(2)]
            for n in [chance.randrange(6) for _ in range(4)]
        ]
        present, found = ([by_hand(pair[side]) for pair in pairs] for side in (0, 1))
        expected = SpanScore(
            sum(map(len, present)),
            sum(map(len, found)),
            sum(len(a & b) for a, b in zip(present, found, strict=True)),
        )
        texts = ("|".join(" ".join(pair[side]) for pair in pairs) for side in (0, 1))
        assert score(*texts) == expected


@pytest.mark.parametrize(
    ("classes", "are"),
    [
        (["O", "B-NP", "I-NP"], True),
        (["B-geo-loc", "I-geo-loc"], True),
        (["O"], False),
        ([], False),
        (["NOUN", "O"], False),
        (["B-NP", "I-"], False),
    ],
)
def test_tags_of_spans_are_recognised_by_their_form(classes, are):
    assert are_span_tags(classes) == are


def test_data_without_a_label_has_no_spans():
    tags = ("B-X", "O")
    column = TargetColumn("classes", (), np.full(3, MISSING, np.int64))
    corpus = Corpus(np.zeros(3, np.int32), np.array([0, 3]), {"chunk": column})
    heads = MultiTaskHeads(2, {"chunk": Classification(2)}, "chunk")
    model = SimpleNamespace(
        heads=heads,
        labels={"chunk": Labels("classes", tags)},
        outputs=lambda units, tasks: {"chunk": torch.tensor([[1.0, 0.0]] * 3)},
    )
    splits = Splits(corpus, corpus, corpus, Vocabulary(["w"], np.ones(1, np.int64)), "made up", "chunk")
    (score,) = scores(model, splits, ("test",), ("chunk",))
    assert score.spans == SpanScore(0, 0, 0)

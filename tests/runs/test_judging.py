"""F1 by spans as the metric of a run: on the sentences that are evaluated, of words that have a label."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mt2st_fast import Classification, InputError
from mt2st_fast.data import Corpus, Splits, TargetColumn, Vocabulary
from mt2st_fast.data.corpus import MISSING
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment import Experiment
from mt2st_fast.runs.judging import SPAN_F1, SpanF1, judged_by
from mt2st_fast.serving.spans import span_score

TAGS = ("O", "B-X", "I-X")


def corpus(tags: list[int], bounds: list[int], names: tuple[str, ...] = TAGS, level: str = "token") -> Corpus:
    column = TargetColumn("classes", names, np.array(tags, np.int64))
    return Corpus(np.zeros(bounds[-1], np.int32), np.array(bounds), {"chunk": column}, level)


def splits(of: Corpus) -> Splits:
    return Splits(of, of, of, Vocabulary(["a"], np.ones(1, np.int64)), "made up", "chunk")


def logits(tags: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tags), 3).float()


def test_spans_end_where_the_sentences_of_the_evaluated_corpus_do():
    whole, halves = corpus([1, 2, 2, 2], [0, 4]), corpus([1, 2, 2, 2], [0, 2, 4])
    guess, targets = logits([1, 2, 0, 2]), torch.tensor([1, 2, 2, 2])
    assert SpanF1(TAGS, "chunk", whole)(guess, targets) == 0.0
    # B-X I-X | I-X I-X against B-X I-X | O I-X
    assert SpanF1(TAGS, "chunk", halves)(guess, targets) == 0.5


@pytest.mark.parametrize("metric", [None, SPAN_F1])
def test_test_rows_are_judged_by_their_own_sentences_and_then_development_rows_again(metric):
    dev, test = corpus([1, 2, 2, 2], [0, 4]), corpus([1, 2, 2, 2], [0, 2, 4])
    guess, targets = logits([1, 2, 0, 2]), torch.tensor([1, 2, 2, 2])
    data = Splits(dev, dev, test, Vocabulary(["a"], np.ones(1, np.int64)), "made up", "chunk")
    experiment = Experiment.prepare(Config(metric=metric), data)
    trainer = experiment.trainer
    judges = trainer.metrics
    trainer.evaluate = lambda rows, tasks: {"chunk": trainer.metrics["chunk"](guess, targets)}
    assert experiment.test_span_f1() == 0.5
    assert trainer.metrics is judges
    assert metric is None or judges["chunk"](guess, targets) == 0.0


def test_other_classes_are_not_tested_by_spans():
    data = splits(corpus([1, 2], [0, 2], ("NOUN", "VERB", "DET")))
    assert Experiment.prepare(Config(), data).test_span_f1() is None


def test_words_without_a_label_are_outside():
    of = corpus([1, MISSING, 2], [0, 3])
    metric = SpanF1(TAGS, "chunk", of)
    assert metric(logits([1, 2]), torch.tensor([1, 2])) == 1.0
    labelled = np.array([True, False, True])
    tagging = np.array([1, 0, 2])
    assert span_score(TAGS, tagging, tagging, labelled, of.bounds).present == 2


def test_it_is_for_words_with_tags_of_spans():
    task = Classification(3)
    assert judged_by(SPAN_F1, splits(corpus([1, 2], [0, 2])), task) is task
    assert judged_by("macro_f1", splits(corpus([1, 2], [0, 2])), task).metric == "macro_f1"
    for other in (
        corpus([1, 2], [0, 2], ("NOUN", "VERB", "DET")),
        corpus([1, 2], [0, 1, 2], level="document"),
    ):
        with pytest.raises(
            InputError, match=r"span_f1 is not available for the main task chunk; .*: accuracy, macro_f1$"
        ):
            judged_by(SPAN_F1, splits(other), task)


def test_the_classes_that_are_no_tags_of_spans_are_named():
    with pytest.raises(
        InputError, match=r"chunk, as some of its classes are no tags of spans .*: _, x; available"
    ):
        judged_by(SPAN_F1, splits(corpus([1, 2], [0, 2], ("B-X", "O", "_", "x"))), Classification(4))
    with pytest.raises(InputError, match=r"for the main task chunk; available"):
        judged_by(SPAN_F1, splits(corpus([1, 2], [0, 2], ("O", "Y", "Z"))), Classification(3))

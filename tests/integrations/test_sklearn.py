"""scikit-learn's own tools over our estimators: needs the extra `sklearn`, and is skipped without it."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from scipy.sparse import csr_array
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import validate_data

from mt2st_fast import InputError, MultiTask, SingleTask, Switch
from mt2st_fast.integrations.sklearn import MultiTaskTextClassifier, Word2VecTransformer

NAN = float("nan")
TOPICS = {"sport": "ball goal match team", "food": "soup bread salt oven", "law": "court judge bill vote"}
TONES = {"good": "fine great lovely", "bad": "cold dull awful"}


def made_up(n=120, seed=0):
    """Texts, their topics and their tones; every third has no tone."""
    draw = random.Random(seed)
    texts, topics, tones = [], [], []
    for i in range(n):
        topic, tone = draw.choice([*TOPICS]), draw.choice([*TONES])
        words = [draw.choice(f"{TOPICS[topic]} {TONES[tone]} the a was".split()) for _ in range(9)]
        texts.append(" ".join([*words, draw.choice(TOPICS[topic].split()), draw.choice(TONES[tone].split())]))
        topics.append(topic)
        tones.append(tone if i % 3 else None)
    return texts, topics, tones


TEXTS, TOPIC_OF, TONE_OF = made_up()
BOTH = {"topic": TOPIC_OF, "tone": TONE_OF}


def small(**options):
    return MultiTaskTextClassifier(
        **{"dim": 8, "epoch": 15, "lr": 0.5, "random_state": 0, "device": "cpu"} | options
    )


# --- scikit-learn's checks --------------------------------------------------------------------------------


class _OverNumbers:
    """The estimator with every number of a row as a word, "3=-2": for the checks, which know no texts."""

    def fit(self, X, y=None):
        validate_data(self, X, dtype=np.float64)
        return super().fit(X, y)

    def _rows(self, X):
        numbers = validate_data(self, X, reset=False, dtype=np.float64)
        return [[f"{column}={round(value)}" for column, value in enumerate(row)] for row in numbers.tolist()]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        return tags


class ClassifierOverNumbers(_OverNumbers, MultiTaskTextClassifier):
    pass


class TransformerOverNumbers(_OverNumbers, Word2VecTransformer):
    pass


def expected_failures(estimator):
    if isinstance(estimator, ClassifierOverNumbers):
        return {"check_supervised_y_2d": "a y of two axes is a column a task: nothing to warn of"}
    return {}


@parametrize_with_checks(
    [
        ClassifierOverNumbers(dim=8, epoch=20, random_state=0),
        TransformerOverNumbers(vector_size=4, min_count=1, random_state=0),
    ],
    expected_failed_checks=expected_failures,
    xfail_strict=True,
)
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("estimator", [MultiTaskTextClassifier(), Word2VecTransformer()])
def test_of_texts_themselves_the_checks_know_only_copies(estimator):
    with pytest.warns(SkipTestWarning, match="string=True"):
        results = check_estimator(estimator)
    assert [result["check_name"] for result in results] == ["check_estimator_cloneable"]


# --- the classifier ---------------------------------------------------------------------------------------


def test_a_classifier_learns_every_task_and_says_so_by_its_classes():
    model = small(schedule=Switch(at=0.8)).fit(TEXTS, BOTH)
    others, topics, tones = made_up(60, seed=1)
    assert model.classes_.tolist() == ["food", "law", "sport"]
    assert model.task_classes_["tone"].tolist() == ["bad", "good"]
    assert model.score(others, topics) > 0.9
    told = np.array([tone is not None for tone in tones])
    assert (model.predict(others, "tone") == np.array(tones))[told].mean() > 0.9
    probabilities = model.predict_proba(others)
    assert probabilities.shape == (60, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(others)).all()
    assert model.model_.predict(others[0], k=-1).probabilities[0] == pytest.approx(probabilities[0].max())


def test_a_step_is_the_one_kernel_call_of_train_supervised():
    (both, alone) = small(schedule=Switch(at=0.5)).fit(TEXTS, BOTH).model_.history.phases
    assert (both.active, alone.active) == (("topic", "tone"), ("topic",))
    assert both.engine == alone.engine == small().fit(TEXTS, TOPIC_OF).model_.history.phases[0].engine
    assert "one" in both.engine


def as_frame(y):
    return pytest.importorskip("pandas").DataFrame(y)


def as_array(y):
    return np.array([*map(list, zip(*y.values(), strict=True))], object)


@pytest.mark.parametrize("shape", [dict, as_frame, as_array])
def test_labels_of_several_tasks_come_in_three_shapes(shape):
    y = shape(BOTH)
    expected = small().fit(TEXTS, BOTH)
    model = small().fit(TEXTS, y)
    assert (model.predict_proba(TEXTS) == expected.predict_proba(TEXTS)).all()
    assert model.score(TEXTS, y) == expected.score(TEXTS, TOPIC_OF) > 0.9
    tone = [*model.task_classes_][1]
    by_tone = small(main=tone).fit(TEXTS, y)
    assert by_tone.main_ == tone
    assert by_tone.classes_.tolist() == ["bad", "good"]


def test_what_is_missing_is_not_learnt_and_not_scored():
    topics = [topic if i % 2 else None for i, topic in enumerate(TOPIC_OF)]
    model = small().fit(TEXTS, topics)
    assert model.classes_.tolist() == ["food", "law", "sport"]
    right = model.predict(TEXTS) == np.array(TOPIC_OF)
    assert model.score(TEXTS, topics) == pytest.approx(right[1::2].mean())
    weights = np.arange(len(TEXTS))
    expected = np.average(right[1::2], weights=weights[1::2])
    assert model.score(TEXTS, topics, weights) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "classes", "dtype"),
    [
        ([2, 10, 2, 10], [2, 10], np.integer),
        (np.array([1.0, NAN, 3.0, 1.0]), [1.0, 3.0], np.floating),
        ([True, False, None, True], [False, True], np.bool),
        (np.array(["b", "a", "b", "a"]), ["a", "b"], np.str_),
        ([5, 5, 5, 5], [5], np.integer),
    ],
)
def test_classes_are_of_the_type_of_the_labels(labels, classes, dtype):
    model = small().fit(["soup salt", "goal ball", "soup oven", "ball team"], labels)
    assert model.classes_.tolist() == classes
    assert np.issubdtype(model.classes_.dtype, dtype)
    assert np.issubdtype(model.predict(["soup"]).dtype, dtype)


class Nullable:
    """Whole numbers of which some are missing, as columns of pandas and polars are to NumPy."""

    dtype = "Int64"

    def __array__(self, dtype=None, copy=None):
        return np.array([2, 10, None, 10], float if dtype is None else dtype)


@pytest.mark.parametrize("of_pandas", [False, True])
def test_whole_numbers_stay_whole_where_some_are_missing(of_pandas):
    labels = Nullable()
    if of_pandas:
        labels = pytest.importorskip("pandas").Series([2, 10, None, 10], dtype="Int64")
    model = small().fit(["soup salt", "goal ball", "soup oven", "ball team"], labels)
    assert model.classes_.tolist() == [2, 10]
    assert model.classes_.dtype.kind == "i"
    assert model.model_.labels["label"] == ("2", "10")


def test_texts_may_have_lines_no_word_and_words_of_ones_own():
    model = small(tokenizer=str.splitlines).fit(["a b\nc", "c", "d e\nf", "f"], [0, 0, 1, 1])
    assert model.model_.words == ["c", "f", "a b", "d e"]
    assert (model.predict_proba([["a b", "c"]]) == model.predict_proba(["a b\nc"])).all()
    assert np.isfinite(model.predict_proba(["", "unseen"])).all()


def test_one_random_state_is_one_model_and_torchs_own_numbers_stay():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (small(random_state=seed, dropout=0.2).fit(TEXTS, BOTH) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert (first.predict_proba(TEXTS) == again.predict_proba(TEXTS)).all()
    assert (first.predict_proba(TEXTS) != other.predict_proba(TEXTS)).any()
    drawn = small(random_state=np.random.RandomState(1), dropout=0.2).fit(TEXTS, BOTH)
    assert (drawn.predict_proba(TEXTS) == first.predict_proba(TEXTS)).all()


def test_a_classifier_is_copied_and_kept():
    model = small(schedule=Switch(at=0.5), word_ngrams=2).fit(TEXTS, BOTH)
    fresh = clone(model)
    assert fresh.get_params()["word_ngrams"] == 2
    assert fresh.get_params()["schedule"] == Switch(at=0.5)
    with pytest.raises(NotFittedError):
        fresh.predict(TEXTS)
    with pytest.raises(NotFittedError):
        fresh.score(TEXTS, TOPIC_OF)
    kept = pickle.loads(pickle.dumps(model))
    assert (kept.predict_proba(TEXTS) == model.predict_proba(TEXTS)).all()
    assert (
        fresh.set_params(word_ngrams=1).fit(TEXTS, BOTH).predict(TEXTS) == np.array(TOPIC_OF)
    ).mean() > 0.9


def test_searches_and_cross_validation_go_over_it():
    scores = cross_val_score(small(), TEXTS, TOPIC_OF, cv=2)
    assert scores.min() > 0.8
    grid = {"schedule": [MultiTask(), SingleTask()], "lr": [0.001, 0.5]}
    search = GridSearchCV(small(), grid, cv=KFold(2)).fit(TEXTS, as_array(BOTH))
    assert search.best_params_["lr"] == 0.5
    assert search.predict(["soup bread"]).tolist() == ["food"]
    lowered = make_pipeline(_Lower(), small()).fit([text.upper() for text in TEXTS], TOPIC_OF)
    assert lowered.score([text.title() for text in TEXTS], TOPIC_OF) > 0.9


def test_cross_validation_goes_over_data_frames():
    assert cross_val_score(small(), TEXTS, as_frame(BOTH), cv=KFold(2)).min() > 0.8
    with pytest.raises(InputError, match=r"not one DataFrame; pass one of its columns, such as X\['text'\]"):
        small().fit(as_frame({"text": TEXTS}), TOPIC_OF)


class _Lower(Word2VecTransformer):
    """A step before: texts in, texts out."""

    def fit(self, X, y=None):
        self.model_ = None
        return self

    def transform(self, X):
        return [text.lower() for text in X]


@pytest.mark.parametrize(
    ("X", "y", "options", "message"),
    [
        ("one text", ["a"], {}, "X must be texts, not one str; pass a list of strings"),
        ([1.5, 2.5], ["a", "b"], {}, r"row 0 of X is not a text but 1.5 \(float\); pass strings, or lists of words"),
        (["a", None], ["a", "b"], {}, r"row 1 of X is not a text but None \(NoneType\)"),
        (np.zeros((2, 3)), ["a", "b"], {}, r"row 0 of X has a word that is not a string but .*0\.0.* \(float64\)"),
        ([], [], {}, "X has no texts; pass at least 1"),
        (np.array([["x"], ["y z"]]), ["a", "b"], {}, r"row 1 has blanks in it \('y z'\), so X is a column of texts"),
        ([["x y"], ("z",)], ["a", "b"], {}, r"pass the strings, X\[:, 0\] of an array"),
        (["", " "], ["a", "b"], {}, "the text has no words besides its labels"),
        (["x", "y"], ["a"], {}, r"y has labels for label of shape \(1,\) for 2 texts; pass one label per text"),
        (["x", "y"], None, {}, "requires y to be passed, but the target y is None"),
        (["x", "y"], {"t": ["a", "b"], "u": [None, NAN]}, {}, "the column u of y has no label; leave it out"),
        (["x", "y"], ["a", 1], {}, "the column label of y mixes strings and numbers"),
        (["x", "y"], [["a"], ["b", "c"]], {}, r"a label of the column label of y is \['a'\] \(list\)"),
        (["x", "y"], {"t": [("a",), ("b", "c")]}, {}, r"a label of the column t of y is \('a',\) \(tuple\)"),
        (["x", "y"], [0.5, 1.25], {}, "Unknown label type: continuous"),
        (["x", "y"], [1.0, np.inf], {}, "Input contains infinity: the column label of y has a label that is inf"),
        (["x", "y"], [1.0, -np.inf], {}, "Input contains infinity: the column label of y has a label that is -inf"),
        (["x", "y"], {}, {}, "y has no columns; pass one per task"),
        (["x", "y"], {1: [0, 1], "1": [1, 0]}, {}, "y has 2 columns named 1; rename all but one"),
        (["x", "y"], csr_array(np.eye(2)), {}, "y is sparse, and a task has one column of classes"),
        (["x", "y"], {"t": [0, 1]}, {"main": "u"}, "main is 'u', but y has no such column; available: t"),
        (["x", "y"], [0, 1], {"dim": 0}, "dim must be a whole number of at least 1, not 0"),
        (["x", "y"], [0, 1], {"minn": 3}, r"minn \(3\) and maxn \(0\) must satisfy 0 <= minn <= maxn"),
        (["x", "y"], [0, 1], {"tokenizer": list, "min_count": 9}, "no word occurs at least 9 times"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(X, y, options, message):
    with pytest.raises(ValueError, match=message):
        small(**options).fit(X, y)


def test_a_column_of_an_array_is_named_by_its_number():
    labels = np.array([["a", "x"], ["b", "y"]] * (len(TEXTS) // 2))
    model = small(epoch=1, main=1).fit(TEXTS, labels)
    assert (model.predict(TEXTS, task=1) == model.predict(TEXTS, task="1")).all()
    assert set(model.predict(TEXTS, task=0)) <= {"a", "b"}
    with pytest.raises(InputError, match="no task 2; available: 1, 0"):
        model.predict(TEXTS, task=2)


def test_what_a_fitted_classifier_does_not_know_is_named():
    model = small(epoch=1).fit(TEXTS, BOTH)
    with pytest.raises(InputError, match="no task 'style'; available: topic, tone"):
        model.predict(TEXTS, "style")
    with pytest.raises(
        InputError, match="y has no column topic, which is the main task; available: tone, style"
    ):
        model.score(TEXTS, {"tone": TONE_OF, "style": TONE_OF})
    with pytest.raises(InputError, match="the column label of y has no label to compare with"):
        model.score(TEXTS[:2], [None, None])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.score(TEXTS, TOPIC_OF, sample_weight=[1] * 3)


# --- word vectors -----------------------------------------------------------------------------------------


def test_texts_become_the_means_of_their_words_vectors():
    step = Word2VecTransformer(vector_size=6, min_count=2, epochs=2, random_state=0)
    made = step.fit_transform([*TEXTS, "seldom"])
    assert made.shape == (len(TEXTS) + 1, 6)
    assert made.dtype == np.float32
    model = step.model_
    for text, row in zip(TEXTS[:5], made, strict=False):
        np.testing.assert_allclose(row, np.mean([model.vector(w) for w in text.split()], 0), rtol=1e-5)
    assert not made[-1].any()
    assert (step.transform([text.split() for text in TEXTS]) == made[:-1]).all()
    np.testing.assert_allclose(step.transform(["soup seldom", ""]), [model.vector("soup"), np.zeros(6)])
    assert step.get_feature_names_out().tolist() == [f"word2vectransformer{i}" for i in range(6)]


def test_words_that_training_never_saw_have_vectors_with_character_n_grams():
    step = Word2VecTransformer(
        vector_size=6, min_count=2, epochs=1, min_n=3, max_n=4, bucket=100, random_state=0
    )
    step.fit(TEXTS)
    made = step.transform(["soups soup", "x", ""])
    expected = (step.model_.vector("soups") + step.model_.vector("soup")) / 2
    np.testing.assert_allclose(made[0], expected, rtol=1e-5)
    assert made[1].any() == bool(len("<x>") >= 3)
    assert not made[2].any()
    short = Word2VecTransformer(vector_size=4, min_count=1, min_n=5, max_n=5, bucket=10).fit(TEXTS)
    assert not short.transform(["q"]).any()


def test_word_vectors_are_a_step_of_a_pipeline_and_are_kept():
    steps = make_pipeline(
        Word2VecTransformer(vector_size=16, min_count=1, epochs=60, random_state=0),
        LogisticRegression(C=1e3, max_iter=2000),
    )
    steps.fit(TEXTS, TOPIC_OF)
    others, topics, _ = made_up(60, seed=1)
    assert steps.score(others, topics) > 0.6  # a third is right by chance
    again = clone(steps).fit(TEXTS, TOPIC_OF)
    kept = pickle.loads(pickle.dumps(steps))
    assert (again[0].transform(others) == steps[0].transform(others)).all()
    assert (kept.predict_proba(others) == steps.predict_proba(others)).all()


def test_what_word_vectors_cannot_be_made_of_is_named():
    with pytest.raises(InputError, match=r"row 0 of X is not a text but 3 \(int\)"):
        Word2VecTransformer().fit([3])
    with pytest.raises(ValueError, match="the text has no words"):
        Word2VecTransformer().fit(["", ""])
    with pytest.raises(InputError, match="window must be a whole number of at least 1, not 0"):
        Word2VecTransformer(window=0).fit(TEXTS)
    with pytest.raises(NotFittedError):
        Word2VecTransformer().transform(TEXTS)


def test_a_task_that_was_never_trained_is_none():
    model = small(main="topic", schedule=SingleTask(), epoch=1).fit(TEXTS, BOTH)
    assert list(model.task_classes_) == ["topic"]
    with pytest.raises(InputError, match="no task 'tone'; available: topic"):
        model.predict(TEXTS, task="tone")

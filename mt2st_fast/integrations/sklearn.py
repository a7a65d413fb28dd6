"""scikit-learn estimators: a text classifier with auxiliary labels, and a transformer of texts to word vectors.

The classifier is used by itself, and the transformer as a step before another estimator:

    classifier = MultiTaskTextClassifier(main="topic", schedule=Switch(at=0.6), word_ngrams=2, random_state=0)
    classifier.fit(frame["text"], frame[["topic", "tone", "author"]])      # labels may be missing anywhere
    classifier.predict(["the soup was cold"])                              # of the main task

    make_pipeline(Word2VecTransformer(vector_size=50), LogisticRegression()).fit(texts, labels)
"""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted
from torch.nn.functional import embedding_bag

from mt2st_fast.data.corpus import TargetColumn
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.errors import InputError
from mt2st_fast.integrations.label_columns import LabelColumn, columns_of, known_labels, main_of, numbered
from mt2st_fast.integrations.rows_of_words import Tokenizer, rows_of_words
from mt2st_fast.training.schedules import Schedule
from mt2st_fast.words.bag_scorer import BagScorer
from mt2st_fast.words.bag_training import BagOptions, train_bags
from mt2st_fast.words.word2vec import Word2Vec

__all__ = ["MultiTaskTextClassifier", "Word2VecTransformer"]

MOST_SEED = 2**31 - 1


class MultiTaskTextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifies texts by bags of words and n-grams, trained with auxiliary labels that a schedule may retire.

    Options are those of `mt2st_fast.train_supervised`. main: the column of y to optimize for, by default the first.
    tokenizer: a function from a text to its words, which by default are separated by blanks. random_state: a number
    makes fits reproducible, bit for bit on a CPU.

    Fitted attributes: `classes_` of the main task, `task_classes_` of every task that was trained, `main_`, and
    `model_`, a SupervisedModel, which can be saved, exported and asked for vectors; its labels are the classes as
    strings.

    y: labels (N,); or labels of several tasks as a data frame, an array (N, tasks), or {task: (N,)}, in which None and
    NaN mark missing labels. Cross-validation indexes the rows of y, so it needs another form than a dictionary and, if
    labels are missing, a splitter such as cv=KFold(5) instead of a number.
    """

    def __init__(
        self,
        *,
        main: str | int | None = None,
        dim: int = 100,
        epoch: float = 5,
        lr: float | None = None,
        min_count: int = 1,
        word_ngrams: int = 1,
        bucket: int = 200_000,
        minn: int = 0,
        maxn: int = 0,
        schedule: Schedule | None = None,
        batch_size: int | None = None,
        dropout: float = 0.0,
        tokenizer: Tokenizer | None = None,
        threads: int | None = None,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.main, self.dim, self.epoch, self.lr = main, dim, epoch, lr
        self.min_count, self.word_ngrams, self.bucket, self.minn, self.maxn = (
            min_count, word_ngrams, bucket, minn, maxn,
        )  # fmt: skip
        self.schedule, self.batch_size, self.dropout = schedule, batch_size, dropout
        self.tokenizer, self.threads, self.device = tokenizer, threads, device
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train on texts and labels. Raises InputError, a ValueError that names row or column, for input that cannot be
        used.
        """
        given = self.get_params(deep=False)
        for name in ("main", "tokenizer", "random_state"):
            del given[name]
        given["schedule"] = copy.deepcopy(self.schedule)  # a schedule may have state
        options = BagOptions(**given, seed=check_random_state(self.random_state).randint(MOST_SEED))
        rows = self._rows(X)
        columns = columns_of(y, len(rows))
        main = main_of(columns, self.main)
        tasks = {name: numbered(name, columns[name]) for name in dict.fromkeys([main, *columns])}
        targets = {name: _target(task) for name, task in tasks.items()}
        self.model_ = train_bags(Tokens.of(rows), targets, options)
        self.main_ = main
        self.task_classes_ = {name: tasks[name].classes for name in self.model_.labels}
        self.classes_ = self.task_classes_[main]
        return self

    def predict(self, X: Any, task: str | int | None = None) -> np.ndarray:
        """Return the likeliest class of every text (N,); task: the main one by default."""
        check_is_fitted(self)
        return self._predicted(self._rows(X), self._known(task))

    def predict_proba(self, X: Any, task: str | int | None = None) -> np.ndarray:
        """Return float64 probabilities (N, C), in the order of the task's classes."""
        check_is_fitted(self)
        return self._probabilities(self._rows(X), self._known(task))

    def _predicted(self, rows: list[list[str]], task: str) -> np.ndarray:
        return self.task_classes_[task][self._probabilities(rows, task).argmax(1)]  # type: ignore[no-any-return]

    @torch.no_grad()
    def _probabilities(self, rows: list[list[str]], task: str) -> np.ndarray:
        model = self.model_
        bags = model.features.bags(Tokens.of(rows))
        scorer = BagScorer(model.features, model.encoder, model.heads, model.prefix)
        found = torch.cat([*scorer.probabilities(*bags, task)]).double()
        return (found / found.sum(1, keepdim=True)).cpu().numpy()

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the main task's accuracy over the texts that have its label; y as in `fit`, or its labels alone."""
        check_is_fitted(self)
        rows = self._rows(X)
        columns = columns_of(y, len(rows))
        main = self.main_ if self.main_ in columns else main_of(columns, None)
        if len(columns) > 1 and main != self.main_:
            raise InputError(
                f"y has no column {self.main_}, which is the main task; available: {', '.join(columns)}"
            )
        check_consistent_length(rows, sample_weight)
        known, labels = known_labels(main, columns[main])
        weights = None if sample_weight is None else np.asarray(sample_weight)[known]
        kept = [row for row, labelled in zip(rows, known, strict=True) if labelled]
        return float(accuracy_score(labels, self._predicted(kept, self.main_), sample_weight=weights))

    def _rows(self, X: Any) -> list[list[str]]:
        return rows_of_words(X, self.tokenizer)

    def _known(self, task: str | int | None) -> str:
        # The tasks of an array are named by the numbers of their columns.
        name = self.main_ if task is None else str(task)
        if name not in self.task_classes_:
            raise InputError(f"no task {task!r}; available: {', '.join(self.task_classes_)}")
        return name

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags


class Word2VecTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns a text into the mean of its words' vectors, which are learned from the texts that it is fitted on.

    Options are those of `mt2st_fast.Word2Vec`, that is, gensim's. X: strings, which the tokenizer (by default at
    blanks) splits into words, or lists of words. A text without known words becomes a vector of zeros; with max_n > 0,
    words not seen in training have vectors as well.

    Fitted attribute: `model_`, a Word2Vec.
    """

    def __init__(
        self,
        *,
        vector_size: int = 100,
        alpha: float = 0.025,
        window: int = 5,
        min_count: int = 5,
        sample: float = 1e-3,
        sg: int = 0,
        hs: int = 0,
        negative: int = 5,
        epochs: int = 5,
        min_n: int = 0,
        max_n: int = 0,
        bucket: int = 2_000_000,
        workers: int = 2,
        tokenizer: Tokenizer | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.vector_size, self.alpha, self.window, self.min_count = vector_size, alpha, window, min_count
        self.sample, self.sg, self.hs, self.negative, self.epochs = sample, sg, hs, negative, epochs
        self.min_n, self.max_n, self.bucket, self.workers = min_n, max_n, bucket, workers
        self.tokenizer, self.random_state = tokenizer, random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn vectors from texts; y is ignored. Raises InputError, a ValueError, for input that cannot be used."""
        del y
        options = self.get_params(deep=False)
        del options["tokenizer"], options["random_state"]
        seed = check_random_state(self.random_state).randint(MOST_SEED)
        self.model_ = Word2Vec(self._rows(X), seed=seed, **options)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the mean vectors (N, vector_size) float32."""
        check_is_fitted(self)
        ids, bounds, table = _in_vectors(self.model_, Tokens.of(self._rows(X)))
        means = embedding_bag(
            torch.from_numpy(ids), torch.from_numpy(table), torch.from_numpy(bounds[:-1]), mode="mean"
        )
        return means.numpy()

    def _rows(self, X: Any) -> list[list[str]]:
        return rows_of_words(X, self.tokenizer)

    @property
    def _n_features_out(self) -> int:
        """The number of features, for get_feature_names_out."""
        return int(self.model_.vector_size)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags


def _target(task: LabelColumn) -> TargetColumn:
    return TargetColumn("classes", tuple(str(name) for name in task.classes), task.numbers)


def _in_vectors(model: Word2Vec, text: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (ids int64 (T,), bounds (N + 1,), table): the text as rows of a table of vectors, without words that have
    none.
    """
    own = text.vocabulary
    row_of_word, table = model.tables.vocabulary.lookup(own.words), model.vectors
    if model.max_n:
        found = {
            t: vector for t, word in enumerate(own.words) if (vector := _vector(model, word)) is not None
        }
        row_of_word = np.full(len(own), -1)
        row_of_word[list(found)] = np.arange(len(found))
        table = np.stack([*found.values()]) if found else table[:1]
    rows = row_of_word[text.ids].astype(np.int64)
    known = rows >= 0
    return rows[known], np.append(0, np.cumsum(known))[text.bounds], table


def _vector(model: Word2Vec, word: str) -> np.ndarray | None:
    try:
        return model.vector(word)
    except KeyError:  # too short for an n-gram
        return None

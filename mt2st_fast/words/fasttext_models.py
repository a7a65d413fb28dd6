"""Models with the methods, shapes and label names of fastText's Python module.

Each wraps one of our models, `model`: a SupervisedModel whose labels are whole, or a Word2Vec.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from mt2st_fast.data.character_ngrams import ngram_hash
from mt2st_fast.data.text.decoding import MARK
from mt2st_fast.errors import InputError
from mt2st_fast.words.bag_scorer import check_choice
from mt2st_fast.words.cosines import nearest_rows, unit_rows
from mt2st_fast.words.gensim_errors import NoSuchNameError
from mt2st_fast.words.supervised_model import SupervisedModel
from mt2st_fast.words.word2vec import Word2Vec

# Name of fastText's: why it is not available here, and what to do instead.
REFUSED = {
    "get_meter": "there are no precision-recall curves; test_label returns precision, recall and F1 of every label",
    "set_args": "pass arguments to train_supervised or train_unsupervised; they are saved with the model",
    "f": "it is fastText's C++ object; use `model`, the model behind these methods",
}

# Options of a training, which fastText keeps as attributes of the model, until it is saved.
OPTIONS = (
    "lr", "dim", "ws", "epoch", "minCount", "minCountLabel", "minn", "maxn", "neg", "wordNgrams", "loss", "bucket",
    "thread", "lrUpdateRate", "t", "label", "verbose", "pretrainedVectors",
)  # fmt: skip
REFUSED |= dict.fromkeys(OPTIONS, "a model does not show the options of its training; keep them yourself")
REFUSED["dim"] = "use get_dimension()"

_UNKNOWN = "it did not occur in training, and no n-grams were trained"


class FastTextModel(ABC):
    """What both kinds of models have in common. Words and labels are lists, vectors are float32 (dim,).

    `on_unicode_error` arguments have no effect: text is UTF-8, which is checked when it is read. Names that are not
    supported raise InputError, which is also an AttributeError.
    """

    model: SupervisedModel | Word2Vec
    _label_prefix = "__label__"

    def __getattr__(self, name: str) -> NoReturn:
        if name in REFUSED:
            raise NoSuchNameError(f"{name}: {REFUSED[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __getitem__(self, word: str) -> np.ndarray:
        return self.get_word_vector(word)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.get_word_id(word) >= 0

    @property
    def words(self) -> list[str]:
        """The words that have a vector of their own, the most frequent first."""
        return list(self.model.words)

    @property
    def labels(self) -> list[str]:
        """The labels, with their prefix; for word vectors the words, as in fastText."""
        return self.words

    def get_words(
        self, include_freq: bool = False, on_unicode_error: str = "strict"
    ) -> list[str] | tuple[list[str], np.ndarray]:
        """Return `words`; with include_freq also how often training saw each, int64."""
        return (self.words, self._counts().copy()) if include_freq else self.words

    def get_labels(
        self, include_freq: bool = False, on_unicode_error: str = "strict"
    ) -> list[str] | tuple[list[str], np.ndarray]:
        """Return `labels`; with include_freq also how often training saw each, int64."""
        return self.get_words(include_freq)

    def get_line(self, text: str | list[str], on_unicode_error: str = "strict") -> Any:
        """Return (words, labels) of a line; for a list (words of each, labels of each)."""
        if isinstance(text, list):
            lines = [self.get_line(line) for line in text]
            return [words for words, _ in lines], [labels for _, labels in lines]
        fields = words_of(_of_a_line(text))
        labels = [field for field in fields if field.startswith(self._label_prefix)]
        return [field for field in fields if not field.startswith(self._label_prefix)], labels

    def get_dimension(self) -> int:
        """Return the length of a vector."""
        return self.get_input_matrix().shape[1]

    @abstractmethod
    def get_word_id(self, word: str) -> int:
        """Return the row of a word, -1 for a word that training did not see."""

    @abstractmethod
    def get_word_vector(self, word: str) -> np.ndarray:
        """Return the vector of any string: the mean of its own row, if any, and of its n-grams' rows; zeros if it has
        neither.
        """

    @abstractmethod
    def get_subwords(self, word: str, on_unicode_error: str = "strict") -> tuple[list[str], np.ndarray]:
        """Return the word itself, if training saw it, and its character n-grams; and their rows."""

    @abstractmethod
    def get_subword_id(self, subword: str) -> int:
        """Return the row of a character n-gram. Raises InputError for a model without n-grams."""

    @abstractmethod
    def get_input_matrix(self) -> np.ndarray:
        """Return the input matrix, float32 (words and buckets, dim)."""

    @abstractmethod
    def get_output_matrix(self) -> np.ndarray:
        """Return the output matrix, float32 (labels, dim), or (words, dim) for word vectors."""

    def set_matrices(self, input_matrix: np.ndarray, output_matrix: np.ndarray) -> None:
        """Replace the numbers of both matrices. Raises InputError for another shape, and for NaN and infinity."""
        before = self.get_input_matrix(), self.get_output_matrix()
        for name, old, new in zip(("input", "output"), before, (input_matrix, output_matrix), strict=True):
            if np.shape(new) != old.shape:
                raise InputError(f"the {name} matrix is {old.shape}, not {np.shape(new)}")
            if not np.isfinite(new).all():
                raise InputError(f"the {name} matrix has numbers that are not finite; replace them")
        # Copies: torch warns of arrays that are read-only.
        self._set_matrices(np.array(input_matrix, np.float32), np.array(output_matrix, np.float32))

    def get_input_vector(self, ind: int) -> np.ndarray:
        """Return a row of the input matrix."""
        return self.get_input_matrix()[ind]

    @abstractmethod
    def get_sentence_vector(self, text: str) -> np.ndarray:
        """Return the mean of the vectors of a line's words. Raises InputError for a text with a line feed."""

    def get_nearest_neighbors(
        self, word: str, k: int = 10, on_unicode_error: str = "strict"
    ) -> list[tuple[float, str]]:
        """Return (cosine, word) of the k words nearest to any string, the nearest first. Raises InputError for k below
        1.
        """
        return self._nearest(self.get_word_vector(word), k, {word}, f"{word!r} has no vector: {_UNKNOWN}")

    def get_analogies(
        self, wordA: str, wordB: str, wordC: str, k: int = 10, on_unicode_error: str = "strict"
    ) -> list[tuple[float, str]]:
        """Return (cosine, word) of the k words nearest to A - B + C of unit vectors, without A, B and C themselves."""
        for word in (wordA, wordB, wordC):
            if not self.get_word_vector(word).any():
                raise InputError(f"{word!r} has no vector: {_UNKNOWN}")
        a, b, c = (unit_rows(self.get_word_vector(word)) for word in (wordA, wordB, wordC))
        return self._nearest(
            a - b + c, k, {wordA, wordB, wordC}, "the analogy is undefined because its vectors cancel out"
        )

    def is_quantized(self) -> bool:
        """Always False."""
        return False

    def quantize(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: raises InputError."""
        raise InputError(
            "quantize: not supported, tables stay float32; for a smaller model, use a smaller bucket= or dim=, or "
            "a larger minCount=")  # fmt: skip

    def save_model(self, path: str | Path) -> None:
        """Write a folder that `load_model` reads. Raises InputError for a folder that holds something else."""
        self.model.save(path)

    @abstractmethod
    def _counts(self) -> np.ndarray:
        """Return how often training saw each word, int64 (words,)."""

    @abstractmethod
    def _set_matrices(self, inputs: np.ndarray, outputs: np.ndarray) -> None:
        """Replace the numbers of both matrices, whose shapes have been checked."""

    @abstractmethod
    def _word_vectors(self) -> np.ndarray:
        """Return the vectors of the words, float32 (words, dim)."""

    def _nearest(self, query: np.ndarray, k: int, banned: set[str], nothing: str) -> list[tuple[float, str]]:
        check_choice(k, 0.0)
        if not query.any():
            raise InputError(nothing)
        rows = {row for row in map(self.get_word_id, banned) if row >= 0}
        words, unit_vd = self.model.words, self._unit_vectors()
        return [(cosine, words[row]) for row, cosine in nearest_rows(unit_rows(query), unit_vd, k, rows)]

    def _unit_vectors(self) -> np.ndarray:
        """Return the vectors of the words, each scaled to length 1."""
        return unit_rows(self._word_vectors())


class Classifier(FastTextModel):
    """A SupervisedModel with fastText's shapes."""

    # Unit vectors of the words, and what they were made of: a table and its version.
    _units: tuple[torch.Tensor, int, np.ndarray] | None = None

    def __init__(self, model: SupervisedModel) -> None:
        self.model: SupervisedModel = model
        self._label_prefix = model.prefix

    @property
    def labels(self) -> list[str]:
        """The labels, with their prefix."""
        return [self._prefix + name for name in self.model.labels[self.model.main]]

    @property
    def _prefix(self) -> str:
        return self.model.prefix_of(self.model.main)

    def get_labels(
        self, include_freq: bool = False, on_unicode_error: str = "strict"
    ) -> list[str] | tuple[list[str], np.ndarray]:
        """Return `labels`; with include_freq also how many documents each had, int64."""
        counts = self.model.families[self.model.main].counts
        return (self.labels, np.array(counts, np.int64)) if include_freq else self.labels

    def get_label_id(self, label: str) -> int:
        """Return the number of a label, -1 for a label that training did not see."""
        names = self.model.labels[self.model.main]
        name = label.removeprefix(self._prefix)
        return names.index(name) if label.startswith(self._prefix) and name in names else -1

    def predict(
        self, text: str | list[str], k: int = 1, threshold: float = 0.0, on_unicode_error: str = "strict"
    ) -> Any:
        """Return (labels, float64 probabilities) of a line, the likeliest first; for a list, both as lists."""
        if isinstance(text, str):
            labels, shares = self.model.predict(text, k, threshold)
            return tuple(self._prefix + label for label in labels), np.array(shares)
        found = self.model.predict(text, k, threshold)
        return [[self._prefix + label for label in one.labels] for one in found], [
            np.array(one.probabilities) for one in found
        ]

    def test(self, path: str | Path, k: int = 1, threshold: float = 0.0) -> tuple[int, float, float]:
        """Return (documents with a label, precision, recall) of the k likeliest labels of at least `threshold`.

        Labels that training never saw do not count, as in fastText. NaN where nothing is predicted. Raises InputError
        where the file cannot be read.
        """
        counts = self.model.known_label_counts(path, k, threshold)
        return counts.documents, counts.precision, counts.recall

    def test_label(self, path: str | Path, k: int = 1, threshold: float = 0.0) -> dict[str, dict[str, float]]:
        """Return {label: {"precision": ..., "recall": ..., "f1score": ...}} for every label of training, counted as by
        `test`.

        NaN where a number is undefined. Raises as `test` does.
        """
        scores = self.model.known_label_counts(path, k, threshold).scores()
        return {self._prefix + name: of_label for name, of_label in scores.items()}

    def get_word_id(self, word: str) -> int:
        return self.model.features.vocabulary.get(word, -1)

    def get_word_vector(self, word: str) -> np.ndarray:
        return self.model.vector(word)

    def get_subwords(self, word: str, on_unicode_error: str = "strict") -> tuple[list[str], np.ndarray]:
        return self.model.features.subwords(word)

    def get_subword_id(self, subword: str) -> int:
        features = self.model.features
        if not features.buckets:
            raise InputError("this model has no n-grams: train it with minn= and maxn= or with wordNgrams=")
        return len(features.vocabulary) + ngram_hash(subword) % features.buckets

    def get_input_matrix(self) -> np.ndarray:
        return self.model.encoder.table.detach().cpu().numpy().copy()

    def get_output_matrix(self) -> np.ndarray:
        return self.model.heads.linear(self.model.main).weight.detach().cpu().numpy().copy()

    def get_sentence_vector(self, text: str) -> np.ndarray:
        return self.model.text_vector(text)

    def _counts(self) -> np.ndarray:
        return self.model.features.vocabulary.counts

    def _unit_vectors(self) -> np.ndarray:
        # Kept, as in fastText: to make them takes longer than to search them.
        table = self.model.encoder.table
        if self._units is None or self._units[0] is not table or self._units[1] != table._version:
            self._units = table, table._version, super()._unit_vectors()
        return self._units[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_units"}

    @torch.no_grad()
    def _set_matrices(self, inputs: np.ndarray, outputs: np.ndarray) -> None:
        self.model.encoder.table.copy_(torch.from_numpy(inputs))
        self.model.heads.linear(self.model.main).weight.copy_(torch.from_numpy(outputs))

    @torch.no_grad()
    def _word_vectors(self) -> np.ndarray:
        return self.model.word_vectors().numpy()


class Vectors(FastTextModel):
    """A Word2Vec with fastText's shapes."""

    def __init__(self, model: Word2Vec) -> None:
        self.model: Word2Vec = model

    def predict(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: raises InputError, a ValueError like fastText's."""
        raise InputError(
            "this model has word vectors but no labels; train a classifier with train_supervised"
        )

    test = test_label = get_label_id = predict

    def get_word_id(self, word: str) -> int:
        return self.model.tables.vocabulary.get(word, -1)

    def get_word_vector(self, word: str) -> np.ndarray:
        try:
            return self.model.vector(word)
        except KeyError:
            return np.zeros(self.model.vector_size, np.float32)

    def get_subwords(self, word: str, on_unicode_error: str = "strict") -> tuple[list[str], np.ndarray]:
        return self.model.tables.subwords_of(word)

    def get_subword_id(self, subword: str) -> int:
        if not self.model.max_n:
            raise InputError("this model has no n-grams: train it with maxn=6")
        return self.model.tables.ngram_row(subword)

    def get_input_matrix(self) -> np.ndarray:
        return self.model.tables.input_rows.copy()

    def get_output_matrix(self) -> np.ndarray:
        return (self.model.syn1 if self.model.hs else self.model.syn1neg).copy()

    def get_sentence_vector(self, text: str) -> np.ndarray:
        """Return the mean of the words' unit vectors, as fastText does; words whose vector is zero do not count."""
        units = [unit_rows(self.get_word_vector(word)) for word in words_of(_of_a_line(text))]
        units = [unit for unit in units if unit.any()]
        return np.mean(units, 0) if units else np.zeros(self.model.vector_size, np.float32)

    def _counts(self) -> np.ndarray:
        return self.model.tables.counts

    def _set_matrices(self, inputs: np.ndarray, outputs: np.ndarray) -> None:
        self.model.tables.input_rows[:] = inputs
        (self.model.syn1 if self.model.hs else self.model.syn1neg)[:] = outputs
        self.model.show_vectors()

    def _word_vectors(self) -> np.ndarray:
        return self.model.vectors


def words_of(line: str) -> list[str]:
    """Return the words of a line as training and prediction read them: split at Unicode white space and NUL."""
    return line.lstrip(MARK).replace("\0", " ").split()


def _of_a_line(text: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"a text must be a string, not {type(text).__name__}")
    if "\n" in text:
        raise InputError("the text contains a line feed; a text must be one line: replace '\\n' with a space")
    return text

"""The words of a Word2Vec and its tables: creating them, adding new words, and showing them as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from mt2st_fast.data.character_ngrams import character_ngrams, ngram_hash, subword_ids
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.workspace import WordRows
from mt2st_fast.memory import naming_table
from mt2st_fast.words.gensim_errors import NoWordsError
from mt2st_fast.words.keyed import fill_keyed, lock_factors, with_new_words
from mt2st_fast.words.word2vec_options import LearningOptions

WORDS_AT_ONCE = 4096  # words whose subword rows are summed in one block


class WordTables:
    """V words, their input rows and the output tables. Word2Vec documents the options.

    input_rows (V, D), or (V + bucket, D) with n-grams; vectors (V, D); output_vectors (V, D) with negative sampling and
    node_vectors (V, D) with hs=1, else None. `_keyed` is the KeyedVectors over `vectors`, once they were asked for.
    """

    vector_size: int
    alpha: float
    sample: float
    seed: int
    hs: int
    negative: int
    min_n: int
    max_n: int
    bucket: int
    words: list[str]
    vocabulary: Vocabulary
    counts: np.ndarray
    vectors: np.ndarray
    input_rows: np.ndarray
    output_vectors: np.ndarray | None
    node_vectors: np.ndarray | None
    raw_vocab: dict[str, int]
    tasks: dict[str, Any]
    _keyed: Any
    _locks: np.ndarray

    def _learning(self) -> LearningOptions:
        return LearningOptions(**{field.name: getattr(self, field.name) for field in fields(LearningOptions)})

    def _forget_training(self) -> None:
        self.losses: list[float] = []
        self.task_losses: dict[str, list[float]] = {name: [] for name in self.tasks}
        self.epochs_done, self.running_training_loss = 0, 0.0
        self.min_alpha_yet_reached = self.alpha

    def _take_vocabulary(self, vocabulary: Vocabulary) -> None:
        self._forget_training()
        self._know(vocabulary)
        rows = len(self.words) + (self.bucket if self.max_n else 0)
        with naming_table(rows, self.vector_size):
            self.input_rows = self._fresh_rows(rows, self.seed)
            self.output_vectors = self._no_rows(len(self.words)) if self.negative else None
            self.node_vectors = self._no_rows(len(self.words)) if self.hs else None
        self._locks = np.ones(1, np.float32)
        if self._keyed is not None:
            self._keyed.vectors_lockf = self._locks
        self._show_words()

    def _no_rows(self, n: int) -> np.ndarray:
        return np.zeros((n, self.vector_size), np.float32)

    def _show_words(self) -> None:
        self.vectors = self._means()
        if self._keyed is not None:
            self._fill(self._keyed)

    def _fill(self, keyed: Any) -> None:
        fill_keyed(
            keyed, self.vocabulary, self.vectors, sample=self.sample, has_tree=self.node_vectors is not None
        )

    def _know(self, vocabulary: Vocabulary) -> None:
        """Set the words, their counts and the rows that they consist of; the tables stay as they were."""
        self.vocabulary, self.words, self.counts = vocabulary, vocabulary.words, vocabulary.counts
        self._subwords = self._rows_of(self.words) if self.max_n else None

    def _fresh_rows(self, n: int, seed: Any) -> np.ndarray:
        rows = np.random.Generator(np.random.PCG64(seed)).random((n, self.vector_size), np.float32)
        rows -= np.float32(0.5)
        rows /= np.float32(self.vector_size)
        return rows

    def _grow(self, vocabulary: Vocabulary) -> None:
        """Take a vocabulary that begins with the present words; the tables get rows for the others, whose vectors can
        learn.
        """
        self._check_whole()
        self._adopt_vectors()
        known, words = len(self.words), len(vocabulary)
        if self._keyed is not None:
            self._locks = self._keyed.vectors_lockf
        self._locks = with_new_words(self._locks, known, words)
        self._know(vocabulary)
        # The number of known words is part of the seed, or a second update would repeat the first one's rows.
        added = self._fresh_rows(words - known, [self.seed, known])
        self.input_rows = np.concatenate([self.input_rows[:known], added, self.input_rows[known:]])
        if self.output_vectors is not None:
            self.output_vectors = np.concatenate([self.output_vectors, np.zeros_like(added)])
        if self.node_vectors is not None:  # the tree is another, which has none of the old nodes
            self.node_vectors = self._no_rows(words)
        if self._keyed is not None:
            self._keyed.vectors_lockf = self._locks
        self._show_words()

    def _adopt_vectors(self) -> None:
        """Continue from `wv.vectors` where they were set. Raises InputError for vectors that do not fit the model."""
        if self._keyed is None:
            return
        given = np.asarray(self._keyed.vectors)
        if given.shape != self.vectors.shape or self._keyed.index_to_key != self.words:
            raise InputError(
                f"wv has other words or vectors {given.shape} than the model {self.vectors.shape} was built with, so "
                "they cannot be trained; add words with build_vocab(..., update=True)"
            )
        if self._subwords is None:
            # Training writes to the array; one that is mapped or read-only is copied.
            self.vectors = self.input_rows = np.require(given, np.float32, ["C", "W"])
            self._keyed.vectors = self.vectors
        elif not np.array_equal(given, self._means()):
            raise InputError(
                "wv.vectors were changed, but with n-grams (max_n) they are means of the rows that are trained; "
                "change model.input_rows instead"
            )

    def vector(self, word: str) -> np.ndarray:
        """Return the vector (vector_size,) float32 of a word; if it is not in `words`, the mean of its character
        n-grams' rows.

        Raises KeyError for a word that has neither, and InputError before there is any text.
        """
        self._check_words()
        own = self.vocabulary.get(word, -1)
        if own >= 0:
            return self.vectors[own]
        rows = self._rows_of([word]).ids if self.max_n else np.empty(0, np.int32)
        if not len(rows):
            raise KeyError(f"{word!r} is not in the vocabulary and has no character n-grams")
        return self.input_rows[rows].mean(0)

    def subwords(self, word: str) -> tuple[list[str], np.ndarray]:
        """Return the word itself, if `words` has it, and its character n-grams; and their rows (int32)."""
        own = self.vocabulary.get(word, -1)
        known = [word] if own >= 0 else []
        grams = character_ngrams(word, self.min_n, self.max_n) if self.max_n else []
        return known + grams, np.array([own] * len(known) + [*map(self.ngram_row, grams)], np.int32)

    def ngram_row(self, ngram: str) -> int:
        """Return the row in `input_rows` of a character n-gram, for a model with n-grams."""
        return len(self.words) + ngram_hash(ngram) % self.bucket

    def _rows_of(self, words: Sequence[str]) -> WordRows:
        own = self.vocabulary.lookup(words)
        return WordRows(*subword_ids(words, own, len(self.words), self.bucket, self.min_n, self.max_n))

    def _means(self) -> np.ndarray:
        """Return the vectors (V, vector_size) of the words from the current input rows; without subwords, the rows
        themselves.
        """
        if self._subwords is None:
            return self.input_rows
        ids, bounds = self._subwords
        means = self._no_rows(len(self.words))
        for first in range(0, len(means), WORDS_AT_ONCE):
            block = bounds[first : first + WORDS_AT_ONCE + 1]
            sums = np.add.reduceat(self.input_rows[ids[block[0] : block[-1]]], block[:-1] - block[0])
            means[first : first + WORDS_AT_ONCE] = sums / np.diff(block)[:, None]
        return means

    def lock_factors(self) -> np.ndarray:
        """Return `wv.vectors_lockf` as float32 (V,), or (0,) where nothing is locked. Raises InputError for another
        shape.
        """
        return lock_factors(self._locks if self._keyed is None else self._keyed.vectors_lockf, self.words)

    def _check_words(self) -> None:
        if not self.words:
            raise NoWordsError("the model has no words yet; call train with sentences or a corpus_file")

    def _check_whole(self) -> None:
        """Raise InputError for a model that only has vectors and no output tables."""
        if self.words and self.output_vectors is None and self.node_vectors is None:
            raise InputError(
                "wv was set, so the model has only vectors, which cannot be trained further or saved with it; call "
                "build_vocab for new tables, or model.wv.save for these vectors"
            )

    def show_vectors(self) -> None:
        """Update `vectors` from the input rows, also in `wv`, whose cached norms are dropped."""
        self.vectors = self._means()
        if self._keyed is not None:
            self._keyed.vectors, self._keyed.norms = self.vectors, None

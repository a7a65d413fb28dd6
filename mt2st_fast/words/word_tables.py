"""Words and the tables of vectors that training on a text moves: creating them, adding words, looking vectors up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mt2st_fast.data.character_ngrams import character_ngrams, ngram_hash, subword_ids
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.kernels.context.workspace import WordRows
from mt2st_fast.table_limits import naming_table
from mt2st_fast.words.word2vec_options import LearningOptions

WORDS_AT_ONCE = 4096  # words whose subword rows are summed in one block


class WordTables:
    """V words and their float32 tables, which training moves in place.

    arrays: input_rows (V, D), or (V + bucket, D) with character n-grams; output_vectors (V, D) with negative sampling;
    node_vectors (V, D) with hierarchical softmax; locks: factors for the changes of input rows, (V,), or one for all.

    vectors (V, D): the mean of each word's rows. Without n-grams these are the input rows themselves. subwords: the
    rows of each word, if they are several.
    """

    def __init__(
        self, vocabulary: Vocabulary, options: LearningOptions, arrays: Mapping[str, np.ndarray]
    ) -> None:
        self._options = options
        self.input_rows = arrays["input_rows"]
        self.output_vectors, self.node_vectors = arrays.get("output_vectors"), arrays.get("node_vectors")
        self.locks = arrays.get("locks", np.ones(1, np.float32))
        self._know(vocabulary)
        self.update_vectors()

    @classmethod
    def empty(cls, options: LearningOptions) -> WordTables:
        """Return tables without words."""
        return cls(Vocabulary([], []), options, {"input_rows": _zeros(0, options)})

    @classmethod
    def fresh(cls, vocabulary: Vocabulary, options: LearningOptions) -> WordTables:
        """Return tables for training from the beginning. Raises InputError where there is not enough memory."""
        V = len(vocabulary)
        rows = V + (options.bucket if options.max_n else 0)
        with naming_table(rows, options.vector_size):
            arrays = {"input_rows": _random_rows(rows, options, options.seed)}
            if options.negative:
                arrays["output_vectors"] = _zeros(V, options)
            if options.hs:
                arrays["node_vectors"] = _zeros(V, options)
        return cls(vocabulary, options, arrays)

    @property
    def words(self) -> list[str]:
        """The words by id."""
        return self.vocabulary.words

    @property
    def counts(self) -> np.ndarray:
        """How often each word was counted, int64 (V,)."""
        return self.vocabulary.counts

    @property
    def can_train(self) -> bool:
        """Whether there are output tables, without which vectors cannot be trained further."""
        return self.output_vectors is not None or self.node_vectors is not None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by the names that the constructor takes, without locks."""
        found = {"input_rows": self.input_rows}
        if self.output_vectors is not None:
            found["output_vectors"] = self.output_vectors
        if self.node_vectors is not None:
            found["node_vectors"] = self.node_vectors
        return found

    def grow(self, vocabulary: Vocabulary) -> None:
        """Take a vocabulary that begins with the present words; the tables get rows for the others, which can learn."""
        known, V = len(self.words), len(vocabulary)
        if len(self.locks) == known > 1:
            self.locks = np.concatenate([self.locks, np.ones(V - known, np.float32)])
        self._know(vocabulary)
        # The number of known words is part of the seed, or a second update would repeat the first one's rows.
        added = _random_rows(V - known, self._options, [self._options.seed, known])
        self.input_rows = np.concatenate([self.input_rows[:known], added, self.input_rows[known:]])
        if self.output_vectors is not None:
            self.output_vectors = np.concatenate([self.output_vectors, np.zeros_like(added)])
        if self.node_vectors is not None:  # the tree is another, which has none of the old nodes
            self.node_vectors = _zeros(V, self._options)
        self.update_vectors()

    def update_vectors(self) -> None:
        """Compute `vectors` from the input rows, which have changed."""
        self.vectors = self.means()

    def means(self) -> np.ndarray:
        """Return the vectors (V, D) of the words from the current input rows; without subwords, the rows themselves."""
        if self.subwords is None:
            return self.input_rows
        ids, bounds = self.subwords
        means = _zeros(len(self.words), self._options)
        for first in range(0, len(means), WORDS_AT_ONCE):
            block = bounds[first : first + WORDS_AT_ONCE + 1]
            sums = np.add.reduceat(self.input_rows[ids[block[0] : block[-1]]], block[:-1] - block[0])
            means[first : first + WORDS_AT_ONCE] = sums / np.diff(block)[:, None]
        return means

    def vector(self, word: str) -> np.ndarray:
        """Return the vector (D,) float32 of a word; if it is not in `words`, the mean of its character n-grams' rows.

        Raises KeyError for a word that has neither.
        """
        own = self.vocabulary.get(word, -1)
        if own >= 0:
            return self.vectors[own]
        rows = self._rows_of([word]).ids if self._options.max_n else np.empty(0, np.int32)
        if not len(rows):
            raise KeyError(f"{word!r} is not in the vocabulary and has no character n-grams")
        return self.input_rows[rows].mean(0)

    def subwords_of(self, word: str) -> tuple[list[str], np.ndarray]:
        """Return the word itself, if `words` has it, and its character n-grams; and their rows (int32)."""
        own, options = self.vocabulary.get(word, -1), self._options
        known = [word] if own >= 0 else []
        grams = character_ngrams(word, options.min_n, options.max_n) if options.max_n else []
        return known + grams, np.array([own] * len(known) + [*map(self.ngram_row, grams)], np.int32)

    def ngram_row(self, ngram: str) -> int:
        """Return the input row of a character n-gram, for tables with n-grams."""
        return len(self.words) + ngram_hash(ngram) % self._options.bucket

    def _know(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        has_ngrams = self._options.max_n and len(vocabulary)
        self.subwords = self._rows_of(vocabulary.words) if has_ngrams else None

    def _rows_of(self, words: Sequence[str]) -> WordRows:
        options, own = self._options, self.vocabulary.lookup(words)
        return WordRows(
            *subword_ids(words, own, len(self.words), options.bucket, options.min_n, options.max_n)
        )


def _zeros(n: int, options: LearningOptions) -> np.ndarray:
    return np.zeros((n, options.vector_size), np.float32)


def _random_rows(n: int, options: LearningOptions, seed: int | list[int]) -> np.ndarray:
    rows = np.random.Generator(np.random.PCG64(seed)).random((n, options.vector_size), np.float32)
    rows -= np.float32(0.5)
    rows /= np.float32(options.vector_size)
    return rows

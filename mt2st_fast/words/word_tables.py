"""The two tables of word vectors, with rows for character n-grams, and gensim's KeyedVectors over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mt2st_fast.data.character_ngrams import subword_ids
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.workspace import WordRows
from mt2st_fast.words.vectors import empty_keyed_vectors, fill_keyed_vectors

WORDS_AT_ONCE = 4096  # whose subwords' rows are summed together


class WordTables:
    """V words, the rows that their vectors are made of, and the output vectors that negatives are drawn from.

    words, counts   the words and how often each was seen; none before there is text
    input_rows      (V, vector_size) float32, with n-grams `bucket` rows more
    output_vectors  (V, vector_size) float32
    vectors         (V, vector_size) float32, the words': without n-grams the input rows themselves
    """

    def __init__(self, vector_size: int, seed: int, min_n: int, max_n: int, bucket: int) -> None:
        self.vector_size, self.seed = vector_size, seed
        self.min_n, self.max_n, self.bucket = min_n, max_n, bucket
        self.words: list[str] = []
        self._wv: Any = None  # gensim's KeyedVectors, made when asked for

    @property
    def syn1neg(self) -> np.ndarray:
        """gensim's name of `output_vectors`."""
        return self.output_vectors

    @property
    def layer1_size(self) -> int:
        """gensim's name of `vector_size`."""
        return self.vector_size

    @property
    def wv(self) -> Any:
        """The vectors as gensim's KeyedVectors: one object for the model's life, which follows training.

        It shares `vectors`, and so a change to them within its table is seen here. Raises InputError where gensim is
        missing or there are no words yet.
        """
        if self._wv is None:
            try:
                keyed = empty_keyed_vectors(self.vector_size)
            except ImportError:
                raise InputError(
                    ".wv needs gensim: pip install 'mt2st-fast[words]', or use .words and .vectors"
                ) from None
            self._check_trained()
            fill_keyed_vectors(keyed, self.words, self.vectors, self.counts)
            self._wv = keyed
        return self._wv

    def _take_back_wv(self) -> None:
        """Whatever was done to `wv` by others becomes the model's own, or is refused: it is one table.

        Raises InputError for other words, and for a table that cannot take the place of the model's.
        """
        if self._wv is None:
            return
        if self._wv.index_to_key != self.words:
            raise InputError(
                "wv has other words than the model, or in another order; change a copy of it instead"
            )
        given = self._wv.vectors
        if given is not self.vectors:
            if self._subwords is not None or given.shape != self.vectors.shape:
                raise InputError(
                    f"wv.vectors was replaced by a table of {given.shape}, which cannot be trained on here; "
                    "change a copy of wv instead"
                )
            self.vectors[:] = given
            self._wv.vectors = self.vectors

    def _tell_wv(self) -> None:
        """gensim keeps the vectors' lengths: they are of the vectors before."""
        if self._wv is not None:
            self._wv.norms = None

    def _take_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Words with fresh tables."""
        if not len(vocabulary):
            raise InputError("the text has no words")
        rows = len(vocabulary) + (self.bucket if self.max_n else 0)
        output_vectors = np.zeros((len(vocabulary), self.vector_size), np.float32)
        self._take_tables(vocabulary, self._fresh_rows(rows, self.seed), output_vectors)

    def _take_tables(
        self, vocabulary: Vocabulary, input_rows: np.ndarray, output_vectors: np.ndarray
    ) -> None:
        self.vocabulary, self.words, self.counts = vocabulary, vocabulary.words, vocabulary.counts
        self.input_rows: np.ndarray = input_rows
        self.output_vectors: np.ndarray = output_vectors
        self._subwords = self._rows_of(self.words) if self.max_n else None
        self.vectors: np.ndarray = self._means()
        if self._wv is not None:
            fill_keyed_vectors(self._wv, self.words, self.vectors, self.counts)

    def _grow_to(self, vocabulary: Vocabulary) -> None:
        """A vocabulary that begins with the words at hand: they keep their rows, those behind them get fresh ones."""
        self._take_back_wv()
        known, new = len(self.words), len(vocabulary) - len(self.words)
        # Rows of n-grams stand behind those of the words.
        rows = self.input_rows[:known], self._fresh_rows(new, (self.seed, known)), self.input_rows[known:]
        outputs = self.output_vectors, np.zeros((new, self.vector_size), np.float32)
        self._take_tables(vocabulary, np.concatenate(rows), np.concatenate(outputs))

    def _fresh_rows(self, rows: int, seed: int | Sequence[int]) -> np.ndarray:
        """(rows, vector_size) as they are before training."""
        generator = np.random.Generator(np.random.PCG64(seed))
        fresh = generator.random((rows, self.vector_size), np.float32)
        fresh -= np.float32(0.5)
        fresh /= np.float32(self.vector_size)
        return fresh

    def vector(self, word: str) -> np.ndarray:
        """(vector_size,) float32: of a word that is not in `words` the mean of its character n-grams' rows.

        Raises KeyError for a word that has neither, InputError before there is any text.
        """
        self._check_trained()
        own = self.vocabulary.get(word, -1)
        if own >= 0:
            return self.vectors[own]
        rows = self._rows_of([word]).ids if self.max_n else np.empty(0, np.int32)
        if not len(rows):
            raise KeyError(f"{word!r} is not among the words, and has no character n-grams")
        return self.input_rows[rows].mean(0)

    def _check_trained(self) -> None:
        if not self.words:
            raise InputError("the model has no words yet: call train with sentences or a corpus_file")

    def _rows_of(self, words: Sequence[str]) -> WordRows:
        own = self.vocabulary.lookup(words)
        return WordRows(*subword_ids(words, own, len(self.words), self.bucket, self.min_n, self.max_n))

    def _means(self, into: np.ndarray | None = None) -> np.ndarray:
        """(V, vector_size) the vectors of the words as the input rows are now; without subwords those themselves."""
        if self._subwords is None:
            return self.input_rows
        ids, bounds = self._subwords
        means = np.empty_like(self.output_vectors) if into is None else into
        for first in range(0, len(means), WORDS_AT_ONCE):
            block = bounds[first : first + WORDS_AT_ONCE + 1]
            sums = np.add.reduceat(self.input_rows[ids[block[0] : block[-1]]], block[:-1] - block[0])
            means[first : first + WORDS_AT_ONCE] = sums / np.diff(block)[:, None]
        return means

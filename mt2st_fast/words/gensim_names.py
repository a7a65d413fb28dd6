"""gensim's other names on a Word2Vec: building the vocabulary in steps, its KeyedVectors, and queries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count, check_not_negative, given
from mt2st_fast.words.gensim_errors import NoSuchNameError, NoWordsError
from mt2st_fast.words.gensim_options import one_of, read_text
from mt2st_fast.words.gensim_vocabulary import TrimRule, counted_words, vocabulary_of, vocabulary_report
from mt2st_fast.words.vectors import gensims_class
from mt2st_fast.words.word2vec_queries import sentence_scores, words_in
from mt2st_fast.words.word2vec_tables import WordTables

_OF_WV = "as in gensim, use model.wv.{name}"
_INNER = "it is part of gensim's own training code, which is not used"
# Name of gensim's: why it is not available here, and what to do instead.
REFUSED = {
    "add_lifecycle_event": "a model has no lifecycle log; log what you need yourself",
    "lifecycle_events": "a model has no lifecycle log; log what you need yourself",
    "add_null_word": "there is no null word",
    "create_binary_tree":
        "the tree is built when training starts; read a word's code with wv.get_vecattr(word, 'code')",
    "cum_table": "negatives are drawn from a different table, which training builds from the counts",
    "init_sims": "use model.wv.unit_normalize_all()",
    "load": "it creates a model; call Word2Vec.load(folder), not load on a model",
    "make_cum_table": "negatives are drawn from a different table, which training builds from the counts",
    "random": "random draws depend only on seed, epoch and position; there is no generator",
    "seeded_vector": "use gensim.models.keyedvectors.pseudorandom_weak_vector",
    "syn1": "it holds the vectors of the tree nodes, which only a model with a vocabulary and hs=1 has",
    "syn1neg": "it holds the output vectors of words, which only a model with a vocabulary and negative=5 has",
    "train_epoch_cbow": _INNER,
    "train_epoch_sg": _INNER,
    **{
        name: _OF_WV.format(name=name)
        for name in (
            "doesnt_match", "evaluate_word_pairs", "most_similar", "n_similarity", "similar_by_vector",
            "similar_by_word", "similarity", "wmdistance",
        )
    },
}  # fmt: skip


class GensimNames(WordTables, ABC):
    """All of Word2Vec except training; see there. Two abstract methods are left to Word2Vec."""

    min_count: int
    cbow_mean: int
    max_vocab_size: int | None
    sorted_vocab: int
    corpus_count: int
    corpus_total_words: int
    effective_min_count: int
    running_training_loss: float

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise NoSuchNameError(f"Word2Vec has no {name}: {REFUSED[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # --- vectors ------------------------------------------------------------------------------------------

    @property
    def wv(self) -> Any:
        """The vectors as gensim's KeyedVectors, made once: it shares `vectors`, and follows training and updates.

        `wv.vectors_lockf` scales the updates of the vectors: one number for all words, or one per word. Vectors that
        are assigned to `wv` become the model's; it can then no longer be trained, as they come without output vectors.
        """
        if self._keyed is None:
            gensims_class()
            self._check_words()
            self._keyed = gensims_class()(self.vector_size)
            self._keyed.vectors_lockf = self._locks
            self._fill(self._keyed)
        return self._keyed

    @wv.setter
    def wv(self, keyed: Any) -> None:
        if keyed is self._keyed:
            return
        if not isinstance(keyed, gensims_class()):
            raise InputError(f"wv must be a gensim KeyedVectors, not {type(keyed).__name__}")
        counts = keyed.expandos.get("count", np.zeros(len(keyed.index_to_key), np.int64))
        self.vocabulary = Vocabulary(keyed.index_to_key, counts)
        self.words, self.counts, self._subwords = self.vocabulary.words, self.vocabulary.counts, None
        self.vector_size = keyed.vector_size
        self.vectors = self.input_rows = keyed.vectors
        self.output_vectors = self.node_vectors = None
        self._keyed = keyed

    @property
    def syn1neg(self) -> np.ndarray:
        """gensim's name for `output_vectors`: the vectors of words as prediction targets in negative sampling."""
        if self.output_vectors is None:
            raise AttributeError
        return self.output_vectors

    @property
    def syn1(self) -> np.ndarray:
        """gensim's name for `node_vectors`, the vectors of the nodes of the words' Huffman tree."""
        if self.node_vectors is None:
            raise AttributeError
        return self.node_vectors

    @property
    def layer1_size(self) -> int:
        """gensim's other name for `vector_size`."""
        return self.vector_size

    # --- the vocabulary in steps --------------------------------------------------------------------------

    def scan_vocab(
        self,
        corpus_iterable: Iterable[Sequence[str]] | None = None,
        corpus_file: str | Path | None = None,
        progress_per: int = 10_000,
        workers: int | None = None,
        trim_rule: TrimRule | None = None,
        *,
        sentences: Iterable[Sequence[str]] | None = None,
    ) -> tuple[int, int]:
        """Count the words of a text into `raw_vocab` and return (words, sentences).

        `prepare_vocab` then takes the words. progress_per and workers have no effect.
        """
        text = read_text(one_of(sentences, corpus_iterable), corpus_file)
        counted = counted_words(text, self.max_vocab_size, trim_rule, bool(self.sorted_vocab))
        self.raw_vocab = dict(zip(counted.words, counted.counts.tolist(), strict=True))
        self.corpus_count, self.corpus_total_words = text.n_units, len(text.ids)
        return len(text.ids), text.n_units

    def prepare_vocab(
        self,
        update: bool = False,
        keep_raw_vocab: bool = False,
        trim_rule: TrimRule | None = None,
        min_count: int | None = None,
        sample: float | None = None,
        dry_run: bool = False,
    ) -> dict[str, int]:
        """Take the words of `raw_vocab` and make fresh tables, or, with update, keep the tables and add rows for new
        words.

        Returns gensim's statistics of what is kept. dry_run: return the statistics only; nothing changes. Raises
        InputError before `scan_vocab`, and where no word is left.
        """
        if not self.raw_vocab:
            raise NoWordsError("there are no words to choose from; call scan_vocab first")
        check_count(0, **given(min_count=min_count))
        check_not_negative(**given(sample=sample))
        counted = vocabulary_of(self.raw_vocab)
        before = self.min_count, self.sample
        self.min_count = self.min_count if min_count is None else min_count
        self.sample = self.sample if sample is None else sample
        try:
            chosen = self._chosen(counted, trim_rule, update)
            report = vocabulary_report(counted, chosen, self.sample)
        finally:
            if dry_run:
                self.min_count, self.sample = before
        if not dry_run:
            self._take(chosen, update)
            self.raw_vocab = self.raw_vocab if keep_raw_vocab else {}
        return report

    def prepare_weights(self, update: bool = False) -> None:
        """Make fresh tables; does nothing with update, as `prepare_vocab` has added the rows."""
        self._check_words()
        if not update:
            self.init_weights()

    def init_weights(self) -> None:
        """Make fresh tables for the model's words; earlier training is lost."""
        self._check_words()
        self._take_vocabulary(self.vocabulary)

    def update_weights(self) -> None:
        """Do nothing: `prepare_vocab(update=True)` and `build_vocab(update=True)` have added the rows."""
        self._check_words()

    def reset_from(self, other_model: Any) -> None:
        """Take the words of another model and make fresh tables for them."""
        if not isinstance(other_model, GensimNames):
            raise InputError(f"reset_from requires a Word2Vec, not {type(other_model).__name__}")
        other_model._check_words()
        self._take_vocabulary(other_model.vocabulary)
        self.effective_min_count = other_model.effective_min_count
        self.corpus_count, self.corpus_total_words = other_model.corpus_count, other_model.corpus_total_words

    def estimate_memory(
        self, vocab_size: int | None = None, report: dict[str, int] | None = None
    ) -> dict[str, int]:
        """Return the bytes of the tables for vocab_size words, by default the model's, added to the entries of
        `report`.
        """
        words = len(self.words) if vocab_size is None else vocab_size
        check_count(0, vocab_size=words)
        rows = words + (self.bucket if self.max_n else 0)
        tables = {"vectors": rows}
        if self.hs:
            tables["syn1"] = words
        if self.negative:
            tables["syn1neg"] = words
        sizes = {name: 4 * self.vector_size * n for name, n in tables.items()}
        return {**(report or {}), **sizes, "total": sum(sizes.values())}

    # --- queries ------------------------------------------------------------------------------------------

    def get_latest_training_loss(self) -> float:
        """Return the sum of the losses of all pairs since `train` began, as in gensim.

        With negative sampling it is measured on an eighth of the pairs. `losses`, the means of the epochs, are easier
        to read.
        """
        return self.running_training_loss

    def predict_output_word(
        self, context_words_list: Sequence[str | int], topn: int = 10
    ) -> list[tuple[str, float]] | None:
        """Return (word, probability) of the topn likeliest words in a context, given as words or as rows of `wv`.

        Returns None, with a log message, where none of the context's words is known. Raises NoWordsError, a
        RuntimeError, for a model without output vectors of words (hs=1 with negative=0).
        """
        self._check_words()
        return words_in(
            context_words_list,
            topn,
            self.vocabulary,
            self.vectors,
            self.output_vectors,
            mean=bool(self.cbow_mean),
        )

    def score(
        self,
        sentences: Iterable[Sequence[str]],
        total_sentences: int = 1_000_000,
        chunksize: int = 100,
        queue_factor: int = 2,
        report_delay: float = 1,
    ) -> np.ndarray:
        """Return the log probability of each sentence by the Huffman tree, float32 (sentences,), for at most
        total_sentences.

        The last three arguments have no effect. Raises NoWordsError, a RuntimeError, for a model without hs=1.
        """
        self._check_words()
        return sentence_scores(
            sentences, total_sentences, self.vocabulary, self.vectors, self.node_vectors, self._learning()
        )

    @abstractmethod
    def _chosen(self, counted: Vocabulary, trim_rule: TrimRule | None, update: bool) -> Vocabulary:
        """Return the counted words that the model keeps."""

    @abstractmethod
    def _take(self, chosen: Vocabulary, update: bool) -> None:
        """Make tables for these words, or, with update, extend the present tables by them."""

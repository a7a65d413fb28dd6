"""gensim's other names on a Word2Vec: building the vocabulary in steps, its KeyedVectors, and queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count, check_not_negative, given
from mt2st_fast.words.gensim_errors import NoSuchNameError, NoWordsError
from mt2st_fast.words.gensim_options import one_of, read_text
from mt2st_fast.words.gensim_vocabulary import (
    TrimRule,
    counted_words,
    frequent_words,
    vocabulary_of,
    vocabulary_report,
    with_words_of,
)
from mt2st_fast.words.keyed import fill_keyed, lock_factors
from mt2st_fast.words.vectors import gensims_class
from mt2st_fast.words.word2vec_options import LearningOptions
from mt2st_fast.words.word2vec_queries import sentence_scores, words_in
from mt2st_fast.words.word_tables import WordTables

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


class GensimNames:
    """All of Word2Vec except its arguments, training and files; see there.

    tables: the words and what is trained. `_keyed` is the KeyedVectors over their vectors, once they were asked for.
    """

    tables: WordTables
    tasks: dict[str, Any]
    vector_size: int
    alpha: float
    sample: float
    hs: int
    negative: int
    max_n: int
    bucket: int
    raw_vocab: dict[str, int]
    min_count: int
    max_final_vocab: int | None
    cbow_mean: int
    max_vocab_size: int | None
    sorted_vocab: int
    corpus_count: int
    corpus_total_words: int
    effective_min_count: int
    _keyed: Any
    _is_training: bool = False  # on the arrays of `tables`

    def __getattr__(self, name: str) -> Any:
        if name in REFUSED:
            raise NoSuchNameError(f"Word2Vec has no {name}: {REFUSED[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    # --- vectors ------------------------------------------------------------------------------------------

    @property
    def words(self) -> list[str]:
        """The words by row."""
        return self.tables.words

    @property
    def vectors(self) -> np.ndarray:
        """The words' vectors (V, vector_size), those of `wv` where they were set there."""
        self._follow_wv()
        return self.tables.vectors

    def vector(self, word: str) -> np.ndarray:
        """Return the vector (vector_size,) float32 of a word; if it is not in `words`, the mean of its character
        n-grams' rows.

        Raises KeyError for a word that has neither, and InputError before there is any text.
        """
        self._check_words()
        self._follow_wv()
        return self.tables.vector(word)

    def show_vectors(self) -> None:
        """Update `vectors` from the input rows, also in `wv`, whose cached norms are dropped."""
        self.tables.update_vectors()
        if self._keyed is not None:
            self._keyed.vectors, self._keyed.norms = self.tables.vectors, None

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
            self._fill_keyed()
        return self._keyed

    @wv.setter
    def wv(self, keyed: Any) -> None:
        if keyed is self._keyed:
            return
        if not isinstance(keyed, gensims_class()):
            raise InputError(f"wv must be a gensim KeyedVectors, not {type(keyed).__name__}")
        counts = keyed.expandos.get("count", np.zeros(len(keyed.index_to_key), np.int64))
        self.vector_size = keyed.vector_size
        options = replace(self._learning(), max_n=0)
        vocabulary = Vocabulary(keyed.index_to_key, counts)
        self.tables = WordTables(vocabulary, options, {"input_rows": keyed.vectors})
        self._keyed = keyed

    def _fill_keyed(self) -> None:
        """Have `wv` show the tables."""
        has_tree = self.tables.node_vectors is not None
        vocabulary, vectors = self.tables.vocabulary, self.tables.vectors
        fill_keyed(self._keyed, vocabulary, vectors, sample=self.sample, has_tree=has_tree)
        self._keyed.vectors_lockf = self.tables.locks

    def _adopt_vectors(self) -> None:
        """Take over `wv.vectors` where they were set, for training and files.

        gensim itself sets them, also when single vectors are assigned (`wv["word"] = ...`). Raises InputError for
        vectors that do not fit the model.
        """
        if self._keyed is None:
            return
        if not self._wv_fits():
            raise InputError(
                f"wv has other words or vectors {self._keyed.vectors.shape} than the model "
                f"{self.tables.vectors.shape} was built with, so they cannot be trained or stored with it; add words "
                "with build_vocab(..., update=True), or store the vectors alone: model.wv.save"
            )
        if self.tables.subwords is None:
            self._take_vectors()
        elif not np.array_equal(self._keyed.vectors, self.tables.means(), equal_nan=True):
            raise InputError(
                "wv.vectors were changed, but with n-grams (max_n) they are means of the rows that are trained and "
                "stored; change model.tables.input_rows instead"
            )

    def _follow_wv(self) -> None:
        """Take over `wv.vectors` where they were set and fit, for whatever looks vectors up."""
        if self._keyed is None or self._keyed.vectors is self.tables.vectors:
            return
        if self.tables.subwords is None and self._wv_fits():
            self._take_vectors()

    def _wv_fits(self) -> bool:
        shape = np.shape(self._keyed.vectors)
        return shape == self.tables.vectors.shape and self._keyed.index_to_key == self.words

    def _take_vectors(self) -> None:
        if self._is_training:  # a callback has set them: they go where training reads and writes
            self.tables.input_rows[:] = self._keyed.vectors
        else:
            # Training writes to the array; one that is mapped or read-only is copied.
            self.tables.input_rows = np.require(self._keyed.vectors, np.float32, ["C", "W"])
        self.show_vectors()

    def _lock_factors(self) -> np.ndarray:
        """Return `wv.vectors_lockf` as float32 (V,), or (0,) where nothing is locked. Raises InputError for another
        shape.
        """
        self._keep_locks()
        return lock_factors(self.tables.locks, self.words)

    def _keep_locks(self) -> None:
        if self._keyed is not None:
            self.tables.locks = self._keyed.vectors_lockf

    @property
    def syn1neg(self) -> np.ndarray:
        """gensim's name for the output vectors: those of words as prediction targets in negative sampling."""
        if self.tables.output_vectors is None:
            raise AttributeError
        return self.tables.output_vectors

    @property
    def syn1(self) -> np.ndarray:
        """gensim's name for the vectors of the nodes of the words' Huffman tree."""
        if self.tables.node_vectors is None:
            raise AttributeError
        return self.tables.node_vectors

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
        self._begin_with(self.tables.vocabulary)

    def update_weights(self) -> None:
        """Do nothing: `prepare_vocab(update=True)` and `build_vocab(update=True)` have added the rows."""
        self._check_words()

    def reset_from(self, other_model: Any) -> None:
        """Take the words of another model and make fresh tables for them."""
        if not isinstance(other_model, GensimNames):
            raise InputError(f"reset_from requires a Word2Vec, not {type(other_model).__name__}")
        other_model._check_words()
        self._begin_with(other_model.tables.vocabulary)
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
            self.tables.vocabulary,
            self.vectors,
            self.tables.output_vectors,
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
        self._follow_wv()
        return sentence_scores(sentences, total_sentences, self.tables, self._learning())

    # --- for these names and training ---------------------------------------------------------------------

    def _learning(self) -> LearningOptions:
        return LearningOptions(**{field.name: getattr(self, field.name) for field in fields(LearningOptions)})

    def _chosen(self, counted: Vocabulary, trim_rule: TrimRule | None, update: bool) -> Vocabulary:
        """Return the counted words that the model keeps."""
        if not update:
            return frequent_words(counted, self.min_count, self.max_final_vocab, trim_rule)
        if not self.words:
            raise NoWordsError("update=True needs a vocabulary to add to; call build_vocab without it first")
        # The text may have no new word that is frequent enough.
        return with_words_of(self.tables.vocabulary, counted, self.min_count, trim_rule)

    def _take(self, chosen: Vocabulary, update: bool) -> None:
        """Make tables for these words, or, with update, extend the present tables by them."""
        if not update:
            self._begin_with(chosen)
            least = int(chosen.counts.min()) if self.max_final_vocab else 0
            self.effective_min_count = max(self.min_count, least)
            return
        self._check_whole()
        self._adopt_vectors()
        self._keep_locks()
        self.tables.grow(chosen)
        if self._keyed is not None:
            self._fill_keyed()

    def _begin_with(self, vocabulary: Vocabulary) -> None:
        """Make fresh tables; earlier training is lost."""
        self._forget_training()
        self.tables = WordTables.fresh(vocabulary, self._learning())
        if self._keyed is not None:
            self._fill_keyed()

    def _forget_training(self) -> None:
        self.losses: list[float] = []
        self.task_losses: dict[str, list[float]] = {name: [] for name in self.tasks}
        self.epochs_done, self.running_training_loss = 0, 0.0
        self.min_alpha_yet_reached = self.alpha

    def _check_words(self) -> None:
        if not self.words:
            raise NoWordsError("the model has no words yet; call train with sentences or a corpus_file")

    def _check_whole(self) -> None:
        """Raise InputError for a model that only has vectors and no output tables."""
        if self.words and not self.tables.can_train:
            raise InputError(
                "wv was set, so the model has only vectors, which cannot be trained further or saved with it; call "
                "build_vocab for new tables, or model.wv.save for these vectors"
            )

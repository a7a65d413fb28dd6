"""Word2Vec with gensim's arguments and gensim's vectors at the end: skip-gram and CBOW, the same bits every time.

With max_n it is gensim's FastText: a word is the mean of a row of its own and the rows of its character n-grams.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mt2st_fast.data.character_ngrams import subword_ids
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.workspace import WordRows
from mt2st_fast.numbers import check_count, given
from mt2st_fast.training.context_run import ContextPlan
from mt2st_fast.training.schedules import Schedule, Switch
from mt2st_fast.training.table_tasks import check_kinds
from mt2st_fast.words.gensim_options import (
    TrimRule,
    check_ngrams,
    check_predicted_by,
    check_rates,
    check_sampling,
    frequent_words,
    one_of,
    read_text,
    refuse,
    with_words_of,
)
from mt2st_fast.words.vectors import gensims_class, import_gensim_early, keyed_vectors
from mt2st_fast.words.word2vec_device import training_device
from mt2st_fast.words.word2vec_model import load_word2vec, save_word2vec
from mt2st_fast.words.word2vec_run import begin_run

WORDS_AT_ONCE = 4096  # whose subwords' rows are summed together


class Word2Vec:
    """Word vectors from text, trained when made if there is text.

        model = Word2Vec(corpus_file="text.txt", sg=1)      # a sentence a line, words between blanks; or a
                                                            # token file of `mt2st-fast prepare`, which stays mapped
        model.wv.most_similar("king")                       # gensim's KeyedVectors

    Arguments are gensim's. `workers` parts of the corpus are read side by side: the same seed and workers give the
    same bits on any number of threads. `words` are sorted by falling count, those of one
    count alphabetically (gensim leaves these in any order); `vectors` (V, vector_size) float32 are
    theirs, `losses` are the epochs' mean losses. Callbacks are gensim's: objects with on_train_begin(model),
    on_epoch_begin, on_epoch_end or on_train_end. Raises InputError for text or arguments that cannot be used, and for
    values of gensim's arguments that mean what there is not. hs=1 with negative=0 is hierarchical softmax;
    max_final_vocab takes the most frequent words, of one count the alphabetically first.

    min_n, max_n, bucket are those of gensim's FastText, which uses 3, 6 and 2 million: character n-grams of min_n to
    max_n characters of `<word>`, hashed into `bucket` rows; none while max_n is 0. `vector("unseenword")` then has a
    vector, too.

    tasks: files of auxiliary tasks on the same vectors, {"similarity": pairs with scores, "analogy": questions-words}
    (see mt2st_fast.data.word_batches); they take turns with the text until the schedule lets them go, by default at
    0.6 of the training. `task_losses` are theirs, a number a turn. Do not judge vectors by what they were taught.

    device: "cuda" trains words (no n-grams, hs or tasks) on a GPU, with other bits in every run; "auto" where it can.
    The vectors come back at the end of every epoch; `workers` has no effect there.
    """

    def __init__(
        self,
        sentences: Iterable[Sequence[str]] | None = None,
        corpus_file: str | Path | None = None,
        *,
        vector_size: int = 100,
        alpha: float = 0.025,
        window: int = 5,
        min_count: int = 5,
        max_vocab_size: int | None = None,
        sample: float = 1e-3,
        seed: int = 1,
        workers: int = 2,
        min_alpha: float = 1e-4,
        sg: int = 0,
        hs: int = 0,
        negative: int = 5,
        ns_exponent: float = 0.75,
        cbow_mean: int = 1,
        hashfxn: Callable[..., int] = hash,
        epochs: int = 5,
        null_word: int = 0,
        trim_rule: TrimRule | None = None,
        sorted_vocab: int = 1,
        batch_words: int = 10_000,
        compute_loss: bool = False,
        callbacks: Sequence[Any] = (),
        comment: str | None = None,
        max_final_vocab: int | None = None,
        shrink_windows: bool = True,
        min_n: int = 0,
        max_n: int = 0,
        bucket: int = 2_000_000,
        tasks: Mapping[str, str | Path] | None = None,
        schedule: Schedule | None = None,
        device: str = "cpu",
    ) -> None:
        refuse(
            max_vocab_size=max_vocab_size, cbow_mean=1 if sg else cbow_mean, null_word=null_word,
            sorted_vocab=sorted_vocab, shrink_windows=shrink_windows,
        )  # fmt: skip
        check_predicted_by(sg, hs, negative, max_n)
        self.tasks, self.schedule = dict(tasks or {}), schedule or Switch(at=0.6)
        check_kinds(self.tasks)
        check_count(vector_size=vector_size, window=window, workers=workers, epochs=epochs, bucket=bucket)
        check_count(batch_words=batch_words, **given(max_final_vocab=max_final_vocab))
        check_count(0, min_count=min_count, seed=seed)
        check_ngrams(min_n, max_n)
        check_sampling(sample, ns_exponent)
        check_rates(alpha, min_alpha)
        self.vector_size, self.window, self.min_count, self.workers = vector_size, window, min_count, workers
        self.sample, self.negative, self.ns_exponent, self.epochs = sample, negative, ns_exponent, epochs
        self.alpha, self.min_alpha, self.seed, self.sg = alpha, min_alpha, seed, int(sg)
        self.min_n, self.max_n, self.bucket, self.max_vocab_size = min_n, max_n, bucket, None
        self.max_final_vocab, self.compute_loss, self.comment = max_final_vocab, bool(compute_loss), comment
        # Without effect: what they say is of gensim's threads, or not used by gensim either.
        self.batch_words, self.hashfxn, self.null_word, self.sorted_vocab = batch_words, hashfxn, 0, 1
        self.hs, self.cbow_mean, self.shrink_windows, self.device = int(hs), cbow_mean, True, device
        training_device(self)
        self.words: list[str] = []
        self.corpus_count, self.corpus_total_words, self.effective_min_count = 0, 0, min_count
        self.train_count, self.total_train_time = 0, 0.0
        self._forget_training()
        if sentences is not None or corpus_file is not None:
            import_gensim_early()
            text = read_text(sentences, corpus_file)
            self._take_text(text, trim_rule)
            self._fit(self._known(text), epochs, alpha, min_alpha, callbacks)

    def _forget_training(self) -> None:
        self.losses: list[float] = []
        self.task_losses: dict[str, list[float]] = {name: [] for name in self.tasks}
        self.epochs_done, self.running_training_loss = 0, 0.0
        self.min_alpha_yet_reached = self.alpha
        self._keyed: Any = None

    def build_vocab(
        self,
        sentences: Iterable[Sequence[str]] | None = None,
        corpus_file: str | Path | None = None,
        *,
        corpus_iterable: Iterable[Sequence[str]] | None = None,
        update: bool = False,
        progress_per: int = 10_000,
        keep_raw_vocab: bool = False,
        trim_rule: TrimRule | None = None,
    ) -> None:
        """Take the words of a text and make fresh tables; what was trained is forgotten.

        update: keep words and tables, count the known words further and add the text's other words, most frequent
        first, at the end. `corpus_iterable` is another name of `sentences`, progress_per has no effect.
        keep_raw_vocab: `raw_vocab` is then all words of the text and their counts. Raises InputError for text that
        cannot be used, and for an update of nothing.
        """
        text = read_text(one_of(sentences, corpus_iterable), corpus_file)
        if keep_raw_vocab:
            self.raw_vocab = dict(zip(text.vocabulary.words, text.vocabulary.counts.tolist(), strict=True))
        self._take_text(text, trim_rule, update)

    def build_vocab_from_freq(
        self,
        word_freq: Mapping[str, int],
        *,
        corpus_count: int | None = None,
        trim_rule: TrimRule | None = None,
        update: bool = False,
    ) -> None:
        """Take words seen so often as `build_vocab` takes those of a text; corpus_count: of so many sentences."""
        counted = Vocabulary.from_counts(list(word_freq), np.array(list(word_freq.values()), np.int64))
        self._choose(counted, trim_rule, update)
        self.corpus_count, self.corpus_total_words = corpus_count or 0, int(counted.counts.sum())

    def _take_text(self, text: Tokens, trim_rule: TrimRule | None, update: bool = False) -> None:
        self._choose(text.vocabulary, trim_rule, update)
        self.corpus_count, self.corpus_total_words = text.n_units, len(text.ids)

    def _choose(self, counted: Vocabulary, trim_rule: TrimRule | None, update: bool) -> None:
        if update and not self.words:
            raise InputError("update=True needs a vocabulary to add to: call build_vocab without it first")
        if update:
            # A text may bring no new word that is frequent enough.
            self._grow(with_words_of(self.vocabulary, counted, self.min_count, trim_rule))
            return
        chosen = frequent_words(counted, self.min_count, self.max_final_vocab, trim_rule)
        self._take_vocabulary(chosen)
        self.effective_min_count = max(
            self.min_count, int(chosen.counts.min()) if self.max_final_vocab else 0
        )

    def _take_vocabulary(self, vocabulary: Vocabulary) -> None:
        if not len(vocabulary):
            raise InputError("the text has no words")
        self._forget_training()
        self._know(vocabulary)
        rows = len(self.words) + (self.bucket if self.max_n else 0)
        self.input_rows: np.ndarray = self._fresh_rows(rows, self.seed)
        self.output_vectors: np.ndarray = np.zeros((len(self.words), self.vector_size), np.float32)
        self.vectors: np.ndarray = self._means()

    def _know(self, vocabulary: Vocabulary) -> None:
        """Words, counts and what rows they are made of; the tables are still those of before."""
        self.vocabulary, self.words, self.counts = vocabulary, vocabulary.words, vocabulary.counts
        self._subwords = self._rows_of(self.words) if self.max_n else None

    def _fresh_rows(self, n: int, seed: Any) -> np.ndarray:
        rows = np.random.Generator(np.random.PCG64(seed)).random((n, self.vector_size), np.float32)
        rows -= np.float32(0.5)
        rows /= np.float32(self.vector_size)
        return rows

    def _grow(self, vocabulary: Vocabulary) -> None:
        """Take a vocabulary that begins with the words at hand; the tables get rows for the others."""
        known = len(self.words)
        self._know(vocabulary)
        # The known number of words is part of the seed, or a second update would repeat the first one's rows.
        added = self._fresh_rows(len(self.words) - known, [self.seed, known])
        self.input_rows = np.concatenate([self.input_rows[:known], added, self.input_rows[known:]])
        self.output_vectors = np.concatenate([self.output_vectors, np.zeros_like(added)])
        if self.hs:  # another tree, whose nodes are none of the old ones
            self.output_vectors[:] = 0
        self.vectors, self._keyed = self._means(), None

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

    def _means(self) -> np.ndarray:
        """(V, vector_size) the vectors of the words as the input rows are now; without subwords those themselves."""
        if self._subwords is None:
            return self.input_rows
        ids, bounds = self._subwords
        means = np.empty_like(self.output_vectors)
        for first in range(0, len(means), WORDS_AT_ONCE):
            block = bounds[first : first + WORDS_AT_ONCE + 1]
            sums = np.add.reduceat(self.input_rows[ids[block[0] : block[-1]]], block[:-1] - block[0])
            means[first : first + WORDS_AT_ONCE] = sums / np.diff(block)[:, None]
        return means

    def train(
        self,
        sentences: Iterable[Sequence[str]] | None = None,
        corpus_file: str | Path | None = None,
        *,
        corpus_iterable: Iterable[Sequence[str]] | None = None,
        total_examples: int | None = None,
        total_words: int | None = None,
        epochs: int | None = None,
        start_alpha: float | None = None,
        end_alpha: float | None = None,
        word_count: int = 0,
        queue_factor: int = 2,
        report_delay: float = 1.0,
        compute_loss: bool = False,
        callbacks: Sequence[Any] = (),
    ) -> tuple[int, int]:
        """Train on, on this text and with the words already known; the first text also makes the vocabulary.

        `corpus_iterable` is another name of `sentences`. The rate falls over the words that the text is found to have:
        total_examples and total_words are not needed, nor have queue_factor, report_delay and compute_loss an
        effect, as the loss is always measured. Returns gensim's (words trained, words read): of all epochs the words
        that are known, before those that `sample` leaves out, and all words.
        """
        if word_count:
            raise InputError("word_count: training cannot begin amid a text; give start_alpha for its rate")
        text = read_text(one_of(sentences, corpus_iterable), corpus_file)
        if not self.words:
            self._take_text(text, None)
        start = self.alpha if start_alpha is None else start_alpha
        end = self.min_alpha if end_alpha is None else end_alpha
        epochs = self.epochs if epochs is None else epochs
        check_count(epochs=epochs)
        check_rates(start, end, ("start_alpha", "end_alpha"))
        known = self._known(text)
        self._fit(known, epochs, start, end, callbacks)
        return epochs * int((known.ids >= 0).sum()), epochs * len(text.ids)

    def get_latest_training_loss(self) -> float:
        """The sum of the losses of all pairs since `train` began, as gensim's; measured on an eighth of them.

        `losses` are the means of the epochs, which are easier to read.
        """
        return self.running_training_loss

    @property
    def wv(self) -> Any:
        """The vectors as gensim's KeyedVectors, made once: it shares `vectors`, and follows the training."""
        if self._keyed is None:
            gensims_class()
            self._check_trained()
            self._keyed = keyed_vectors(self.words, self.vectors, self.counts)
        return self._keyed

    @property
    def syn1neg(self) -> np.ndarray:
        """gensim's name of `output_vectors` where words meet negatives, as `syn1` is where hs is 1."""
        if self.hs:
            raise AttributeError("with hs=1 the output vectors are syn1, those of the tree's nodes")
        return self.output_vectors

    @property
    def syn1(self) -> np.ndarray:
        """gensim's name of `output_vectors` where hs is 1: of the nodes of the words' Huffman tree."""
        if not self.hs:
            raise AttributeError("with hs=0 the output vectors are syn1neg, those of words")
        return self.output_vectors

    @property
    def layer1_size(self) -> int:
        """gensim's other name of `vector_size`."""
        return self.vector_size

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder, whole or not at all: `load` gives the same bits, and training goes on.

        Raises InputError for a model without words, and for a folder that holds something else.
        """
        self._check_trained()
        save_word2vec(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> Word2Vec:
        """What `save` wrote; nothing in the folder is run. Raises InputError for anything else, or damaged."""
        return load_word2vec(cls, folder)

    def __getstate__(self) -> dict[str, Any]:
        # KeyedVectors share the table and would be a second copy of it: they are made again when asked for.
        return self.__dict__ | {"_keyed": None}

    def __str__(self) -> str:
        return f"Word2Vec<vocab={len(self.words)}, vector_size={self.vector_size}, alpha={self.alpha}>"

    def _known(self, text: Tokens) -> Tokens:
        """The text in ids of the model's words; a token file of this vocabulary stays mapped."""
        known = text.in_vocabulary(self.vocabulary)
        if not (known.ids >= 0).any():
            raise InputError("the text has none of the model's words")
        return known

    def _fit(
        self, text: Tokens, epochs: int, alpha: float, min_alpha: float, callbacks: Sequence[Any]
    ) -> None:
        run = begin_run(self, text, ContextPlan(epochs, alpha, min_alpha, self.seed, self.epochs_done))
        self.running_training_loss, started = 0.0, time.perf_counter()
        try:
            _tell(callbacks, "on_train_begin", self)
            for _ in range(epochs):
                _tell(callbacks, "on_epoch_begin", self)
                self.losses.append(run.finish_epoch())
                self.running_training_loss += run.epoch_loss_sums[-1]
                self.epochs_done += 1
                self._show_vectors()
                _tell(callbacks, "on_epoch_end", self)
        finally:
            run.close()
        for name, losses in self.task_losses.items():
            losses += run.losses_of(name)
        self.train_count += 1
        self.total_train_time += time.perf_counter() - started
        self.min_alpha_yet_reached = min_alpha
        _tell(callbacks, "on_train_end", self)

    def _show_vectors(self) -> None:
        """The vectors as the input rows are now, in `wv` too, whose lengths of before are forgotten."""
        self.vectors = self._means()
        if self._keyed is not None:
            self._keyed.vectors, self._keyed.norms = self.vectors, None


def _tell(callbacks: Sequence[Any], event: str, model: Word2Vec) -> None:
    for callback in callbacks:
        getattr(callback, event, lambda _: None)(model)

"""Word2Vec (skip-gram and CBOW) with gensim's interface; results are the same bit for bit in every run on a CPU.

With max_n it is gensim's FastText: the vector of a word is the mean of its own row and the rows of its character
n-grams.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_at_most, check_count, given
from mt2st_fast.table_limits import MOST_BUCKETS, MOST_DIM
from mt2st_fast.training.schedules import Schedule, Switch
from mt2st_fast.words.context_run import ContextPlan, ContextRun
from mt2st_fast.words.gensim_errors import NoSuchNameError
from mt2st_fast.words.gensim_names import REFUSED, GensimNames
from mt2st_fast.words.gensim_options import (
    check_ngrams,
    check_predicted_by,
    check_rates,
    check_sampling,
    check_switches,
    checked_callbacks,
    one_of,
    read_text,
)
from mt2st_fast.words.gensim_vocabulary import TrimRule, counted_words, vocabulary_of
from mt2st_fast.words.table_tasks import TableTasks, check_kinds
from mt2st_fast.words.vectors import import_gensim_early
from mt2st_fast.words.word2vec_device import training_device
from mt2st_fast.words.word2vec_model import ARGUMENTS, STATE, StoredWord2Vec, read_word2vec, save_word2vec
from mt2st_fast.words.word2vec_run import tell_of_epoch, tell_of_training, training_over
from mt2st_fast.words.word_tables import WordTables

log = logging.getLogger("mt2st_fast")


class _NotOfAModel(classmethod):  # type: ignore[type-arg]
    """A classmethod that cannot be called on an instance: its result would be thrown away there."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is not None:
            raise NoSuchNameError(f"{owner.__name__} has no load: {REFUSED['load']}")
        return super().__get__(None, owner)


# Type checkers only understand a plain classmethod.
if TYPE_CHECKING:
    _of_the_class = classmethod
else:
    _of_the_class = _NotOfAModel


class Word2Vec(GensimNames):
    """Word vectors learned from text. If text is given, the constructor trains the model.

        model = Word2Vec(corpus_file="text.txt", sg=1)      # one sentence per line, words separated by blanks; or a
                                                            # token file of `mt2st-fast prepare`, which stays mapped
        model.wv.most_similar("king")                       # gensim's KeyedVectors

    Arguments have gensim's names and meanings; docs/gensim-fasttext.md lists every name. `workers` parts of the corpus
    are read side by side: the same seed and number of workers give the same bits on any number of threads. `words` are
    sorted by descending count and, for equal counts, alphabetically (gensim leaves their order undefined); with
    sorted_vocab=0 they are in order of first appearance. `vectors` (V, vector_size) are their float32 vectors, and
    `losses` are the mean losses of the epochs. Callbacks are gensim's: objects with on_train_begin(model),
    on_epoch_begin, on_epoch_end or on_train_end. hs=1 is hierarchical softmax; combined with negative sampling
    (negative=0 turns it off), words are predicted in both ways. max_final_vocab keeps the most frequent words,
    alphabetically for equal counts. Raises InputError for text or arguments that cannot be used, and for values of
    gensim's arguments that are not supported.

    min_n, max_n, bucket: as in gensim's FastText (where the defaults are 3, 6 and 2 million), the character n-grams of
    min_n to max_n characters of `<word>`, hashed into `bucket` rows; there are none while max_n is 0. With them,
    `vector("unseenword")` has a vector, too.

    tasks: files of auxiliary tasks on the same vectors, {"similarity": pairs with scores, "analogy": questions-words}
    (see mt2st_fast.data.word_batches). They take turns with the text until the schedule retires them, by default at 0.6
    of the training. `task_losses` are their losses, one number per turn. Do not evaluate the vectors on the files that
    they were trained on.

    device: "cuda" trains words (no n-grams, hs or tasks) on a GPU, where every run gives different bits; "auto" uses a
    GPU where that is possible. The vectors are copied back at the end of every epoch; `workers` has no effect on a GPU.
    """

    def __init__(
        self,
        sentences: Iterable[Sequence[str]] | None = None,
        corpus_file: str | Path | None = None,
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
        *,
        min_n: int = 0,
        max_n: int = 0,
        bucket: int = 2_000_000,
        tasks: Mapping[str, str | Path] | None = None,
        schedule: Schedule | None = None,
        device: str = "cpu",
    ) -> None:
        if null_word != 0:
            raise InputError(f"null_word={null_word!r} is not supported: there is no null word; leave it 0")
        check_switches(sg=sg, hs=hs, cbow_mean=cbow_mean, sorted_vocab=sorted_vocab)
        check_predicted_by(hs, negative, max_n)
        self.tasks, self.schedule = dict(tasks or {}), schedule or Switch(at=0.6)
        check_kinds(self.tasks)
        check_count(vector_size=vector_size, window=window, workers=workers, epochs=epochs, bucket=bucket)
        check_at_most(MOST_BUCKETS, bucket=bucket)
        check_at_most(MOST_DIM, vector_size=vector_size)
        check_count(
            batch_words=batch_words, **given(max_final_vocab=max_final_vocab, max_vocab_size=max_vocab_size)
        )
        check_count(0, min_count=min_count, seed=seed)
        check_ngrams(min_n, max_n)
        check_sampling(sample, ns_exponent)
        check_rates(alpha, min_alpha)
        told = checked_callbacks(callbacks)
        self.vector_size, self.window, self.min_count, self.workers = vector_size, window, min_count, workers
        self.sample, self.negative, self.ns_exponent, self.epochs = sample, negative, ns_exponent, epochs
        self.alpha, self.min_alpha, self.seed, self.sg = alpha, min_alpha, seed, int(sg)
        self.min_n, self.max_n, self.bucket, self.max_vocab_size = min_n, max_n, bucket, max_vocab_size
        self.max_final_vocab, self.compute_loss, self.comment = max_final_vocab, bool(compute_loss), comment
        # No effect: they concern gensim's threads, or gensim does not use them either.
        self.batch_words, self.hashfxn, self.null_word = batch_words, hashfxn, 0
        self.hs, self.cbow_mean, self.shrink_windows = int(hs), int(bool(cbow_mean)), bool(shrink_windows)
        self.sorted_vocab, self.device = int(bool(sorted_vocab)), device
        self.raw_vocab, self._keyed = {}, None
        self.tables = WordTables.empty(self._learning())
        self._training_device()
        self.corpus_count, self.corpus_total_words, self.effective_min_count = 0, 0, min_count
        self.train_count, self.total_train_time = 0, 0.0
        self._forget_training()
        if sentences is not None or corpus_file is not None:
            import_gensim_early()
            text = read_text(sentences, corpus_file)
            self._take_text(text, trim_rule)
            self._fit(self._known(text), epochs, alpha, min_alpha, told)
        elif told or trim_rule:
            log.warning("callbacks and trim_rule are not saved; pass them to train and build_vocab")

    def build_vocab(
        self,
        sentences: Iterable[Sequence[str]] | None = None,
        corpus_file: str | Path | None = None,
        update: bool = False,
        progress_per: int = 10_000,
        keep_raw_vocab: bool = False,
        trim_rule: TrimRule | None = None,
        *,
        corpus_iterable: Iterable[Sequence[str]] | None = None,
    ) -> None:
        """Take the words of a text and make fresh tables; earlier training is lost.

        `corpus_iterable` is another name for `sentences`; progress_per has no effect. update: keep the words and
        tables, add the text's counts to those of known words, and append its other words, the most frequent first.
        keep_raw_vocab: set `raw_vocab` to all words of the text and their counts. Raises InputError for text that
        cannot be used, and for an update where there is no vocabulary yet.
        """
        text = read_text(one_of(sentences, corpus_iterable), corpus_file)
        counted = self._take_text(text, trim_rule, update)
        if keep_raw_vocab:
            self.raw_vocab = dict(zip(counted.words, counted.counts.tolist(), strict=True))

    def build_vocab_from_freq(
        self,
        word_freq: Mapping[str, int],
        keep_raw_vocab: bool = False,
        corpus_count: int | None = None,
        trim_rule: TrimRule | None = None,
        update: bool = False,
    ) -> None:
        """Like `build_vocab`, from the counts of words instead of a text. corpus_count: the number of sentences."""
        counted = vocabulary_of(word_freq)
        counted = Vocabulary.from_counts(counted.words, counted.counts) if self.sorted_vocab else counted
        self._take(self._chosen(counted, trim_rule, update), update)
        self.corpus_count, self.corpus_total_words = corpus_count or 0, int(counted.counts.sum())
        if keep_raw_vocab:
            self.raw_vocab = dict(word_freq)

    def _take_text(self, text: Tokens, trim_rule: TrimRule | None, update: bool = False) -> Vocabulary:
        """Take the words of a text; return all words that there were to choose from."""
        counted = counted_words(text, self.max_vocab_size, trim_rule, bool(self.sorted_vocab))
        self._take(self._chosen(counted, trim_rule, update), update)
        self.corpus_count, self.corpus_total_words = text.n_units, len(text.ids)
        return counted

    def train(
        self,
        sentences: Iterable[Sequence[str]] | None = None,
        corpus_file: str | Path | None = None,
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
        *,
        corpus_iterable: Iterable[Sequence[str]] | None = None,
    ) -> tuple[int, int]:
        """Continue training on this text with the known words; the first text also makes the vocabulary.

        `corpus_iterable` is another name for `sentences`. The learning rate falls over the words that are counted in
        the text, so total_examples and total_words are not needed. queue_factor, report_delay and compute_loss have no
        effect: the loss is always measured. Returns gensim's (words trained, words read), summed over all epochs: the
        known words, before `sample` leaves any out, and all words.
        """
        if word_count:
            raise InputError(
                "word_count: training cannot start in the middle of a text; use start_alpha to set the learning rate"
            )
        self._check_whole()
        told = checked_callbacks(callbacks)
        text = read_text(one_of(sentences, corpus_iterable), corpus_file)
        if not self.words:
            self._take_text(text, None)
        start = self.alpha if start_alpha is None else start_alpha
        end = self.min_alpha if end_alpha is None else end_alpha
        epochs = self.epochs if epochs is None else epochs
        check_count(epochs=epochs)
        check_rates(start, end, ("start_alpha", "end_alpha"))
        known = self._known(text)
        self._fit(known, epochs, start, end, told)
        return epochs * int((known.ids >= 0).sum()), epochs * len(text.ids)

    def save(self, folder: str | Path, *, sep_limit: int | None = None) -> None:
        """Write the model to a folder, whole or not at all. `load` restores the same bits, and training can continue.

        Vectors that were set in `wv` are the model's. sep_limit has no effect: tables are always stored separately.
        Raises InputError for a model without words or with vectors only, for words that were added to `wv`, and for a
        folder that holds something else.
        """
        self._check_words()
        self._check_whole()
        self._adopt_vectors()
        locks = self._lock_factors()
        stored = StoredWord2Vec(
            {name: getattr(self, name) for name in ARGUMENTS},
            {name: os.fspath(path) for name, path in self.tasks.items()},
            self.schedule if self.tasks else None,
            {name: getattr(self, name) for name in STATE},
            self.tables.vocabulary,
            self.tables.arrays() | ({"locks": locks} if len(locks) else {}),
        )
        save_word2vec(stored, folder)

    @_of_the_class
    def load(cls, folder: str | Path, *, mmap: str | None = None) -> Word2Vec:  # noqa: N805
        """Read a model that `save` wrote, without running any code from the folder.

        mmap has no effect: the tables are read into memory, so that they can be trained. Raises InputError, which is
        also an AttributeError, for a folder that holds no such model or a damaged one.
        """
        stored = read_word2vec(folder)
        model = cls(**stored.arguments, tasks=stored.tasks, schedule=stored.schedule)
        model.tables = WordTables(stored.vocabulary, model._learning(), stored.tables)
        for name, value in stored.state.items():
            setattr(model, name, value)
        return model

    def __getstate__(self) -> dict[str, Any]:
        # KeyedVectors share the table and would store a second copy of it: they are made again when asked for.
        self._adopt_vectors()
        self._keep_locks()
        return {name: value for name, value in vars(self).items() if name != "_is_training"} | {
            "_keyed": None
        }

    def __str__(self) -> str:
        return f"Word2Vec<vocab={len(self.words)}, vector_size={self.vector_size}, alpha={self.alpha}>"

    def _known(self, text: Tokens) -> Tokens:
        """Return the text as ids of the model's words; a token file of this vocabulary stays mapped."""
        known = text.in_vocabulary(self.tables.vocabulary)
        if not (known.ids >= 0).any():
            raise InputError("the text contains none of the model's words")
        return known

    def _fit(
        self, text: Tokens, epochs: int, alpha: float, min_alpha: float, callbacks: Sequence[Any]
    ) -> None:
        self._adopt_vectors()
        tell_of_training(self._learning(), alpha, self.min_alpha_yet_reached)
        run = self._begin(text, ContextPlan(epochs, alpha, min_alpha, self.seed, self.epochs_done))
        self.running_training_loss, started = 0.0, time.perf_counter()
        self._is_training = True
        try:
            self._tell(callbacks, "on_train_begin")
            for _ in range(epochs):
                self._tell(callbacks, "on_epoch_begin")
                self.losses.append(run.finish_epoch())
                self.running_training_loss += run.epoch_loss_sums[-1]
                self.epochs_done += 1
                self.show_vectors()
                seconds = time.perf_counter() - started
                tell_of_epoch(self.epochs_done, self.losses[-1], len(text.ids), seconds)
                self._tell(callbacks, "on_epoch_end")
        finally:
            del self._is_training
            run.close()
        for name, losses in self.task_losses.items():
            losses += run.losses_of(name)
        self.train_count += 1
        self.total_train_time += time.perf_counter() - started
        self.min_alpha_yet_reached = min_alpha
        self._tell(callbacks, "on_train_end")

    def _tell(self, callbacks: Sequence[Any], event: str) -> None:
        """Tell callbacks of an event, and take over vectors that they set in `wv`."""
        for callback in callbacks:
            getattr(callback, event, lambda _: None)(self)
        if self._keyed is not None and self._keyed.vectors is not self.tables.vectors:
            self._adopt_vectors()

    def _begin(self, text: Tokens, plan: ContextPlan) -> ContextRun:
        """Return a run over the tables; the text is in ids of the words. Raises InputError if the device cannot train
        it.
        """
        t, seed = self.tables, plan.seed + plan.epochs_before
        tasks = TableTasks(self.tasks, t.vocabulary, t.input_rows, t.subwords, seed)
        locks, device = self._lock_factors(), self._training_device()
        training = training_over(t, locks, self._learning(), len(text.ids), device)
        return ContextRun(training, text, tasks, self.schedule, plan)

    def _training_device(self) -> torch.device:
        """Return the device that training uses. Raises InputError if `device` cannot train this model."""
        is_locked = len(self._lock_factors()) > 0
        return training_device(
            str(self.device), self._learning(), has_tasks=bool(self.tasks), is_locked=is_locked
        )

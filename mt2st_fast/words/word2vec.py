"""Word2Vec with gensim's arguments and gensim's vectors at the end: skip-gram and CBOW, the same bits every time.

With max_n it is gensim's FastText: a word is the mean of a row of its own and the rows of its character n-grams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import word_sampler
from mt2st_fast.kernels.context.training import ContextTraining
from mt2st_fast.model_folder import read_model, write_model
from mt2st_fast.training.context_run import ContextPlan, ContextRun, context_options
from mt2st_fast.training.schedules import Schedule, Switch
from mt2st_fast.training.table_tasks import TableTasks, check_kinds
from mt2st_fast.words.corpus import Sentences, check_totals, chosen_words, grown_vocabulary, read_corpus
from mt2st_fast.words.word2vec_options import (
    check_at_least_one,
    check_gensim_options,
    describe_schedule,
    kept_options,
    rebuild_schedule,
    sampled_share,
)
from mt2st_fast.words.word_tables import WordTables

KIND = "word2vec"
PROGRESS = ("epochs_done", "_epochs_before_train", "corpus_count", "corpus_total_words")


class Word2Vec(WordTables):
    """Word vectors from text, trained when made if there is text.

        model = Word2Vec(corpus_file="text.txt", sg=1)      # a sentence a line, words between blanks; or a
                                                            # token file of `mt2st-fast prepare`, which stays mapped
        model.wv.most_similar("king")                       # gensim's KeyedVectors

    Arguments are gensim's; a value that asks for what is not done here is refused, and those that change gensim's speed
    alone (batch_words, queue_factor, report_delay, progress_per, hashfxn) are not used. `workers` parts of the corpus
    are read side by side: the same seed and workers give the same bits on any number of threads. `words` are sorted by
    falling count, those of one count alphabetically (gensim leaves these in any order); `vectors` (V, vector_size)
    float32 are theirs, `losses` are the epochs' mean losses. Callbacks are gensim's: objects with
    on_train_begin(model), on_epoch_begin, on_epoch_end or on_train_end. Raises InputError for text or
    arguments that cannot be used.

    min_n, max_n, bucket are those of gensim's FastText, which uses 3, 6 and 2 million: character n-grams of min_n to
    max_n characters of `<word>`, hashed into `bucket` rows; none while max_n is 0. `vector("unseenword")` then has a
    vector, too.

    tasks: files of auxiliary tasks on the same vectors, {"similarity": pairs with scores, "analogy": questions-words}
    (see mt2st_fast.data.word_batches); they take turns with the text until the schedule lets them go, by default at
    0.6 of the training. `task_losses` are theirs, a number a turn. Do not judge vectors by what they were taught.

    save(folder) and Word2Vec.load(folder) keep all of it, and training goes on; copy.deepcopy and pickle do, too.
    Callbacks are not kept, nor what was added to `wv`.
    """

    # What is always so here: other values are refused.
    hs, cbow_mean, sorted_vocab, null_word, shrink_windows, max_vocab_size = 0, 1, 1, 0, True, None

    def __init__(
        self,
        sentences: Sentences | None = None,
        corpus_file: str | Path | None = None,
        vector_size: int = 100,
        alpha: float = 0.025,
        window: int = 5,
        min_count: int = 5,
        max_vocab_size: None = None,
        sample: float = 1e-3,
        seed: int = 1,
        workers: int = 2,
        min_alpha: float = 1e-4,
        sg: int = 0,
        hs: int = 0,
        negative: int = 5,
        ns_exponent: float = 0.75,
        cbow_mean: int = 1,
        hashfxn: Any = hash,
        epochs: int = 5,
        null_word: int = 0,
        trim_rule: None = None,
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
    ) -> None:
        self.tasks, self.schedule = dict(tasks or {}), schedule or Switch(at=0.6)
        check_kinds(self.tasks)
        check_gensim_options(
            hs=hs, cbow_mean=cbow_mean, null_word=null_word, sorted_vocab=sorted_vocab, trim_rule=trim_rule,
            max_vocab_size=max_vocab_size, shrink_windows=shrink_windows,
        )  # fmt: skip
        check_at_least_one(
            vector_size=vector_size, window=window, workers=workers, negative=negative,
            epochs=epochs, bucket=bucket, batch_words=batch_words,
            max_final_vocab=1 if max_final_vocab is None else max_final_vocab,
        )  # fmt: skip
        if not 0 <= min_n <= max_n:
            raise InputError(f"min_n ({min_n}) and max_n ({max_n}) must be 0 <= min_n <= max_n")
        if min_count < 0:
            raise InputError(f"min_count is {min_count}; it must not be negative")
        if sample < 0 or not alpha >= min_alpha >= 0:
            raise InputError(
                f"sample ({sample}) must not be negative, nor alpha ({alpha}) below min_alpha ({min_alpha})"
            )
        if not isinstance(comment, str | None):
            raise InputError(f"comment is {comment!r}; it is a string")
        super().__init__(vector_size, seed, min_n, max_n, bucket)
        self.window, self.min_count, self.workers, self.epochs = window, min_count, workers, epochs
        self.sample, self.negative, self.ns_exponent = sample, negative, ns_exponent
        self.alpha, self.min_alpha, self.sg = alpha, min_alpha, sg
        self.max_final_vocab, self.compute_loss, self.comment = max_final_vocab, bool(compute_loss), comment
        self.losses: list[float] = []
        self.task_losses: dict[str, list[float]] = {name: [] for name in self.tasks}
        self.epochs_done = self._epochs_before_train = self.corpus_count = self.corpus_total_words = 0
        if sentences is not None or corpus_file is not None:
            text = read_corpus(sentences, corpus_file)
            self._take_words_of(text)
            self._fit(self._known(text), epochs, alpha, min_alpha, callbacks)
        elif callbacks:
            raise InputError(
                "callbacks are given without text: they hear of training, give them to train(callbacks=)"
            )

    def build_vocab(
        self,
        sentences: Sentences | None = None,
        corpus_file: str | Path | None = None,
        update: bool = False,
        progress_per: int = 10_000,
        keep_raw_vocab: bool = False,
        trim_rule: None = None,
        *,
        corpus_iterable: Sentences | None = None,
    ) -> None:
        """Take the words of a text, those of at least min_count, and make fresh tables.

        update: keep the words and what they have learnt, counting on, and give fresh vectors to new words, which stand
        behind them. corpus_count and corpus_total_words are then the sentences and words of this text. Raises
        InputError for text that cannot be used, and to update a model that has no words.
        """
        check_gensim_options(keep_raw_vocab=keep_raw_vocab, trim_rule=trim_rule)
        self._take_words_of(read_corpus(sentences, corpus_file, corpus_iterable), update)

    def build_vocab_from_freq(
        self,
        word_freq: Mapping[str, int],
        keep_raw_vocab: bool = False,
        corpus_count: int | None = None,
        trim_rule: None = None,
        update: bool = False,
    ) -> None:
        """As `build_vocab` does, from words and how often each was seen.

        Raises InputError for a word that was never seen, too.
        """
        check_gensim_options(keep_raw_vocab=keep_raw_vocab, trim_rule=trim_rule)
        for word, count in word_freq.items():
            if count < 1:
                raise InputError(f"word_freq says {word!r} was seen {count} times; leave it out")
        if not word_freq:
            raise InputError("word_freq has no words")
        counted = Vocabulary.from_counts(word_freq, list(word_freq.values()))
        self._take_counted(counted, update)
        self.corpus_count, self.corpus_total_words = corpus_count or 0, int(counted.counts.sum())

    def _take_words_of(self, text: Tokens, update: bool = False) -> None:
        self._take_counted(text.vocabulary, update)
        self.corpus_count, self.corpus_total_words = text.n_units, len(text.ids)

    def _take_counted(self, counted: Vocabulary, update: bool) -> None:
        if not update:
            self._take_vocabulary(chosen_words(counted, self.min_count, self.max_final_vocab))
            return
        if not self.words:
            raise InputError(
                "update=True adds to words, and the model has none yet: call build_vocab without it"
            )
        self._grow_to(grown_vocabulary(self.vocabulary, counted, self.min_count, self.max_final_vocab))

    def train(
        self,
        sentences: Sentences | None = None,
        corpus_file: str | Path | None = None,
        total_examples: int | None = None,
        total_words: int | None = None,
        epochs: int | None = None,
        start_alpha: float | None = None,
        end_alpha: float | None = None,
        word_count: int = 0,
        queue_factor: int = 2,
        report_delay: float = 1.0,
        compute_loss: bool | None = None,
        callbacks: Sequence[Any] = (),
        *,
        corpus_iterable: Sentences | None = None,
    ) -> None:
        """Train on, on this text and with the words already known; the first text also makes the vocabulary.

        The rate falls over the text as often as epochs say; the text is counted here, so that total_examples and
        total_words can be left out. Raises InputError for text or arguments that cannot be used, totals that are not
        the text's among them.
        """
        check_gensim_options(word_count=word_count)
        epochs = self.epochs if epochs is None else epochs
        check_at_least_one(epochs=epochs)
        start = self.alpha if start_alpha is None else start_alpha
        end = self.min_alpha if end_alpha is None else end_alpha
        if not start >= end >= 0:
            raise InputError(
                f"the rate falls from start_alpha ({start}) to end_alpha ({end}): give both, falling"
            )
        text = read_corpus(sentences, corpus_file, corpus_iterable)
        check_totals(text, total_examples, total_words)
        if not self.words:
            self._take_words_of(text)
        self.compute_loss = self.compute_loss if compute_loss is None else bool(compute_loss)
        self._fit(self._known(text), epochs, start, end, callbacks)

    def get_latest_training_loss(self) -> float:
        """The sum of `losses` since the last training began, within it too: it grows by an epoch's mean loss.

        gensim adds up the pairs' losses, not their means. It is measured with and without compute_loss.
        """
        return float(sum(self.losses[self._epochs_before_train :]))

    def save(self, folder: str | Path) -> None:
        """Write the model to a folder (see mt2st_fast.model_folder); a model that was there is replaced.

        Both tables are kept, and training goes on from them as if there had been no folder. Raises InputError for a
        folder that holds something else or cannot be written, and for a schedule of one's own.
        """
        configuration, arrays = self._state()
        configuration["schedule"] = describe_schedule(self.schedule)
        write_model(folder, KIND, configuration, {n: torch.from_numpy(array) for n, array in arrays.items()})

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote. Raises InputError for a folder that holds no such model, or is damaged."""
        _, configuration, tensors = read_model(folder, KIND)
        model = cls.__new__(cls)
        model._restore(
            configuration,
            {name: tensor.numpy() for name, tensor in tensors.items()},
            rebuild_schedule(configuration["schedule"]),
        )
        return model

    def __getstate__(self) -> dict[str, Any]:
        configuration, arrays = self._state()
        return {"configuration": configuration, "arrays": arrays, "schedule": self.schedule}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._restore(state["configuration"], state["arrays"], state["schedule"])

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(configuration, arrays): all but the schedule, JSON-able and by name."""
        self._take_back_wv()
        configuration = {
            "options": kept_options(self),
            "tasks": {name: str(path) for name, path in self.tasks.items()},
            "words": self.words,
            "progress": {name: getattr(self, name) for name in PROGRESS},
        }
        # A loss that is not finite has no place in JSON.
        arrays = {f"task_losses/{name}": np.array(losses) for name, losses in self.task_losses.items()}
        arrays["losses"] = np.array(self.losses, np.float64)
        if self.words:
            arrays |= {name: getattr(self, name) for name in ("counts", "input_rows", "output_vectors")}
        return configuration, arrays

    def _restore(
        self, configuration: Mapping[str, Any], arrays: Mapping[str, np.ndarray], schedule: Schedule
    ) -> None:
        tasks = configuration["tasks"]
        Word2Vec.__init__(self, tasks=tasks, schedule=schedule)
        # As attributes: they may have been set as such, and what was written can be read.
        for name, value in (configuration["options"] | configuration["progress"]).items():
            setattr(self, name, value)
        self.losses = arrays["losses"].tolist()
        self.task_losses = {name: arrays[f"task_losses/{name}"].tolist() for name in tasks}
        if configuration["words"]:
            # Copies: kernels write to them, and a copy of a model shares none with it.
            vocabulary = Vocabulary(configuration["words"], arrays["counts"].copy())
            self._take_tables(vocabulary, arrays["input_rows"].copy(), arrays["output_vectors"].copy())

    def _known(self, text: Tokens) -> Tokens:
        """The text in ids of the model's words; a token file of this vocabulary stays mapped."""
        known = text.in_vocabulary(self.vocabulary)
        if not (known.ids >= 0).any():
            raise InputError("the text has none of the model's words")
        return known

    def _fit(
        self, text: Tokens, epochs: int, alpha: float, min_alpha: float, callbacks: Sequence[Any]
    ) -> None:
        run = self._begin(text, ContextPlan(epochs, alpha, min_alpha, self.seed, self.epochs_done))
        self._epochs_before_train = len(self.losses)
        try:
            _tell(callbacks, "on_train_begin", self)
            for _ in range(epochs):
                _tell(callbacks, "on_epoch_begin", self)
                self.losses.append(run.finish_epoch())
                self.epochs_done += 1
                self._means(into=self.vectors)
                self._tell_wv()
                _tell(callbacks, "on_epoch_end", self)
        except BaseException:
            self._means(into=self.vectors)  # an epoch that was broken off has moved them, too
            self._tell_wv()
            raise
        finally:
            run.close()
        for name, losses in self.task_losses.items():
            losses += run.losses_of(name)
        _tell(callbacks, "on_train_end", self)

    def _begin(self, text: Tokens, plan: ContextPlan) -> ContextRun:
        """A run that is ready for its first step."""
        self._take_back_wv()
        options = context_options(
            "skipgram" if self.sg else "cbow",
            len(text.ids),
            window=self.window,
            negatives=self.negative,
            shards=self.workers,
            subwords=self._subwords is not None,
        )
        sampler = word_sampler(
            self.counts, sampled_share(self.sample, int(self.counts.sum())), self.ns_exponent
        )
        training = ContextTraining(self.input_rows, self.output_vectors, sampler, options, self._subwords)
        seed = self.seed + self.epochs_done
        tasks = TableTasks(self.tasks, self.vocabulary, self.input_rows, self._subwords, seed)
        return ContextRun(training, text, tasks, self.schedule, plan)


def _tell(callbacks: Sequence[Any], event: str, model: Word2Vec) -> None:
    for callback in callbacks:
        getattr(callback, event, lambda _: None)(model)

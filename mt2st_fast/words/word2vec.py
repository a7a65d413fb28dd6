"""Word2Vec with gensim's arguments and gensim's vectors at the end: skip-gram and CBOW, the same bits every time.

With max_n it is gensim's FastText: a word is the mean of a row of its own and the rows of its character n-grams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mt2st_fast.data.character_ngrams import subword_ids
from mt2st_fast.data.stream import TokenStream, is_token_file
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.data.word_files import read_lines
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import word_sampler
from mt2st_fast.kernels.context.training import ContextTraining
from mt2st_fast.kernels.context.workspace import WordRows
from mt2st_fast.training.context_run import ContextPlan, ContextRun, context_options
from mt2st_fast.training.schedules import Schedule, Switch
from mt2st_fast.training.table_tasks import TableTasks, check_kinds

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
    on_epoch_begin, on_epoch_end or on_train_end. Raises InputError for text or arguments that cannot be used.

    min_n, max_n, bucket are those of gensim's FastText, which uses 3, 6 and 2 million: character n-grams of min_n to
    max_n characters of `<word>`, hashed into `bucket` rows; none while max_n is 0. `vector("unseenword")` then has a
    vector, too.

    tasks: files of auxiliary tasks on the same vectors, {"similarity": pairs with scores, "analogy": questions-words}
    (see mt2st_fast.data.word_batches); they take turns with the text until the schedule lets them go, by default at
    0.6 of the training. `task_losses` are theirs, a number a turn. Do not judge vectors by what they were taught.
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
        sample: float = 1e-3,
        seed: int = 1,
        workers: int = 2,
        min_alpha: float = 1e-4,
        sg: int = 0,
        negative: int = 5,
        ns_exponent: float = 0.75,
        epochs: int = 5,
        min_n: int = 0,
        max_n: int = 0,
        bucket: int = 2_000_000,
        tasks: Mapping[str, str | Path] | None = None,
        schedule: Schedule | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.tasks, self.schedule = dict(tasks or {}), schedule or Switch(at=0.6)
        check_kinds(self.tasks)
        _check(
            vector_size=vector_size, window=window, min_count=min_count, workers=workers, negative=negative,
            epochs=epochs, bucket=bucket,
        )  # fmt: skip
        if not 0 <= min_n <= max_n:
            raise InputError(f"min_n ({min_n}) and max_n ({max_n}) must be 0 <= min_n <= max_n")
        if sample < 0 or not alpha >= min_alpha >= 0:
            raise InputError(
                f"sample ({sample}) must not be negative, nor alpha ({alpha}) below min_alpha ({min_alpha})"
            )
        self.vector_size, self.window, self.min_count, self.workers = vector_size, window, min_count, workers
        self.sample, self.negative, self.ns_exponent, self.epochs = sample, negative, ns_exponent, epochs
        self.alpha, self.min_alpha, self.seed, self.sg = alpha, min_alpha, seed, sg
        self.min_n, self.max_n, self.bucket = min_n, max_n, bucket
        self.words: list[str] = []
        self.losses: list[float] = []
        self.task_losses: dict[str, list[float]] = {name: [] for name in self.tasks}
        self.epochs_done = 0
        if sentences is not None or corpus_file is not None:
            text = _read(sentences, corpus_file)
            self._take_vocabulary(text.vocabulary.frequent(min_count))
            self._fit(self._known(text), epochs, alpha, min_alpha, callbacks)

    def build_vocab(self, words: Sequence[str], counts: np.ndarray) -> None:
        """Take words seen counts (V,) times, those of at least min_count, and make fresh tables.

        Words of one count stand in alphabetical order. Raises InputError where none is so frequent.
        """
        self._take_vocabulary(Vocabulary.from_counts(words, counts, min_count=self.min_count))

    def _take_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        if not len(self.vocabulary):
            raise InputError("the text has no words")
        self.words, self.counts = self.vocabulary.words, self.vocabulary.counts
        generator = np.random.Generator(np.random.PCG64(self.seed))
        rows = len(self.words) + (self.bucket if self.max_n else 0)
        self.input_rows: np.ndarray = generator.random((rows, self.vector_size), np.float32)
        self.input_rows -= np.float32(0.5)
        self.input_rows /= np.float32(self.vector_size)
        self.output_vectors: np.ndarray = np.zeros((len(self.words), self.vector_size), np.float32)
        self._subwords = self._rows_of(self.words) if self.max_n else None
        self.vectors: np.ndarray = self._means()

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
        epochs: int | None = None,
        start_alpha: float | None = None,
        end_alpha: float | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        """Train on, on this text and with the words already known; the first text also makes the vocabulary."""
        text = _read(sentences, corpus_file)
        if not self.words:
            self._take_vocabulary(text.vocabulary.frequent(self.min_count))
        start = self.alpha if start_alpha is None else start_alpha
        end = self.min_alpha if end_alpha is None else end_alpha
        self._fit(self._known(text), self.epochs if epochs is None else epochs, start, end, callbacks)

    @property
    def wv(self) -> Any:
        """The vectors as gensim's KeyedVectors; changes to them are not seen here."""
        try:
            from gensim.models import KeyedVectors
        except ImportError:
            raise InputError(
                ".wv needs gensim: pip install 'mt2st-fast[words]', or use .words and .vectors"
            ) from None
        self._check_trained()
        keyed = KeyedVectors(self.vector_size, count=len(self.words))
        keyed.index_to_key = list(self.words)
        keyed.key_to_index = {word: i for i, word in enumerate(self.words)}
        keyed.vectors = self.vectors.copy()
        keyed.expandos = {"count": self.counts.copy()}
        return keyed

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
        try:
            _tell(callbacks, "on_train_begin", self)
            for _ in range(epochs):
                _tell(callbacks, "on_epoch_begin", self)
                self.losses.append(run.finish_epoch())
                self.epochs_done += 1
                self.vectors = self._means()
                _tell(callbacks, "on_epoch_end", self)
        finally:
            run.close()
        for name, losses in self.task_losses.items():
            losses += run.losses_of(name)
        _tell(callbacks, "on_train_end", self)

    def _begin(self, text: Tokens, plan: ContextPlan) -> ContextRun:
        """A run that is ready for its first step."""
        options = context_options(
            "skipgram" if self.sg else "cbow",
            len(text.ids),
            window=self.window,
            negatives=self.negative,
            shards=self.workers,
            subwords=self._subwords is not None,
        )
        sampler = word_sampler(self.counts, self.sample, self.ns_exponent)
        training = ContextTraining(self.input_rows, self.output_vectors, sampler, options, self._subwords)
        seed = self.seed + self.epochs_done
        tasks = TableTasks(self.tasks, self.vocabulary, self.input_rows, self._subwords, seed)
        return ContextRun(training, text, tasks, self.schedule, plan)


def _check(**least_one: int) -> None:
    for name, value in least_one.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def _tell(callbacks: Sequence[Any], event: str, model: Word2Vec) -> None:
    for callback in callbacks:
        getattr(callback, event, lambda _: None)(model)


def _read(sentences: Iterable[Sequence[str]] | None, corpus_file: str | Path | None) -> Tokens:
    """The text in ids of its own words."""
    if (sentences is None) == (corpus_file is None):
        raise InputError("give either sentences or a corpus_file")
    if corpus_file is not None and is_token_file(Path(corpus_file)):
        return TokenStream.open(corpus_file)
    if isinstance(sentences, str):
        raise InputError("sentences are lists of words, not one string; for a file use corpus_file")
    try:
        if sentences is not None:
            text = Tokens.of(sentences)
        else:
            with Path(str(corpus_file)).open("rb") as file:
                text = read_lines(file)
    except OSError as error:
        raise InputError(f"cannot read {corpus_file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{corpus_file} is not UTF-8 text") from None
    if not len(text.ids):
        raise InputError("the text has no words")
    return text

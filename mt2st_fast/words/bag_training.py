"""Train a classifier of bags of words and n-grams from documents and targets, with one head per target column."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator, closing
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

from mt2st_fast.data import BagBatches, TargetColumn
from mt2st_fast.data.bag_features import BagFeatures
from mt2st_fast.data.batches import MOST_ROWS, batch_size_for
from mt2st_fast.data.corpus import Corpus
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.environment import cpu_threads
from mt2st_fast.errors import InputError
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.modes import check_records
from mt2st_fast.model.tasks import Classification, MultiLabel, task_of_column
from mt2st_fast.numbers import (
    check_at_most,
    check_count,
    check_positive,
    check_positive_in_float32,
    given,
    is_number,
)
from mt2st_fast.table_limits import MOST_BUCKETS, MOST_DIM, naming_table
from mt2st_fast.training.optimizers.row_sparse import RowwiseAdagrad
from mt2st_fast.training.schedules import MultiTask, Schedule
from mt2st_fast.training.trained_heads import heads_without, untrained
from mt2st_fast.training.trainer import Trainer
from mt2st_fast.words.label_counts import LabelFamily
from mt2st_fast.words.supervised_model import SupervisedModel
from mt2st_fast.words.vectors import WordVectors

log = logging.getLogger("mt2st_fast")

LEAST_BATCH, RATE_OF_LEAST, RATE_OF_MOST = 64, 0.03, 0.2
MOST_KEPT_IDS = 50_000_000  # batches with up to this many ids are kept in memory; an id takes about 15 bytes
ROWS_DRAWN_AT_ONCE = 4096


@dataclass(frozen=True)
class BagOptions:
    """Options of `train_supervised`, documented there; trainer: other options, which go to the Trainer.

    Raises InputError for an option out of range.
    """

    dim: int = 100
    epoch: float = 5
    lr: float | None = None
    min_count: int = 1
    word_ngrams: int = 1
    bucket: int = 200_000
    minn: int = 0
    maxn: int = 0
    schedule: Schedule | None = None
    batch_size: int | None = None
    dropout: float = 0.0
    seed: int = 1
    threads: int | None = None
    device: str = "auto"
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count(
            1,
            dim=self.dim,
            min_count=self.min_count,
            word_ngrams=self.word_ngrams,
            bucket=self.bucket,
            **given(batch_size=self.batch_size, threads=self.threads),
        )
        check_count(0, minn=self.minn, maxn=self.maxn, seed=self.seed)
        check_positive(epoch=self.epoch)
        check_positive_in_float32(**given(lr=self.lr))
        if self.minn > self.maxn:
            raise InputError(f"minn ({self.minn}) and maxn ({self.maxn}) must satisfy 0 <= minn <= maxn")
        check_at_most(MOST_BUCKETS, bucket=self.bucket)
        check_at_most(MOST_DIM, dim=self.dim)
        if not (is_number(self.dropout) and 0 <= self.dropout < 1):
            raise InputError(f"dropout must be a probability below 1, not {self.dropout!r}")


class _KeepingRandomNumbers(ContextDecorator):
    """Lets the caller's random numbers go on as if nothing was, when the last of overlapping trainings has ended.

    Threads share torch's generator: one that put back what it found would put back the numbers of another training.
    """

    def __init__(self) -> None:
        self._lock, self._n_trainings, self._before = Lock(), 0, torch.empty(0)

    def __enter__(self) -> None:
        with self._lock:
            if not self._n_trainings:
                self._before = torch.get_rng_state()
            self._n_trainings += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_trainings -= 1
            if not self._n_trainings:
                torch.set_rng_state(self._before)


keeping_random_numbers = _KeepingRandomNumbers()


@keeping_random_numbers
def train_bags(
    documents: Tokens,
    targets: Mapping[str, TargetColumn],
    options: BagOptions,
    vectors: WordVectors | None = None,
    *,
    prefix: str = "__label__",
    split_labels: bool = True,
) -> SupervisedModel:
    """Train on documents with one target column per family, the main family first.

    vectors: vectors that words start from; the model also knows those of its words that the documents lack. prefix,
    split_labels: how the model reads labels in files. The model has the families that training trained, and one line
    names the others. Raises InputError where no word is frequent enough.
    """
    check_records()  # before tables are made, which could not be trained later either
    features = BagFeatures.learn(
        documents, options.min_count, options.word_ngrams, options.bucket, options.minn, options.maxn
    )
    features = features if vectors is None else replace(features, vocabulary=_with_words(features, vectors))
    corpus = Corpus(*features.bags(documents), dict(targets), level="document")
    batch_size = options.batch_size or batch_size_for(corpus.n_rows, LEAST_BATCH)
    torch.manual_seed(int(options.seed))  # for dropout
    # The table has a generator of its own, so that models of several threads do not depend on each other.
    draw = torch.Generator().manual_seed(int(options.seed))
    encoder = make_bag_encoder(features.size, options.dim, options.dropout, draw)
    if vectors is not None:
        rows = torch.from_numpy(features.vocabulary.ids_of(vectors.words)).long()
        encoder.table.data[rows] = torch.from_numpy(np.array(vectors.vectors))
    main = next(iter(targets))
    heads = MultiTaskHeads(options.dim, {family: _task(column) for family, column in targets.items()}, main)
    _zero(heads)
    trainer = _trainer(encoder, heads, options, batch_size)
    batches = BagBatches(
        corpus, batch_size, main, seed=options.seed, fixed_batches=len(corpus.tokens) <= MOST_KEPT_IDS
    )
    with cpu_threads(options.threads), closing(batches):
        trainer.fit(batches, epochs=options.epoch)
    left_out = untrained(heads, trainer.history)
    if left_out:
        log.warning("the model leaves out %s: no step trained the head", ", ".join(left_out))
    known = {family: LabelFamily.of(column) for family, column in targets.items() if family not in left_out}
    return SupervisedModel(
        features, known, encoder, heads_without(heads, left_out), prefix, split_labels, trainer
    )


def _trainer(encoder: BagEncoder, heads: MultiTaskHeads, options: BagOptions, batch_size: int) -> Trainer:
    others: dict[str, Any] = {
        "lr_decay": "none" if options.trainer.get("lr_scheduler") else "linear",
        "device": options.device,
    } | dict(options.trainer)
    if "optimizer" not in others:
        lr = rate_for(batch_size) if options.lr is None else options.lr
        others |= {"optimizer": lambda parameters: RowwiseAdagrad(parameters, lr=lr), "lr": lr}
    return Trainer(encoder, heads, schedule=options.schedule or MultiTask(), **others)


def rate_for(batch_size: int) -> float:
    """Return the default learning rate of row-wise Adagrad for a batch size.

    It is 0.03 at 64 and 0.2 at 512, and a power of the batch size between. These rates gave the best final results on
    short sentences and on long documents, at 400 to 8,500 of them.
    """
    size = min(max(batch_size, LEAST_BATCH), MOST_ROWS)
    way = math.log(size / LEAST_BATCH, MOST_ROWS / LEAST_BATCH)  # from 0 to 1
    return float(RATE_OF_LEAST * (RATE_OF_MOST / RATE_OF_LEAST) ** way)


def make_bag_encoder(
    num_types: int, dim: int, dropout: float = 0.0, draw: torch.Generator | None = None
) -> BagEncoder:
    """Return an encoder with a row-sparse table of small random vectors, as fastText starts with.

    draw: the generator of its random numbers, by default torch's own.
    """
    with torch.device("meta"):  # skips the encoder's own, slower initialization
        encoder = BagEncoder(num_types, dim, sparse=True, dropout=dropout)
    with naming_table(num_types, dim):
        encoder.to_empty(device="cpu")
    _fill_uniform(encoder.table.data, 1.0 / dim, draw)
    return encoder


def _fill_uniform(table: torch.Tensor, bound: float, draw: torch.Generator | None) -> None:
    """Fill a table with random numbers within the bound, drawn on all cores.

    Every block of rows has its own seed, so the numbers are the same on any number of cores.
    """
    seed = int(torch.randint(2**48, (), generator=draw, device="cpu"))

    def fill(block: tuple[int, torch.Tensor]) -> None:
        i, rows = block
        rows.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed + i))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(fill, enumerate(table.split(ROWS_DRAWN_AT_ONCE))):
            pass


def _zero(heads: MultiTaskHeads) -> None:
    """Set all heads to zero, as in fastText: the first steps then move the heads and not the words."""
    for linear in heads.linears.values():
        nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]


def _task(column: TargetColumn) -> Classification | MultiLabel:
    task: Classification | MultiLabel = task_of_column(column.kind, column.size)
    return task


def _with_words(features: BagFeatures, vectors: WordVectors) -> Vocabulary:
    """Return the words of training, then those that only have a vector."""
    known = features.vocabulary
    others = sorted(word for word in vectors.words if word not in known)
    return Vocabulary([*known.words, *others], np.append(known.counts, np.zeros(len(others), np.int64)))

"""A fastText-shaped door: text classifiers over bags of words and n-grams, one head for each family of labels."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mt2st_fast.data import BagBatches, TargetColumn
from mt2st_fast.data.batches import MOST_ROWS, batch_size_for
from mt2st_fast.data.labelled_text import (
    DEFAULT_FAMILY,
    BagFeatures,
    LabelledText,
    bag_corpus,
    read_labelled_text,
    target_columns,
)
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import Classification, MultiLabel, task_of_column
from mt2st_fast.numbers import check_count, check_positive, given, is_number
from mt2st_fast.training.optim import RowwiseAdagrad
from mt2st_fast.training.schedules import MultiTask, Schedule
from mt2st_fast.training.trainer import Trainer
from mt2st_fast.words.fasttext_options import SAME, loss_of, with_fasttext_names
from mt2st_fast.words.label_counts import LabelFamily
from mt2st_fast.words.supervised_model import SupervisedModel
from mt2st_fast.words.vectors import WordVectors

log = logging.getLogger("mt2st_fast")
LEAST_BATCH, RATE_OF_LEAST, RATE_OF_MOST = 64, 0.03, 0.2
MOST_KEPT_IDS = 50_000_000  # of batches that are kept in memory, where an id takes about 15 bytes
MOST_BUCKETS = 2_000_000_000  # rows have numbers of 32 bits
ROWS_DRAWN_AT_ONCE = 4096
MOST_NAMED = 5  # families in a line of the log


@with_fasttext_names
def train_supervised(
    path: str | Path,
    *,
    dim: int = 100,
    epoch: float = 5,
    lr: float | None = None,
    min_count: int = 1,
    word_ngrams: int = 1,
    bucket: int = 200_000,
    minn: int = 0,
    maxn: int = 0,
    label: str = "__label__",
    families: bool | None = None,
    loss: str | None = None,
    pretrained_vectors: str | Path | None = None,
    main: str | None = None,
    schedule: Schedule | None = None,
    batch_size: int | None = None,
    dropout: float = 0.0,
    seed: int = 1,
    threads: int | None = None,
    device: str = "auto",
    **trainer_options: Any,
) -> SupervisedModel:
    """Train on a file of `__label__` lines, one head for each label family, and return the model.

    path: UTF-8 text, a document a line, .gz too. families: whether `__label__topic__sport` is sport of the family
    topic, or a label `topic__sport`; by default it is, and a line of the log says what became of it. main: the family
    to get right, the first in the file by default; the others are auxiliary tasks, which `schedule` (MultiTask() by
    default) may let go. loss: "ova" for any of a family's labels on a document, "softmax" for one; by default as the
    file has them. batch_size: documents a step; by default 64 to 512, by their number. lr: of row-wise Adagrad, falling
    linearly to 0; by default 0.03 to 0.2, by the batch, as large ones take fewer steps. word_ngrams: up to so many
    words in a row get a vector, hashed into `bucket` rows. minn, maxn: the character n-grams of that many characters of
    `<word>` stand in the bag beside the word, hashed into the same rows, so that a word that training never saw has a
    vector too; none while maxn is 0. pretrained_vectors: a file of vectors to begin with; its other words are known to
    the model, too. threads: CPU threads to train with, torch's by default. epoch, dim, min_count: as in fastText, whose
    names of options (wordNgrams, minCount, ...) are taken, too. Other options go to the Trainer.

    Raises InputError for a file or a family that cannot be used and for an option out of range.
    """
    check_count(
        1,
        dim=dim,
        min_count=min_count,
        word_ngrams=word_ngrams,
        bucket=bucket,
        **given(batch_size=batch_size, threads=threads),
    )
    check_count(0, minn=minn, maxn=maxn, seed=seed)
    check_positive(epoch=epoch, **given(lr=lr))
    _check_others(minn, maxn, bucket, dropout, label, families)
    _check_trainer_options(lr, trainer_options)
    loss = loss_of(loss)
    text = read_labelled_text(Path(path), label, families is not False)
    if families is None:
        _tell_families(path, text)
    main = text.families[0] if main is None else main
    if main not in text.families:
        raise InputError(f"{path}: has no label family {main}; there are {', '.join(text.families)}")
    order = [main, *(family for family in text.families if family != main)]
    targets = target_columns(text, order, any_of=loss == "ova")
    _check_loss(path, loss, targets)
    features = BagFeatures.learn(text.documents, min_count, word_ngrams, bucket, minn, maxn)
    vectors = None if pretrained_vectors is None else _vectors(pretrained_vectors, dim)
    features = features if vectors is None else replace(features, vocabulary=_with_words(features, vectors))
    corpus = bag_corpus(text, features, targets)
    batch_size = batch_size_for(corpus.n_rows, LEAST_BATCH) if batch_size is None else batch_size
    lr = rate_for(batch_size) if lr is None else lr
    torch.manual_seed(seed)
    encoder = make_bag_encoder(features.size, dim, dropout)
    if vectors is not None:
        rows = torch.from_numpy(features.vocabulary.ids_of(vectors.words)).long()
        encoder.table.data[rows] = torch.from_numpy(np.array(vectors.vectors))
    heads = MultiTaskHeads(dim, {family: _task(column) for family, column in targets.items()}, main)
    _zero(heads)
    options: dict[str, Any] = {
        "lr_decay": "linear",
        "fuse_backward": True,
        "device": device,
    } | trainer_options
    if "optimizer" not in options:
        options |= {"optimizer": lambda parameters: RowwiseAdagrad(parameters, lr=lr), "lr": lr}
    trainer = Trainer(encoder, heads, schedule=schedule or MultiTask(), **options)
    batches = BagBatches(
        corpus, batch_size, main, seed=seed, fixed_batches=len(corpus.tokens) <= MOST_KEPT_IDS
    )
    with _threads(threads), closing(batches):
        trainer.fit(batches, epochs=epoch)
    known = {family: LabelFamily.of(column) for family, column in targets.items()}
    return SupervisedModel(features, known, encoder, heads, label, families is not False, trainer)


def _check_others(minn: int, maxn: int, bucket: int, dropout: Any, label: Any, families: Any) -> None:
    if minn > maxn:
        raise InputError(f"minn ({minn}) and maxn ({maxn}) must be 0 <= minn <= maxn")
    if bucket > MOST_BUCKETS:
        raise InputError(f"bucket must be at most {MOST_BUCKETS:,}, not {bucket:,}")
    if not (is_number(dropout) and 0 <= dropout < 1):
        raise InputError(f"dropout must be a probability below 1, not {dropout!r}")
    if not isinstance(label, str) or label.split() != [label]:
        raise InputError(f"label must be what label words begin with, such as '__label__', not {label!r}")
    if families not in (True, False, None):
        raise InputError(f"families must be True, False or None, not {families!r}")


def _check_trainer_options(lr: float | None, trainer_options: Mapping[str, Any]) -> None:
    """Raises InputError for options that nobody knows, or that nobody would read."""
    of_trainer = set(inspect.signature(Trainer).parameters) - {"encoder", "heads"}
    for name in trainer_options.keys() - of_trainer:
        near = get_close_matches(
            name, [*inspect.signature(train_supervised).parameters, *of_trainer, *SAME], 1
        )
        raise InputError(f"train_supervised has no option {name}{f'; is {near[0]} meant?' if near else ''}")
    if lr is not None and "optimizer" in trainer_options:
        raise InputError("lr and optimizer are both given; an optimizer has a rate of its own: leave lr out")
    if trainer_options.get("weight_decay"):
        raise InputError(
            "weight_decay belongs to the Trainer's own optimizer; give optimizer= with one of yours"
        )


def _check_loss(path: str | Path, loss: str | None, targets: Mapping[str, TargetColumn]) -> None:
    several = [family for family, column in targets.items() if column.kind == "labels"]
    if loss == "softmax" and several:
        raise InputError(
            f"{path}: documents have several labels of the family {several[0]}; loss='softmax' is for one: "
            "give loss='ova', or leave it out"
        )


def _tell_families(path: str | Path, text: LabelledText) -> None:
    """One line about labels that have `__` within, whose meaning was not said."""
    if text.families == (DEFAULT_FAMILY,):
        return
    sizes = {family: len(text.labels[family].names) for family in text.families}
    named = [f"{family} ({n:,} label{'s' if n > 1 else ''})" for family, n in sizes.items()]
    more = f" and {len(named) - MOST_NAMED:,} more" if len(named) > MOST_NAMED else ""
    log.warning(
        "%s: `__` within a label is read as the end of its family: %s%s; families=False takes labels whole, "
        "families=True says that they are these",
        path,
        ", ".join(named[:MOST_NAMED]),
        more,
    )


def _vectors(path: str | Path, dim: int) -> WordVectors:
    """Vectors to begin with. Raises InputError for a file that cannot be read, or of another length."""
    vectors = WordVectors.read(path)
    if vectors.dim != dim:
        raise InputError(f"{path}: has vectors of {vectors.dim} numbers; give dim={vectors.dim}, not {dim}")
    return vectors


def _with_words(features: BagFeatures, vectors: WordVectors) -> Vocabulary:
    """The words of training, then those that have a vector alone."""
    known = features.vocabulary
    others = sorted(word for word in vectors.words if word not in known)
    return Vocabulary([*known.words, *others], np.append(known.counts, np.zeros(len(others), np.int64)))


@contextmanager
def _threads(n: int | None) -> Iterator[None]:
    """torch's CPU threads, and so the kernels', for a while."""
    before = torch.get_num_threads()
    try:
        if n is not None:
            torch.set_num_threads(int(n))
        yield
    finally:
        torch.set_num_threads(before)


def rate_for(batch_size: int) -> float:
    """The learning rate of row-wise Adagrad for batches of so many documents.

    0.03 at 64 and 0.2 at 512, a power of the size between: what ends best on short sentences and on long documents at
    400 to 8,500 of them, and what 512 began with.
    """
    size = min(max(batch_size, LEAST_BATCH), MOST_ROWS)
    way = math.log(size / LEAST_BATCH, MOST_ROWS / LEAST_BATCH)  # from 0 to 1
    return float(RATE_OF_LEAST * (RATE_OF_MOST / RATE_OF_LEAST) ** way)


def make_bag_encoder(num_types: int, dim: int, dropout: float = 0.0) -> BagEncoder:
    """A row-sparse table of small random vectors, as fastText begins with."""
    with torch.device("meta"):  # without the encoder's own start, which would take longer than this one
        encoder = BagEncoder(num_types, dim, sparse=True, dropout=dropout)
    encoder.to_empty(device="cpu")
    _fill_uniform(encoder.table.data, 1.0 / dim)
    return encoder


def _fill_uniform(table: torch.Tensor, bound: float) -> None:
    """Random numbers within the bound, drawn on all cores: a block of rows has a seed of its own, so that they are
    the same on any number of them.
    """
    seed = int(torch.randint(2**48, ()))

    def fill(block: tuple[int, torch.Tensor]) -> None:
        i, rows = block
        rows.uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed + i))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(fill, enumerate(table.split(ROWS_DRAWN_AT_ONCE))):
            pass


def _zero(heads: MultiTaskHeads) -> None:
    """Heads begin at zero, as in fastText: the first steps move the heads and not the words."""
    for linear in heads.linears.values():
        nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]


def _task(column: TargetColumn) -> Classification | MultiLabel:
    task: Classification | MultiLabel = task_of_column(column.kind, column.size)
    return task

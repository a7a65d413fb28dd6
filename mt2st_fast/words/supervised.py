"""A fastText-shaped door: text classifiers over bags of words and n-grams, one head for each family of labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mt2st_fast.data import BagBatches, TargetColumn, evaluation_batches
from mt2st_fast.data.batches import MOST_ROWS, batch_size_for
from mt2st_fast.data.labelled_text import (
    BagFeatures,
    bag_corpus,
    read_labelled_text,
    target_columns,
)
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.errors import InputError
from mt2st_fast.model.encoders import BagEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.tasks import Classification, MultiLabel, task_of_column
from mt2st_fast.training.history import History
from mt2st_fast.training.optim import RowwiseAdagrad
from mt2st_fast.training.schedules import MultiTask, Schedule
from mt2st_fast.training.trainer import Trainer

EVALUATION_ROWS = 4096
LEAST_BATCH, RATE_OF_LEAST, RATE_OF_MOST = 64, 0.03, 0.2
MOST_KEPT_IDS = 50_000_000  # of batches that are kept in memory, where an id takes about 15 bytes


@dataclass(frozen=True)
class Prediction:
    """The k most likely labels of a document, the likeliest first."""

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


class SupervisedModel:
    """What `train_supervised` returns: predicts, tests, and gives vectors of words and documents."""

    def __init__(
        self,
        features: BagFeatures,
        targets: dict[str, TargetColumn],
        trainer: Trainer,
        prefix: str,
    ) -> None:
        self.features, self.prefix = features, prefix
        self.trainer = trainer
        self.labels = {family: column.class_names for family, column in targets.items()}
        self._columns = targets

    @property
    def main(self) -> str:
        """The family that training ends on."""
        return self.trainer.heads.main

    @property
    def words(self) -> list[str]:
        """The words that have a vector of their own, the most frequent first."""
        return self.features.vocabulary.words

    @property
    def history(self) -> History:
        """What happened while training."""
        return self.trainer.history

    @torch.no_grad()
    def predict(self, text: str, k: int = 1, family: str | None = None) -> Prediction:
        """The k likeliest labels of one line of text, of the main family by default.

        Raises ValueError for an unknown family.
        """
        family = self._known(family)
        logits = self.trainer.heads.logits(self._document(text), family)[0]
        many = isinstance(self.trainer.heads.tasks[family], MultiLabel)
        probabilities = logits.sigmoid() if many else logits.softmax(0)
        best = probabilities.topk(min(k, len(probabilities)))
        return Prediction(
            tuple(self.labels[family][i] for i in best.indices.tolist()), tuple(best.values.tolist())
        )

    def test(self, path: str | Path) -> dict[str, float]:
        """The metric of every family in a file: accuracy, or micro F1 where a document may have several labels.

        A label that training never saw counts as an error. Raises InputError as reading does.
        """
        text = read_labelled_text(Path(path), self.prefix)
        families = [family for family in self.labels if family in text.families]
        if not families:
            raise InputError(f"{path}: has no label of {', '.join(self.labels)}")
        found = target_columns(text, families)
        targets = {family: _as_trained(found[family], self._columns[family]) for family in families}
        corpus = bag_corpus(text, self.features, targets)
        metrics = self.trainer.evaluate(evaluation_batches(corpus, EVALUATION_ROWS), families)
        for family in families:
            # Rows with an unseen label have no class to compare with: they were left out, and are wrong.
            known, labelled = targets[family].labelled().sum(), found[family].labelled().sum()
            if targets[family].kind == "classes" and known < labelled:
                metrics[family] *= known / labelled if known else 0.0
        return metrics

    @torch.no_grad()
    def vector(self, word: str) -> np.ndarray:
        """(dim,) float32 of any string: the mean of its own vector, if training saw it, and of its n-grams' vectors.

        Zeros for a word that has neither: unseen, and training was without n-grams (`maxn=0`).
        """
        _, ids = self.features.subwords(word)
        return self._bags(ids, np.array([0, len(ids)], np.int64))[0].cpu().numpy()

    def get_word_vector(self, word: str) -> np.ndarray:
        """fastText's name of `vector`."""
        return self.vector(word)

    def get_subwords(self, word: str) -> tuple[list[str], np.ndarray]:
        """The word itself, if training saw it, and its character n-grams; and their rows in the table, int32."""
        return self.features.subwords(word)

    @torch.no_grad()
    def get_sentence_vector(self, text: str) -> np.ndarray:
        """(dim,) float32, the mean of the vectors in the bag of a line."""
        return self._document(text)[0].cpu().numpy()

    def _document(self, text: str) -> Tensor:
        return self._bags(*self.features.bags(Tokens.of([text.split()])))

    def _bags(self, ids: np.ndarray, bounds: np.ndarray) -> Tensor:
        """(N, dim) features of N bags."""
        device = self.trainer.device
        self.trainer.encoder.eval()
        features: Tensor = self.trainer.encoder(
            (torch.from_numpy(ids).to(device), torch.from_numpy(bounds).to(device))
        )
        return features

    def _known(self, family: str | None) -> str:
        if family is not None and family not in self.labels:
            raise ValueError(f"unknown label family {family}; there are {', '.join(self.labels)}")
        return self.main if family is None else family


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
    main: str | None = None,
    schedule: Schedule | None = None,
    batch_size: int | None = None,
    dropout: float = 0.0,
    seed: int = 1,
    device: str = "auto",
    **trainer_options: Any,
) -> SupervisedModel:
    """Train on a file of `__label__` lines, one head for each label family, and return the model.

    path: UTF-8 text, a document a line, .gz too. main: the family to get right, the first in the file by default;
    the others are auxiliary tasks, which `schedule` (MultiTask() by default) may let go. batch_size: documents a step;
    by default 64 to 512, by their number. lr: of row-wise Adagrad, falling linearly to 0; by default 0.03 to 0.2, by
    the batch, as large ones take fewer steps. word_ngrams: up to so many words in a row get a vector, hashed into
    `bucket` rows. minn, maxn: the character n-grams of that many characters of `<word>` stand in the bag beside the
    word, hashed into the same rows, so that a word that training never saw has a vector too; none while maxn is 0.
    epoch, dim, min_count: as in fastText. Other options go to the Trainer.

    Raises InputError for a file or a family that cannot be used, ValueError for an option out of range.
    """
    for name, value in (
        ("dim", dim),
        ("min_count", min_count),
        ("word_ngrams", word_ngrams),
        ("bucket", bucket),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not 0 <= minn <= maxn:
        raise ValueError(f"minn ({minn}) and maxn ({maxn}) must be 0 <= minn <= maxn")
    text = read_labelled_text(Path(path), label)
    main = text.families[0] if main is None else main
    if main not in text.families:
        raise InputError(f"{path}: has no label family {main}; there are {', '.join(text.families)}")
    targets = target_columns(text, [main, *(family for family in text.families if family != main)])
    features = BagFeatures.learn(text.documents, min_count, word_ngrams, bucket, minn, maxn)
    corpus = bag_corpus(text, features, targets)
    batch_size = batch_size_for(corpus.n_rows, LEAST_BATCH) if batch_size is None else batch_size
    lr = rate_for(batch_size) if lr is None else lr
    torch.manual_seed(seed)
    encoder = make_bag_encoder(features.size, dim, dropout)
    heads = MultiTaskHeads(dim, {family: _task(column) for family, column in targets.items()}, main)
    _zero(heads)
    options: dict[str, Any] = {
        "lr_decay": "linear",
        "fuse_backward": True,
        "device": device,
    } | trainer_options
    options.setdefault("optimizer", lambda parameters: RowwiseAdagrad(parameters, lr=lr))
    trainer = Trainer(encoder, heads, schedule=schedule or MultiTask(), **options)
    batches = BagBatches(
        corpus, batch_size, main, seed=seed, fixed_batches=len(corpus.tokens) <= MOST_KEPT_IDS
    )
    trainer.fit(batches, epochs=epoch)
    batches.close()
    return SupervisedModel(features, targets, trainer, label)


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
    with torch.no_grad():
        encoder.table.uniform_(-1.0 / dim, 1.0 / dim)
    return encoder


def _zero(heads: MultiTaskHeads) -> None:
    """Heads begin at zero, as in fastText: the first steps move the heads and not the words."""
    for linear in heads.linears.values():
        nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]


def _task(column: TargetColumn) -> Classification | MultiLabel:
    task: Classification | MultiLabel = task_of_column(column.kind, column.size)
    return task


def _as_trained(found: TargetColumn, trained: TargetColumn) -> TargetColumn:
    """The column over the labels of training; a label that it never saw is missing."""
    place_of = {name: i for i, name in enumerate(trained.class_names)}
    places = [place_of.get(name) for name in found.class_names]
    kind: Literal["classes", "labels"] = "labels" if trained.kind == "labels" else "classes"
    if kind == "labels":
        dense = _one_hot(found)
        values = np.where(found.labelled()[:, None], 0.0, np.nan).astype(np.float32)
        values = np.repeat(values, trained.size, axis=1)
        for source, place in enumerate(places):
            if place is not None:
                values[:, place] = dense[:, source]
        return TargetColumn("labels", trained.class_names, values)
    return TargetColumn("classes", trained.class_names, _reindexed(found, places))


def _reindexed(found: TargetColumn, places: Sequence[int | None]) -> np.ndarray:
    # The first label of a document that has several, as training had one each.
    first = found.values if found.kind == "classes" else _first_label(found.values)
    lookup = np.array([-100 if place is None else place for place in places] + [-100], np.int64)
    return lookup[np.where(first < 0, len(places), first)]


def _first_label(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values[:, 0]), -100, np.nan_to_num(values).argmax(1)).astype(np.int64)


def _one_hot(found: TargetColumn) -> np.ndarray:
    if found.kind == "labels":
        return found.values
    dense = np.zeros((len(found), found.size), np.float32)
    labelled = found.labelled()
    dense[labelled, found.values[labelled]] = 1.0
    dense[~labelled] = np.nan
    return dense

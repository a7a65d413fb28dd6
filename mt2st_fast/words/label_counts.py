"""Compare predicted labels with those of labelled documents: counts of each label, and what they say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mt2st_fast.data import TargetColumn
from mt2st_fast.data.labelled_text import Labels
from mt2st_fast.data.record import rows_with, unseen_line

log = logging.getLogger("mt2st_fast")


@dataclass(frozen=True)
class LabelFamily:
    """The labels that training saw: kind is that of their TargetColumn, counts are their numbers of documents."""

    kind: Literal["classes", "labels"]
    names: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, column: TargetColumn) -> LabelFamily:
        """Make the family of a column of the training data."""
        if column.kind == "labels":
            return cls("labels", column.class_names, tuple(map(int, np.nansum(column.values, 0))))
        counts = np.bincount(column.values[column.labelled()], minlength=column.size)
        return cls("classes", column.class_names, tuple(counts.tolist()))


def tell_unseen(path: str | Path, family: str, found: TargetColumn, trained: LabelFamily) -> None:
    """Log one line if documents of a file have labels of a family that training never saw."""
    unseen = ~np.isin(found.class_names, trained.names)
    if rows := rows_with(found, unseen):
        names = [name for name, n in zip(found.class_names, unseen, strict=True) if n]
        log.warning("%s: %s", path, unseen_line(family, {"": rows}, names, trained.names))


def tell_several(path: str | Path, family: str, found: TargetColumn, trained: LabelFamily) -> None:
    """Log one line if documents of a file have several labels of a family, and training documents had one each."""
    if trained.kind == "classes" and found.kind == "labels":
        log.warning(
            "%s: %s: %s documents have several labels, but training documents had one each; a predicted label "
            "counts as correct if it is any of them",
            path,
            family,
            f"{int(((found.values == 1).sum(1) > 1).sum()):,}",
        )


class _Counts:
    """Right and wrong predictions of each label, over `documents`; numbers are NaN where they are undefined."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.documents = tuple(names), 0
        self.hits, self.guesses, self.truths = np.zeros((3, len(names)), np.int64)
        self._documents_read = 0

    def _count(self, true: np.ndarray, guessed: np.ndarray) -> None:
        """Count documents whose labels are `true` and predicted as `guessed`, bool (B, names)."""
        self.documents += len(true)
        for counts, of_rows in ((self.hits, true & guessed), (self.guesses, guessed), (self.truths, true)):
            counts += of_rows.sum(0)

    def scores(self) -> dict[str, dict[str, float]]:
        """Return {label: precision, recall and f1score}."""
        hits, guesses, truths = self.hits, self.guesses, self.truths
        with np.errstate(invalid="ignore", divide="ignore"):
            found = hits / guesses, hits / truths, 2 * hits / (guesses + truths)
        return {
            name: {"precision": precision, "recall": recall, "f1score": f1}
            for name, precision, recall, f1 in zip(
                self.names, *(each.tolist() for each in found), strict=True
            )
        }


class KnownLabelCounts(_Counts):
    """Right and wrong predictions over the labels of training alone, as fastText counts them.

    Other labels of a file are left out, and so are documents that have no label of training. labels: of the family in
    the file. names: the labels of training.
    """

    def __init__(self, labels: Labels, n_documents: int, names: Sequence[str]) -> None:
        super().__init__(names)
        place_of = {name: place for place, name in enumerate(names)}
        places = np.array([place_of.get(name, -1) for name in labels.names], np.int64)[labels.values]
        self._true_nc = np.zeros((n_documents, len(names)), bool)
        self._true_nc[labels.documents[places >= 0], places[places >= 0]] = True

    def add(self, predicted: np.ndarray) -> None:
        """Add the next documents: which labels the model gives them, bool (B, C)."""
        true = self._true_nc[self._documents_read : self._documents_read + len(predicted)]
        self._documents_read += len(predicted)
        labelled = true.any(1)
        self._count(true[labelled], predicted[labelled])

    @property
    def precision(self) -> float:
        """The share of predicted labels that are right."""
        return _ratio(self.hits.sum(), self.guesses.sum())

    @property
    def recall(self) -> float:
        """The share of labels that are predicted."""
        return _ratio(self.hits.sum(), self.truths.sum())


class LabelCounts(_Counts):
    """Right and wrong predictions of a family, over the documents of a column that have a label.

    A label that training never saw is missed each time. names: the labels of training, then those.
    """

    def __init__(self, found: TargetColumn, trained: LabelFamily) -> None:
        known = set(trained.names)
        super().__init__([*trained.names, *(name for name in found.class_names if name not in known)])
        self._found, self._labelled = found, found.labelled()
        place_of = {name: i for i, name in enumerate(self.names)}
        self._places = np.array([place_of[name] for name in found.class_names], np.int64)
        self.right = 0  # documents

    def add(self, predicted: np.ndarray) -> None:
        """Add the next documents: which labels of training the model gives them, bool (B, C)."""
        first = self._documents_read
        self._documents_read += len(predicted)
        rows = np.flatnonzero(self._labelled[first : self._documents_read])
        true = self._true(first + rows)
        guessed = np.zeros_like(true)
        guessed[:, : predicted.shape[1]] = predicted[rows]
        self.right += int((guessed & true).any(1).sum())
        self._count(true, guessed)

    def _true(self, rows: np.ndarray) -> np.ndarray:
        """Return bool (B, names): the labels of these documents."""
        true = np.zeros((len(rows), len(self.names)), bool)
        values = self._found.values[rows]
        if self._found.kind == "labels":
            true[:, self._places] = values > 0
        else:
            true[np.arange(len(rows)), self._places[values]] = True
        return true

    @property
    def accuracy(self) -> float:
        """The share of documents with a right label among those predicted."""
        return self.right / self.documents if self.documents else float("nan")

    @property
    def micro_f1(self) -> float:
        """F1 over all labels of all documents."""
        either = int(self.guesses.sum() + self.truths.sum())
        return 2 * int(self.hits.sum()) / either if either else float("nan")


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")

"""Compare predicted labels with those of labelled documents: columns of the model's labels, and counts of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mt2st_fast.data import TargetColumn
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


def as_trained(found: TargetColumn, trained: LabelFamily) -> TargetColumn:
    """Return the column over the labels of training; a label that training never saw is missing."""
    place_of = {name: i for i, name in enumerate(trained.names)}
    places = [place_of.get(name) for name in found.class_names]
    if trained.kind == "labels":
        dense = _one_hot(found)
        values = np.where(found.labelled()[:, None], 0.0, np.nan).astype(np.float32)
        values = np.repeat(values, len(trained.names), axis=1)
        for source, place in enumerate(places):
            if place is not None:
                values[:, place] = dense[:, source]
        return TargetColumn("labels", trained.names, values)
    return TargetColumn("classes", trained.names, _reindexed(found, places))


def tell_unseen(path: str | Path, family: str, found: TargetColumn, trained: LabelFamily) -> None:
    """Log one line if documents of a file have labels of a family that training never saw."""
    unseen = ~np.isin(found.class_names, trained.names)
    if rows := rows_with(found, unseen):
        names = [name for name, n in zip(found.class_names, unseen, strict=True) if n]
        log.warning("%s: %s", path, unseen_line(family, {"": rows}, names, trained.names))


def label_scores(
    found: TargetColumn, trained: LabelFamily, predicted: Iterable[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return {label: precision, recall and f1score} over the documents of `found` that have a label.

    predicted: the labels of training that the model gives the documents, in their order, as blocks of bool (B, C). A
    label that training never saw is missed each time. NaN where a number is undefined.
    """
    unseen = [name for name in found.class_names if name not in set(trained.names)]
    names = [*trained.names, *unseen]
    place_of = {name: i for i, name in enumerate(names)}
    places = [place_of[name] for name in found.class_names]
    labelled, first = found.labelled(), 0
    hits, guesses, truths = np.zeros((3, len(names)), np.int64)
    for block in predicted:
        rows = np.flatnonzero(labelled[first : first + len(block)])
        true = np.zeros((len(rows), len(names)), bool)
        values = found.values[first + rows]
        if found.kind == "labels":
            true[:, places] = values > 0
        else:
            true[np.arange(len(rows)), np.asarray(places)[values]] = True
        guessed = np.zeros_like(true)
        guessed[:, : block.shape[1]] = block[rows]
        hits += (guessed & true).sum(0)
        guesses += guessed.sum(0)
        truths += true.sum(0)
        first += len(block)
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = (hits / guesses, hits / truths, 2 * hits / (guesses + truths))
    named = zip(names, *(score.tolist() for score in scores), strict=True)
    return {
        name: {"precision": precision, "recall": recall, "f1score": f1}
        for name, precision, recall, f1 in named
    }


def _reindexed(found: TargetColumn, places: Sequence[int | None]) -> np.ndarray:
    # Of several labels of a document the first counts, as documents had one each in training.
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

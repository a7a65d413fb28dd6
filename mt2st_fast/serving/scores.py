"""Evaluate a model on labelled text: the metric of each task, and precision, recall and F1 of every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from mt2st_fast.data.corpus import MISSING, Corpus, Splits, TargetColumn
from mt2st_fast.data.record import MOST_CLASSES_NAMED, counts_of, rows_with, unseen_line
from mt2st_fast.kernels.heads.f1 import MACRO_F1
from mt2st_fast.serving.spans import SpanScore, are_span_tags, span_score
from mt2st_fast.serving.text_model import Labels, TextModel
from mt2st_fast.spelling import listed, one_number_each

UNITS_AT_ONCE = 1024


@dataclass(frozen=True)
class ClassScore:
    """Scores of a class or label: support is the number of its rows; NaN where a score is undefined."""

    name: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class TaskScore:
    """Scores of a task: its metric over the labelled rows; unseen counts rows of classes that training never saw.

    unseen_names are those classes; never_seen are the model's own classes that training never saw. read_as maps classes
    to the model's spelling of them, where they are the same number. spans: of a task whose classes are tags of spans.
    """

    task: str
    metric: str
    value: float
    rows: int
    unseen: int
    classes: tuple[ClassScore, ...]
    unseen_names: tuple[str, ...] = ()
    read_as: Mapping[str, str] = field(default_factory=dict)
    never_seen: tuple[str, ...] = ()
    spans: SpanScore | None = None

    def lines(self) -> list[str]:
        """Return the notes to print: classes in another spelling, and classes that training never saw."""
        lines = []
        if self.read_as:
            pairs = listed((f"{name} as {known}" for name, known in self.read_as.items()), MOST_CLASSES_NAMED)
            lines.append(f"{self.task}: classes were matched to the model's as numbers: {pairs}")
        if self.unseen:
            known = [each.name for each in self.classes if each.name not in self.never_seen]
            lines.append(unseen_line(self.task, {"": self.unseen}, self.unseen_names, known))
        return lines


def scores(model: TextModel, splits: Splits, parts: Sequence[str], tasks: Sequence[str]) -> list[TaskScore]:
    """Return the scores of tasks over the named parts (train, dev, test) of a corpus, taken together."""
    corpora = [splits.parts[part] for part in parts]
    found = [_outputs(model, splits, corpus, tasks) for corpus in corpora]
    scored = []
    for task in tasks:
        logits = np.concatenate([of_part[task] for of_part in found])
        score = _score(model, task, logits, [corpus.column(task) for corpus in corpora])
        scored.append(replace(score, spans=_span_score(model.labels[task], task, logits, corpora)))
    return scored


def _outputs(model: TextModel, splits: Splits, corpus: Corpus, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the logits (N, C) of each task."""
    words = np.array([*splits.vocabulary.words, ""], object)
    blocks: dict[str, list[np.ndarray]] = {task: [] for task in tasks}
    for first in range(0, max(corpus.n_units, 1), UNITS_AT_ONCE):
        bounds = corpus.bounds[first : first + UNITS_AT_ONCE + 1]
        units = [words[corpus.tokens[a:b]].tolist() for a, b in pairwise(bounds)]
        for task, logits in model.outputs(units, tasks).items():
            blocks[task].append(logits.numpy())
    return {task: np.concatenate(found) for task, found in blocks.items()}


def _score(model: TextModel, task: str, logits: np.ndarray, columns: Sequence[TargetColumn]) -> TaskScore:
    labels = model.labels[task]
    if labels.kind == "values":
        return _of_values(model, task, logits, np.concatenate([column.values for column in columns]))
    place_of, read_as = _places(columns[0].class_names, labels.names)
    unseen_names = _unseen_names(columns, place_of, labels)
    unseen = sum(rows_with(column, np.isin(column.class_names, unseen_names)) for column in columns)
    measure = _of_classes if labels.kind == "classes" else _of_labels
    value, rows, classes = measure(logits, columns, place_of, labels.names)
    metric = model.heads.tasks[task].metric
    if metric == MACRO_F1:
        value = _macro_f1(classes, sum(name not in place_of for name in unseen_names))
    return TaskScore(task, metric, value, rows, unseen, classes, unseen_names, read_as, labels.never_seen)


def _macro_f1(classes: Sequence[ClassScore], n_unknown: int) -> float:
    """Return the mean F1 of the classes that occur or are predicted; it is 0 for those that the model does not know."""
    defined = [each.f1 for each in classes if not np.isnan(each.f1)] + [0.0] * n_unknown
    return float(np.mean(defined)) if defined else float("nan")


def _span_score(labels: Labels, task: str, logits: np.ndarray, corpora: Sequence[Corpus]) -> SpanScore | None:
    """Return the score by spans; None if the rows are no words, or the classes no tags of spans."""
    columns = [corpus.column(task) for corpus in corpora]
    own = columns[0].class_names
    if labels.kind != "classes" or corpora[0].level != "token" or not are_span_tags((*labels.names, *own)):
        return None
    place_of = {tag: i for i, tag in enumerate(dict.fromkeys((*labels.names, *own)))}
    place_of_own = np.array([place_of[tag] for tag in own], np.int64)
    labelled = np.concatenate([column.labelled() for column in columns])
    values = np.concatenate([column.values for column in columns])
    present = np.zeros(len(values), np.int64)
    present[labelled] = place_of_own[values[labelled]]
    firsts = np.cumsum([0, *(len(column) for column in columns)])
    bounds = np.concatenate([corpus.bounds + first for corpus, first in zip(corpora, firsts, strict=False)])
    return span_score(tuple(place_of), present, logits.argmax(1), labelled, bounds)


_Measured = tuple[float, int, tuple[ClassScore, ...]]  # default metric, rows, scores of each class


def _of_classes(
    logits: np.ndarray, columns: Sequence[TargetColumn], place_of: Mapping[str, int], names: Sequence[str]
) -> _Measured:
    gold, found = np.concatenate([_known_classes(column, place_of) for column in columns]), logits.argmax(1)
    rows = gold != MISSING
    value = float((gold[rows] == found[rows]).mean()) if rows.any() else float("nan")
    classes = [_class_score(name, gold[rows] == c, found[rows] == c) for c, name in enumerate(names)]
    return value, int(rows.sum()), tuple(classes)


def _of_labels(
    logits: np.ndarray, columns: Sequence[TargetColumn], place_of: Mapping[str, int], names: Sequence[str]
) -> _Measured:
    pairs = [_known_labels(column, names, place_of) for column in columns]
    gold, foreign = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    rows = ~np.isnan(gold).all(1)
    is_gold, is_found = gold[rows] == 1, logits[rows] >= 0
    classes = [_class_score(name, is_gold[:, c], is_found[:, c]) for c, name in enumerate(names)]
    missed = int(foreign.sum())
    both, all_of_both = (is_gold & is_found).sum(), is_gold.sum() + is_found.sum() + missed
    value = float(2 * both / all_of_both) if all_of_both else float("nan")
    return value, int(rows.sum()), tuple(classes)


UNSEEN = -1  # a class that the model does not know


def _places(found: Sequence[str], known: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Return ({class in the data: its number in the model}, {class: the model's name, where the spelling differs})."""
    whole = one_number_each({*found, *known})  # {"1.0": "1"}
    place_of = {name: c for c, name in enumerate(known)}
    of_number = {whole.get(name, name): name for name in known}
    read_as = {
        name: of_number[whole.get(name, name)]
        for name in found
        if name not in place_of and whole.get(name, name) in of_number
    }
    return place_of | {name: place_of[other] for name, other in read_as.items()}, read_as


def _unseen_names(
    columns: Sequence[TargetColumn], place_of: Mapping[str, int], labels: Labels
) -> tuple[str, ...]:
    """Return the classes of the rows that training never saw: unknown to the model, or known from other rows only."""
    present = np.sum([counts_of(column) for column in columns], axis=0)
    known = {name for name, c in place_of.items() if labels.names[c] not in labels.never_seen}
    return tuple(
        name for name, n in zip(columns[0].class_names, present, strict=True) if n and name not in known
    )


def _known_classes(column: TargetColumn, place_of: Mapping[str, int]) -> np.ndarray:
    """Return (N,) the model's class numbers, UNSEEN or MISSING."""
    known = np.array([place_of.get(name, UNSEEN) for name in column.class_names], np.int64)
    gold = np.full(len(column), MISSING, np.int64)
    labelled = column.labelled()
    gold[labelled] = known[column.values[labelled]]
    return gold


def _known_labels(
    column: TargetColumn, names: Sequence[str], place_of: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return ((N, C) 0, 1 or NaN for the model's labels, (N,) the number of labels that the model does not know)."""
    gold = np.where(column.labelled()[:, None], np.zeros((1, len(names)), np.float32), np.nan)
    foreign = np.zeros(len(column), np.int64)
    for c, name in enumerate(column.class_names):
        if name in place_of:
            gold[:, place_of[name]] = column.values[:, c]
        else:
            foreign += column.values[:, c] == 1
    return gold, foreign


def _class_score(name: str, is_gold: np.ndarray, is_found: np.ndarray) -> ClassScore:
    both, gold, found = int((is_gold & is_found).sum()), int(is_gold.sum()), int(is_found.sum())
    return ClassScore(name, gold, _ratio(both, found), _ratio(both, gold), _ratio(2 * both, gold + found))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _of_values(model: TextModel, task: str, values: np.ndarray, gold: np.ndarray) -> TaskScore:
    """Score values by the metric of the task's head, so that training and this measure alike."""
    found = model.heads.tasks[task]
    metric: Any = found.head.kind.metric
    sums = metric.sums(torch.from_numpy(values), torch.from_numpy(gold), found.head)
    value = metric.value(*(each.tolist() for each in sums))
    return TaskScore(task, metric.name, value, int((~np.isnan(gold)).any(1).sum()), 0, ())

"""What was read, as reports show it: labels, classes that training never saw, and text that it sees in every part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypedDict

import numpy as np

from mt2st_fast.data.corpus import Corpus, Splits, TargetColumn
from mt2st_fast.spelling import alike, listed, other_spelling, told_apart

MOST_CLASSES_NAMED = 5
# Texts are told to be in several parts if they are this many, and this share of the rows of one. Shorter ones
# ("Thanks !") repeat in any text: 5 % of the English Web Treebank's test sentences do, 0.1 % of its tokens in longer
# ones; and of CoNLL-2000's at most 0.4 %.
LEAST_TEXTS, LEAST_SHARE, LEAST_WORDS = 3, 0.02, 5


@dataclass(frozen=True)
class Unseen:
    """Classes of a task that no training row has, and how many rows of each part (dev, test) have one of them."""

    task: str
    rows: Mapping[str, int]
    names: tuple[str, ...]
    known: tuple[str, ...] = field(repr=False)

    def line(self) -> str:
        """Return one line for users, with the fix if a class is another spelling of one in the training data."""
        return unseen_line(self.task, self.rows, self.names, self.known)


def unseen_line(task: str, rows: Mapping[str, int], names: Sequence[str], known: Sequence[str]) -> str:
    """Return the message on rows (by part) that have classes of these names, where training only saw the known ones."""
    counts = (f"{n:,} {part}{' ' if part else ''}row{'s' if n > 1 else ''}" for part, n in rows.items())
    line = (
        f"{task}: classes that do not occur in training, so they cannot be learned, in {' and '.join(counts)}: "
        f"{listed(names, MOST_CLASSES_NAMED)}"
    )
    for name in names:
        other = other_spelling(name, known)
        if other is not None:
            theirs, own = told_apart([other, name])
            return f"{line}; training has {theirs}, not {own}: spell them alike in every file"
    return line


def unseen_classes(splits: Splits) -> list[Unseen]:
    """Return the unseen classes of each task that has some, in the order of the tasks."""
    found = []
    for task in splits.tasks:
        column = splits.train.column(task)
        if column.kind == "values":
            continue
        seen = counts_of(column) > 0
        if seen.all():
            continue
        held_out = {part: splits.parts[part].column(task) for part in ("dev", "test")}
        rows = {part: rows_with(other, ~seen) for part, other in held_out.items()}
        per_class = np.where(seen, 0, sum(counts_of(other) for other in held_out.values()))
        if any(rows.values()):
            order = np.argsort(-per_class, kind="stable")
            names = tuple(column.class_names[c] for c in order if per_class[c])
            known = tuple(column.class_names[c] for c in np.flatnonzero(seen))
            found.append(Unseen(task, {part: n for part, n in rows.items() if n}, names, known))
    return found


def alike_classes(splits: Splits) -> list[str]:
    """Return a line for each task with training classes that a reader would take for one, as Pos and pos."""
    lines = []
    for task in splits.tasks:
        column = splits.train.column(task)
        unseen = set(never_seen(column))
        names = () if column.kind == "values" else column.class_names
        if groups := alike(name for name in names if name not in unseen):
            told = listed((" and ".join(told_apart(group)) for group in groups), MOST_CLASSES_NAMED)
            lines.append(
                f"{task}: different classes, though they differ just in case, blanks or signs that look alike: {told}; "
                "spell them alike if they are the same"
            )
    return lines


def repeated_texts(splits: Splits, parts: Sequence[str] = ("dev", "test")) -> tuple[str, ...]:
    """Return a line on the held-out texts that are training texts too, word for word, if they are many; else nothing.

    A text is a document or a sentence; or a file, where the corpus knows them.
    """
    train = set(_texts(splits.train))
    found = []
    for part in parts:
        corpus = splits.parts[part]
        texts, words = _texts(corpus), np.diff(_text_bounds(corpus))
        known = np.fromiter((text in train for text in texts), bool, len(texts)) & (words >= LEAST_WORDS)
        rows = words if corpus.level == "token" else np.ones(len(texts))
        share = rows[known].sum() / max(1, rows.sum())
        if share >= LEAST_SHARE and known.sum() >= LEAST_TEXTS:
            found.append(
                f"{known.sum():,} of {len(texts):,} {part} {_texts_named(corpus)} ({100 * share:.0f} % of the rows)"
            )
    if not found:
        return ()
    return (
        f"in the training text too, word for word: {' and '.join(found)}, those under {LEAST_WORDS} words not counted; "
        "results on them are partly from memory, so remove them from one of the parts",
    )


def _texts(corpus: Corpus) -> list[bytes]:
    """Return the words of every text as bytes, which are equal for equal words in the parts of one corpus."""
    bounds = _text_bounds(corpus).tolist()
    return [corpus.tokens[first:last].tobytes() for first, last in pairwise(bounds)]


def _text_bounds(corpus: Corpus) -> np.ndarray:
    return corpus.bounds if corpus.groups is None else corpus.bounds[corpus.groups]


def _texts_named(corpus: Corpus) -> str:
    if corpus.groups is not None:
        return "files"
    return "documents" if corpus.level == "document" else "sentences"


def never_seen(column: TargetColumn) -> tuple[str, ...]:
    """Return the classes or labels that no row of a training column has."""
    if column.kind == "values":
        return ()
    return tuple(name for name, n in zip(column.class_names, counts_of(column), strict=True) if not n)


def counts_of(column: TargetColumn) -> np.ndarray:
    """Return (C,) the number of rows of each class, or with each label."""
    if column.kind == "classes":
        return np.bincount(column.values[column.labelled()], minlength=column.size)
    return (column.values == 1).sum(axis=0)


def rows_with(column: TargetColumn, chosen: np.ndarray) -> int:
    """Count the rows with a chosen class or label; chosen: bool (C,)."""
    if column.kind == "classes":
        return int(counts_of(column)[chosen].sum())
    return int((column.values[:, chosen] == 1).any(axis=1).sum())


class LabelsRead(TypedDict):
    """The labels of a task; labelled: rows that have one, by part; unseen: rows of classes new to training, by part."""

    task: str
    kind: str
    classes: int
    first_classes: list[str]
    labelled: dict[str, int]
    unseen: dict[str, int]


def labels_read(splits: Splits) -> list[LabelsRead]:
    """Return what a report says of each task's labels: kind, classes, labelled rows by part, unseen rows by part."""
    unseen = {each.task: each.rows for each in unseen_classes(splits)}
    return [
        {
            "task": task,
            "kind": splits.train.column(task).kind,
            "classes": splits.train.column(task).size,
            "first_classes": list(splits.train.column(task).class_names[:MOST_CLASSES_NAMED]),
            "labelled": {part: int(c.column(task).labelled().sum()) for part, c in splits.parts.items()},
            "unseen": {part: unseen.get(task, {}).get(part, 0) for part in ("dev", "test")},
        }
        for task in splits.tasks
    ]

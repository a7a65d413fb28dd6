"""fastText's files, in which `__label__` words may be anywhere in a line and the rest is the document.

    __label__topic__sport __label__tone__neg the match was a bore

has two label families, `topic` and `tone`, and so two tasks. A label without a second `__` is in the family `label`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from pathlib import Path

import numpy as np

from mt2st_fast.data.corpus import MISSING, TargetColumn
from mt2st_fast.data.text.word_files import NumberedWords, read_words
from mt2st_fast.data.tokens import MISSING_WORD, Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import LineWords, split_lines

DEFAULT_FAMILY = "label"


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a family: document documents[m] has label values[m], an index into the sorted names.

    `documents` is in ascending order.
    """

    names: tuple[str, ...]
    values: np.ndarray  # int64 (M,)
    documents: np.ndarray  # int64 (M,)


@dataclass(frozen=True, eq=False)
class LabelledText:
    """Documents, and their labels by family, with families in order of first appearance."""

    documents: Tokens
    labels: dict[str, Labels]

    @property
    def families(self) -> tuple[str, ...]:
        """The label families in order of first appearance."""
        return tuple(self.labels)


def read_labelled_text(path: Path, prefix: str = "__label__", families: bool = True) -> LabelledText:
    """Read every line that is not blank; without `families` a label is kept whole, even with `__` inside.

    Raises InputError for a file without any label, for two labels that are the same value of the same family, and as
    `read_words` does.
    """
    text = read_words(path)
    is_label = _labels_among(text.words, prefix)
    if not is_label.any():
        raise InputError(
            f"{path}: no line has a label; write labels like {prefix}sport or {prefix}topic__sport"
        )
    documents, lines = _split_lines(text, is_label)
    whole = {i: text.words[i].removeprefix(prefix) for i in np.flatnonzero(is_label).tolist()}
    split = {i: _split_label(label) if families else (DEFAULT_FAMILY, label) for i, label in whole.items()}
    first: dict[tuple[str, str], int] = {}
    for i, key in split.items():
        if first.setdefault(key, i) != i:
            raise InputError(
                f"{path}: {text.words[first[key]]} and {text.words[i]} are both class {key[1]} of the family "
                f"{key[0]}; rename one of them"
            )
    return LabelledText(documents, _labels_by_family(split, lines.labels, lines.lines))


def _labels_among(words: Sequence[str], prefix: str) -> np.ndarray:
    return np.fromiter(map(str.startswith, words, repeat(prefix)), bool, len(words))


def _split_lines(text: NumberedWords, is_label: np.ndarray) -> tuple[Tokens, LineWords]:
    """Return the documents, and the lines that they were made of, which also have their labels."""
    id_of = np.full(len(is_label), MISSING_WORD, np.int32)
    vocabulary, id_of[~is_label] = Vocabulary.numbered(
        list(compress(text.words, (~is_label).tolist())), text.counts[~is_label]
    )
    found = split_lines(text.numbers, id_of, is_label)
    return Tokens(found.ids, found.bounds, vocabulary), found


def _labels_by_family(
    split: dict[int, tuple[str, str]], labels: np.ndarray, documents: np.ndarray
) -> dict[str, Labels]:
    """Group labels (M,) of documents (M,); split gives the family and value of each label, in order of appearance."""
    by_family = {}
    for family in dict.fromkeys(family for family, _ in split.values()):
        value_of = {i: value for i, (its_family, value) in split.items() if its_family == family}
        names = tuple(sorted(set(value_of.values())))
        place_of = {name: place for place, name in enumerate(names)}
        place = np.full(max(split) + 1, -1)
        place[list(value_of)] = [place_of[value] for value in value_of.values()]
        places = place[labels]
        mine = places >= 0
        by_family[family] = Labels(names, places[mine], documents[mine])
    return by_family


def _split_label(label: str) -> tuple[str, str]:
    family, separator, value = label.partition("__")
    return (family, value) if separator and family and value else (DEFAULT_FAMILY, label)


def target_columns(
    text: LabelledText, families: Sequence[str] | None = None, any_of: bool = False
) -> dict[str, TargetColumn]:
    """Return one column per family: classes if no document has two labels of it, else (or with `any_of`) labels."""
    wanted = text.families if families is None else families
    return {family: _column(text.labels[family], text.documents.n_units, any_of) for family in wanted}


def _column(labels: Labels, n_documents: int, any_of: bool) -> TargetColumn:
    C, documents, values = len(labels.names), labels.documents, labels.values
    if (documents[1:] == documents[:-1]).any():  # a document with several labels, which may be equal
        documents, values = np.divmod(np.unique(documents * C + values), C)
    if not any_of and (documents[1:] > documents[:-1]).all():
        classes = np.full(n_documents, MISSING, np.int64)
        classes[documents] = values
        return TargetColumn("classes", labels.names, classes)
    marks = np.full((n_documents, C), np.nan, np.float32)
    marks[documents] = 0.0
    marks[documents, values] = 1.0
    return TargetColumn("labels", labels.names, marks)

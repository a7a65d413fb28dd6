"""What an output format cannot hold, so that it could not be read back: refused before the first answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from mt2st_fast.errors import InputError
from mt2st_fast.serving.conllu import shares_its_column

if TYPE_CHECKING:
    from mt2st_fast.serving.text_model import Labels
    from mt2st_fast.serving.wanted import Wanted

BETWEEN_LABELS = "|"  # in a cell; tables, too, have it between the labels of a document
INPUT_KEY = {"token": "words", "document": "text"}  # of a row of JSON lines
_ENDS_A_CELL = re.compile(r"[\t\n\r]")
_BETWEEN = re.compile(re.escape(BETWEEN_LABELS))


def check_fits(wanted: Wanted, labels: Mapping[str, Labels], level: str) -> None:
    """Raise InputError where answers of the wanted tasks do not fit into the format, or an option has no effect."""
    _check_probable(wanted, labels)
    if wanted.format == "jsonl":
        check_keys(wanted.tasks, level)
        return
    _refuse(_names(labels, wanted.tasks), _ENDS_A_CELL, "has a tab or a line end, which end a cell")
    if wanted.format == "conllu":
        joined = [task for task in wanted.tasks if shares_its_column(task)]
        in_joined = chain(((f"the task {task!r}", task) for task in joined), _names(labels, joined))
        _refuse(in_joined, _BETWEEN, f"has {BETWEEN_LABELS}, which ends a value in FEATS and MISC")
    elif len(wanted.tasks) > 1:
        several = [task for task in wanted.tasks if labels[task].kind == "labels" or not wanted.one_class]
        _refuse(
            _names(labels, several), _BETWEEN, f"has {BETWEEN_LABELS}, which separates the labels of a cell"
        )


def check_keys(tasks: Sequence[str], level: str) -> None:
    """Raise InputError for a task that has the name under which a row of JSON lines has its input."""
    key = INPUT_KEY[level]
    if key in tasks:
        other = {"token": "conllu", "document": "labels"}[level]
        raise InputError(
            f"--format jsonl has the input under the key {key!r}, and a task has this name, too; use --format {other}, "
            "or train with another name for the task"
        )


def _check_probable(wanted: Wanted, labels: Mapping[str, Labels]) -> None:
    """Raise InputError for an option that chooses among probabilities, where every wanted task has values instead."""
    given = {
        "--k": wanted.k is not None,
        "--threshold": wanted.threshold is not None,
        "--probabilities": wanted.probabilities,
    }
    flags = [flag for flag, is_given in given.items() if is_given]
    if flags and all(labels[task].kind == "values" for task in wanted.tasks):
        raise InputError(
            f"{flags[0]} is for classes and labels, which have probabilities; {' and '.join(wanted.tasks)} "
            f"{'is a regression' if len(wanted.tasks) == 1 else 'are regressions'}: leave it out"
        )


def _names(labels: Mapping[str, Labels], tasks: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (what it is, name) for the classes and labels of tasks."""
    for task in tasks:
        if labels[task].kind != "values":
            for name in labels[task].names:
                yield f"the class {name!r} of {task}", name


def _refuse(names: Iterable[tuple[str, str]], unfit: re.Pattern[str], why: str) -> None:
    """Raise InputError for the first of (what it is, name) whose name has something unfit."""
    for what, name in names:
        if unfit.search(name):
            raise InputError(f"{what} {why}; use --format jsonl")

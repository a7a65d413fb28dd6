"""Labels as scikit-learn users have them: one array, or one column per task, in which labels may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.multiclass import check_classification_targets

from mt2st_fast.data.corpus import MISSING
from mt2st_fast.data.labelled_text import DEFAULT_FAMILY
from mt2st_fast.errors import InputError

NO_VALUE = ("NAType", "NaTType")  # missing values of pandas and polars, besides None and NaN


class LabelColumn(NamedTuple):
    """A column of N labels: the sorted classes (C,), and their numbers int64 (N,), MISSING where there is no label."""

    classes: np.ndarray
    numbers: np.ndarray


def columns_of(y: Any, rows: int) -> dict[str, np.ndarray]:
    """Return the columns of labels (N,) by task, in their order.

    A dictionary or a data frame names the tasks; the columns of an array with two axes are the tasks "0", "1", ...; an
    array with one axis is the task "label". Raises InputError for other shapes, and for a column of another length than
    `rows`.
    """
    if y is None:
        raise InputError("this estimator requires y to be passed, but the target y is None")
    if hasattr(y, "tocsr"):
        raise InputError("y is sparse, and a task has one column of classes; pass y.toarray() or the classes")
    if isinstance(y, Mapping) or hasattr(y, "columns"):
        keys = list(y) if isinstance(y, Mapping) else list(y.columns)
        names = [str(key) for key in keys]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"y has {names.count(twice[0])} columns named {twice[0]}; rename all but one")
        columns = {name: _array(y[key]) for name, key in zip(names, keys, strict=True)}
    else:
        given = _array(y)
        if given.ndim not in (1, 2):
            raise InputError(
                f"y must have shape (N,), or (N, tasks) with a column per task, not {given.shape}"
            )
        columns = {DEFAULT_FAMILY: given} if given.ndim == 1 else {str(k): c for k, c in enumerate(given.T)}
    if not columns:
        raise InputError("y has no columns; pass one per task, the main one first")
    for name, column in columns.items():
        if column.shape != (rows,):
            raise InputError(
                f"y has labels for {name} of shape {column.shape} for {rows} texts; pass one label per text"
            )
    return columns


def main_of(columns: Mapping[str, np.ndarray], main: Any) -> str:
    """Return the main task's column, the first by default. Raises InputError where there is none of that name."""
    if main is None:
        return next(iter(columns))
    if str(main) not in columns:
        raise InputError(f"main is {main!r}, but y has no such column; available: {', '.join(columns)}")
    return str(main)


def numbered(name: str, column: np.ndarray) -> LabelColumn:
    """Convert a column to class numbers. Raises InputError if it has no labels, or labels that are no classes."""
    missing = _missing(column)
    known = _typed(name, column[~missing])
    if not len(known):
        raise InputError(f"the column {name} of y has no label; leave it out, or label some texts")
    if known.dtype.kind == "f" and np.isinf(known).any():
        raise InputError(
            f"Input contains infinity: the column {name} of y has a label that is {known[np.isinf(known)][0]}"
        )
    check_classification_targets(known)
    classes, places = np.unique(known, return_inverse=True)
    numbers = np.full(len(column), MISSING, np.int64)
    numbers[~missing] = places
    return LabelColumn(classes, numbers)


def known_labels(name: str, column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows (N,) have a label, and the labels of these. Raises InputError if none has."""
    known = ~_missing(column)
    if not known.any():
        raise InputError(f"the column {name} of y has no label to compare with")
    return known, _typed(name, column[known])


def _array(column: Any) -> np.ndarray:
    """Make an array of labels that keeps their types: NumPy alone would turn numbers beside strings into strings."""
    if hasattr(column, "__array__"):
        array = np.asarray(column)
        # Whole numbers of pandas and polars, some of which are missing: NumPy alone would make them fractions.
        of_numpy = isinstance(getattr(column, "dtype", None), np.dtype)
        return array if of_numpy or array.dtype.kind != "f" else np.asarray(column, object)
    rows = list(column) if hasattr(column, "__iter__") and not isinstance(column, str | bytes) else column
    try:
        return np.asarray(rows, object)
    except ValueError:
        raise InputError(
            "the rows of y differ in length; pass a label for every task, or None if it is missing"
        ) from None


def _missing(column: np.ndarray) -> np.ndarray:
    if column.dtype.kind == "f":
        return np.isnan(column)
    if column.dtype != object:
        return np.zeros(len(column), bool)
    return np.fromiter(map(_is_missing, column), bool, len(column))


def _is_missing(label: Any) -> bool:
    if isinstance(label, float | np.floating):
        return bool(np.isnan(label))
    return label is None or type(label).__name__ in NO_VALUE


def _typed(name: str, known: np.ndarray) -> np.ndarray:
    """Convert labels in an object array to an array of their own type."""
    if known.dtype != object:
        return known
    text = {isinstance(label, str) for label in known}
    others = [
        label
        for label in known
        if not isinstance(label, str | bool | int | float | np.bool | np.integer | np.floating)
    ]
    if others:
        raise InputError(
            f"a label of the column {name} of y is {others[0]!r} ({type(others[0]).__name__}); labels must be "
            "strings or whole numbers, one per text"
        )
    if len(text) > 1:
        raise InputError(f"the column {name} of y mixes strings and numbers; use only one of them")
    return np.array(known.tolist())

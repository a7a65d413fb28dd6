"""Texts in the forms that estimators are given: a list, an array or a column of strings, or rows of words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mt2st_fast.errors import InputError

Tokenizer = Callable[[str], Iterable[str]]


def rows_of_words(X: Any, tokenizer: Tokenizer | None) -> list[list[str]]:
    """Return the words of every row; a string is split by the tokenizer, by default at blanks.

    A row may also be a list, tuple or array of words. Raises InputError for anything else, naming the row, and for a
    column of texts: each text would be one word.
    """
    if isinstance(X, str | bytes) or not hasattr(X, "__iter__") or hasattr(X, "columns") or _is_sparse(X):
        hint = (
            "pass one of its columns, such as X['text']"
            if hasattr(X, "columns")
            else "pass a list of strings"
        )
        raise InputError(f"X must be texts, not one {type(X).__name__}; {hint}")
    X = list(X)
    if not X:
        raise InputError("X has no texts; pass at least 1")
    rows = [_words(number, row, tokenizer) for number, row in enumerate(X)]
    if len(rows) > 1 and all(
        len(row) == 1 and not isinstance(given, str) for given, row in zip(X, rows, strict=True)
    ):
        _check_no_texts(rows)
    return rows


def _check_no_texts(rows: list[list[str]]) -> None:
    """Raise InputError for rows of one string each that are texts, as in the column of a table."""
    for number, (word,) in enumerate(rows):
        if len(word.split()) > 1:
            raise InputError(
                f"every row of X has one string, and row {number} has blanks in it ({word[:40]!r}), so X is a "
                "column of texts; pass the strings, X[:, 0] of an array, or, if each is one word, use "
                "tokenizer=lambda text: [text]"
            )


def _words(number: int, row: Any, tokenizer: Tokenizer | None) -> list[str]:
    if isinstance(row, str):
        words = list(row.split() if tokenizer is None else tokenizer(row))
        made = " by the tokenizer"
    elif isinstance(row, list | tuple) or (hasattr(row, "tolist") and getattr(row, "ndim", 0) == 1):
        words, made = list(row), ""
    else:
        raise InputError(
            f"row {number} of X is not a text but {row!r} ({type(row).__name__}); pass strings, or lists of words"
        )
    for word in words:
        if not isinstance(word, str):
            raise InputError(
                f"row {number} of X has{made} a word that is not a string but {word!r} ({type(word).__name__})"
            )
    return words


def _is_sparse(X: Any) -> bool:
    return hasattr(X, "tocsr")

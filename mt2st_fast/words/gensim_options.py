"""Checks of the arguments of gensim's Word2Vec other than plain numbers: text, and values that we do not support."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mt2st_fast.data.stream import TokenStream, is_token_file
from mt2st_fast.data.text.word_files import read_lines
from mt2st_fast.data.tokens import Tokens
from mt2st_fast.errors import InputError
from mt2st_fast.numbers import check_count, check_finite_number, check_not_negative
from mt2st_fast.words.gensim_errors import NotATextError, NoWordsError

# Options that are 0 or 1, and what 1 means.
SWITCHES = {
    "sg": "skip-gram",
    "hs": "hierarchical softmax",
    "cbow_mean": "the mean of a window's vectors",
    "sorted_vocab": "words by descending count",
}

EVENTS = ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end")  # methods of callbacks


def check_switches(**options: Any) -> None:
    """Raise InputError for a switch that is neither 0 nor 1."""
    for name, value in options.items():
        if not isinstance(value, int | np.integer | np.bool) or value not in (0, 1):
            raise InputError(f"{name} is {value!r}; it must be 1 for {SWITCHES[name]}, or else 0")


def check_predicted_by(hs: int, negative: int, max_n: int) -> None:
    """Raise InputError for neither hierarchical softmax nor negatives, and for hierarchical softmax with n-grams."""
    check_count(0 if hs else 1, negative=negative)
    if hs and max_n:
        raise InputError("hs=1 is not supported with n-grams (max_n); use negative=5 and hs=0")


def check_ngrams(min_n: Any, max_n: Any) -> None:
    """Raise InputError unless 0 <= min_n <= max_n, both whole numbers: the lengths of character n-grams."""
    check_count(0, min_n=min_n, max_n=max_n)
    if min_n > max_n:
        raise InputError(f"min_n ({min_n}) and max_n ({max_n}) must satisfy 0 <= min_n <= max_n")


def check_sampling(sample: Any, ns_exponent: Any) -> None:
    """Raise InputError unless the threshold is finite and at least 0 and the exponent is finite (of any sign, as in
    gensim).
    """
    check_not_negative(sample=sample)
    check_finite_number(ns_exponent=ns_exponent)


def check_rates(alpha: Any, min_alpha: Any, names: tuple[str, str] = ("alpha", "min_alpha")) -> None:
    """Raise InputError unless both rates are finite and not negative, and the first is not below the second."""
    check_not_negative(**dict(zip(names, (alpha, min_alpha), strict=True)))
    if alpha < min_alpha:
        raise InputError(
            f"{names[0]} ({alpha}) must not be below {names[1]} ({min_alpha}): the learning rate decays from the "
            "first to the second"
        )


def checked_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Return the callbacks, which may be an iterator. Raises InputError unless they are objects of a list."""
    if isinstance(callbacks, str | Mapping) or not isinstance(callbacks, Iterable):
        raise InputError(
            "callbacks must be a list of objects with gensim's methods, such as on_epoch_end(model), not "
            f"{callbacks!r}"
        )
    found = tuple(callbacks)
    for callback in found:
        if isinstance(callback, type) or not any(hasattr(callback, event) for event in EVENTS):
            raise InputError(
                f"callbacks has {callback!r}, which is no object with any of {', '.join(EVENTS)}"
            )
    return found


def one_of(sentences: Any, corpus_iterable: Any) -> Any:
    """Return whichever of the two is given; raises InputError if both are."""
    if sentences is not None and corpus_iterable is not None:
        raise NotATextError("corpus_iterable is an alias of sentences; pass only one of them")
    return corpus_iterable if sentences is None else sentences


def read_text(sentences: Iterable[Sequence[str]] | None, corpus_file: str | Path | None) -> Tokens:
    """Read the text as ids of its own words.

    Raises InputError for text that cannot be used; for neither or both of the arguments, and for a file that is none,
    it is also a TypeError, as in gensim.
    """
    if (sentences is None) == (corpus_file is None):
        raise NotATextError("pass either sentences or corpus_file")
    if corpus_file is not None and not (
        isinstance(corpus_file, str | os.PathLike) and Path(corpus_file).exists()
    ):
        raise NotATextError(f"corpus_file {corpus_file}: there is no such file; check the path")
    if corpus_file is not None and Path(corpus_file).is_dir():
        raise NotATextError(f"corpus_file {corpus_file}: is a folder; pass a file with a sentence per line")
    if corpus_file is not None and is_token_file(Path(corpus_file)):
        return TokenStream.open(corpus_file)
    if isinstance(sentences, str):
        raise InputError("sentences must be lists of words, not one string; for a file use corpus_file")
    text = _tokens_of(sentences) if sentences is not None else read_lines(Path(str(corpus_file)))
    if not len(text.ids):
        raise NoWordsError("the text has no words")
    return text


def _tokens_of(sentences: Iterable[Sequence[str]]) -> Tokens:
    try:
        return Tokens.of(sentences)
    except TypeError as error:
        raise NotATextError(
            f"sentences must be lists of words, such as [['a', 'b'], ['c']]: {error}"
        ) from None

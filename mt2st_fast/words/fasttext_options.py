"""fastText's names for the options of `train_supervised`: mapped to ours, or refused with the reason."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from mt2st_fast.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")

SAME = {
    "input": "path",
    "wordNgrams": "word_ngrams",
    "minCount": "min_count",
    "pretrainedVectors": "pretrained_vectors",
    "thread": "threads",
}
# fastText's second names for some of its options.
SECOND = {
    "min_count": "minCount",
    "word_ngrams": "wordNgrams",
    "lr_update_rate": "lrUpdateRate",
    "label_prefix": "label",
    "pretrained_vectors": "pretrainedVectors",
}
_AUTOTUNE = "autotune is not supported; train with each option and compare their `test` on a held-out file"
# The values that have no effect, including fastText's defaults; and why all others are refused.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "minCountLabel": ((0, 1), "every label is kept; remove rare labels from the file"),
    "ws": (
        (5,),
        "a classifier reads whole documents and has no window; for word vectors, use window= of Word2Vec",
    ),
    "neg": (
        (5,),
        "it only applies to loss='ns', which is not needed as every label is computed; leave it out",
    ),
    "lrUpdateRate": (
        (100,),
        "the learning rate decays at every step; use lr_decay='none' to keep it constant",
    ),
    "t": (
        (0.0001, 1e-4),
        "subsampling of frequent words only applies to word vectors; use sample= of Word2Vec",
    ),
    "verbose": ((0, 1, 2), "nothing is printed during training; use callbacks=[...] to observe every step"),
    "saveOutput": ((0, False), "the heads are always kept; save them with model.save(folder)"),
    "autotuneValidationFile": (("",), _AUTOTUNE),
    "autotuneMetric": (("f1",), _AUTOTUNE),
    "autotunePredictions": ((1,), _AUTOTUNE),
    "autotuneDuration": ((300,), _AUTOTUNE),
    "autotuneModelSize": (("",), _AUTOTUNE),
}
_EXACT = "every label is computed, so no approximation is needed; leave it out for softmax"
LOSSES = {"hs": _EXACT, "ns": _EXACT}
UNSUPERVISED_LOSSES = (
    "there are too many words to predict each of them; use ns (negative sampling) or hs (a tree)"
)


def with_fasttext_names(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function also accept fastText's names for its options.

    It then raises InputError for an option that is refused, and for one that is given under both names; errors name
    options as they were given.
    """

    @functools.wraps(function)
    def renamed(*args: P.args, **kwargs: P.kwargs) -> T:
        own = own_names(kwargs, ("path",) if args else ())
        try:
            return function(*args, **own)  # type: ignore[arg-type]
        except InputError as error:
            error.args = (_as_given(str(error), kwargs),)
            raise

    return renamed


def _as_given(message: str, given: Mapping[str, Any]) -> str:
    for name, own in SAME.items():
        if name in given and "_" in own:  # no word of a sentence
            message = re.sub(rf"\b{own}\b", name, message)
    return message


def first_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate fastText's second names to its first ones. Raises InputError for an option given under both."""
    for second, first in SECOND.items():
        if second in given and first in given:
            raise InputError(
                f"{second} is another name for {first}, which is also given; pass only one of them"
            )
    return {SECOND.get(name, name): value for name, value in given.items()}


def with_second_names(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function with fastText's names for its options also accept the second ones."""

    @functools.wraps(function)
    def renamed(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **first_names(kwargs))  # type: ignore[arg-type]

    return renamed


def own_names(given: Mapping[str, Any], placed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Translate options to our names; `placed` are those given by position. Raises as `with_fasttext_names` does."""
    own = {name: value for name, value in given.items() if name not in SAME and name not in REFUSED}
    for name, value in given.items():
        if name in REFUSED:
            check_refused(**{name: value})
        elif name in SAME:
            if SAME[name] in own or SAME[name] in placed:
                raise InputError(
                    f"{name} is fastText's name for {SAME[name]}, which is also given; pass only one of them"
                )
            if value != "":  # fastText's way of saying "none"
                own[SAME[name]] = value
    return own


def check_refused(**given: Any) -> None:
    """Raise InputError for a value that asks for something unsupported."""
    for name, value in given.items():
        harmless, why = REFUSED[name]
        if value is not None and value not in harmless:
            raise InputError(f"{name}={value!r}: {why}")


def loss_of(name: str | None) -> str | None:
    """ "softmax", "ova", or None for what fits the labels of each family.

    Raises InputError for fastText's other losses.
    """
    if name in (None, "softmax"):
        return name
    if name in ("ova", "one-vs-all"):
        return "ova"
    raise InputError(f"loss={name!r}: {LOSSES.get(str(name), 'is unknown; available: softmax, ova')}")

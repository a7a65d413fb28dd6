"""fastText's names for the options of `train_supervised`: mapped to ours, or refused with the reason."""

from __future__ import annotations

import functools
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
_AUTOTUNE = "options are not searched for here; train with each, and compare their `test` on a held-out file"
# The values that have no effect, including fastText's defaults; and why all others are refused.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "minCountLabel": ((0, 1), "every label is kept; leave rare ones out of the file"),
    "ws": (
        (5,),
        "a window belongs to word vectors, a classifier reads whole documents; Word2Vec has window=",
    ),
    "neg": ((5,), "it belongs to loss='ns'; heads are computed whole here"),
    "lrUpdateRate": ((100,), "the rate falls with every step here; lr_decay='none' keeps it"),
    "t": ((0.0001, 1e-4), "sampling of frequent words belongs to word vectors; Word2Vec has sample="),
    "verbose": ((0, 1, 2), "nothing is printed while training; callbacks=[...] are told of every step"),
    "saveOutput": ((0, False), "the heads are always kept; model.save(folder) writes them"),
    "autotuneValidationFile": (("",), _AUTOTUNE),
    "autotuneMetric": (("f1",), _AUTOTUNE),
    "autotunePredictions": ((1,), _AUTOTUNE),
    "autotuneDuration": ((300,), _AUTOTUNE),
    "autotuneModelSize": (("",), _AUTOTUNE),
}
_EXACT = "heads are computed whole here, which needs no approximation; leave it out for softmax"
LOSSES = {"hs": _EXACT, "ns": _EXACT}
UNSUPERVISED_LOSSES = (
    "words are predicted among negatives or by a tree here, as there are too many for more; give ns or hs"
)


def with_fasttext_names(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function also accept fastText's names for its options.

    It then raises InputError for an option that is refused, and for one that is given under both names.
    """

    @functools.wraps(function)
    def renamed(*args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **own_names(kwargs, ("path",) if args else ()))  # type: ignore[arg-type]

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
                    f"{name} is fastText's name of {SAME[name]}, which is given, too; give one of them"
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
    raise InputError(f"loss={name!r}: {LOSSES.get(str(name), 'is unknown; there are softmax and ova')}")

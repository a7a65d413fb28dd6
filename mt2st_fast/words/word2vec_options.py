"""gensim's options of Word2Vec: those that change nothing here, those that are refused, and how a folder keeps them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mt2st_fast.errors import InputError
from mt2st_fast.training import schedules
from mt2st_fast.training.schedules import Schedule

# Arguments of Word2Vec that are attributes of the same name, and JSON.
KEPT = (
    "vector_size", "alpha", "window", "min_count", "sample", "seed", "workers", "min_alpha", "sg", "negative",
    "ns_exponent", "epochs", "min_n", "max_n", "bucket", "max_final_vocab", "compute_loss", "comment",
)  # fmt: skip
# The values that ask for what is done here anyway, gensim's defaults among them; and why others are refused.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "hs": ((0,), "hierarchical softmax is not computed here; train with negative samples: hs=0, negative=5"),
    "cbow_mean": ((1,), "CBOW predicts from the mean of a window here, not from the sum; leave it out"),
    "null_word": ((0,), "it pads windows that are read in order, which are not trained here; leave it out"),
    "sorted_vocab": ((1,), "words always stand by falling count here; leave it out"),
    "trim_rule": ((None,), "words are chosen by min_count= and max_final_vocab= here; leave others out of the text"),
    "max_vocab_size": ((None,), "all words are counted here, exactly; max_final_vocab= bounds how many have vectors"),
    "shrink_windows": ((1,), "windows are drawn from 1 to window here, as word2vec does; leave it out"),
    "word_count": ((0,), "the rate falls over the whole text here; give start_alpha= to begin lower"),
    "keep_raw_vocab": ((0,), "counts of words without vectors are not kept here; leave it out"),
}  # fmt: skip
SCHEDULES = {
    each.__name__: each
    for each in (
        schedules.Diminish,
        schedules.DiminishThenSwitch,
        schedules.MultiTask,
        schedules.SingleTask,
        schedules.SquaringDecay,
        schedules.Switch,
    )
}


def check_gensim_options(**given: Any) -> None:
    """Raise InputError for an option of gensim's that asks for something that is not done here."""
    for name, value in given.items():
        harmless, why = REFUSED[name]
        if value not in harmless:
            raise InputError(f"{name}={value!r}: {why}")


def check_at_least_one(**given: int) -> None:
    """Raise InputError for a number below 1."""
    for name, value in given.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def sampled_share(sample: float, n_words: int) -> float:
    """gensim's `sample` as a share of all words: from 1 on it is a count above which words are left out at times."""
    return sample if sample < 1 else int(sample * (3 + np.sqrt(5)) / 2) / n_words


def kept_options(model: Any) -> dict[str, Any]:
    """The options of a model, JSON-able: numbers of numpy become Python's."""
    given = {name: getattr(model, name) for name in KEPT}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}


def describe_schedule(schedule: Schedule) -> list[Any]:
    """[class, arguments], JSON-able. Raises InputError for a schedule of one's own."""
    name = type(schedule).__name__
    if SCHEDULES.get(name) is type(schedule):
        arguments = {f.name: getattr(schedule, f.name) for f in dataclasses.fields(schedule)}  # type: ignore[arg-type]
        try:
            json.dumps(arguments, allow_nan=False)
        except (TypeError, ValueError):
            pass
        else:
            return [name, arguments]
    raise InputError(
        f"the schedule {name} cannot be kept in a folder: it is not one of {', '.join(SCHEDULES)} with plain numbers; "
        "set model.schedule to one of these first"
    )


def rebuild_schedule(described: tuple[str, Mapping[str, Any]] | list[Any]) -> Schedule:
    """What `describe_schedule` was given. Raises InputError for a class that is not known."""
    name, arguments = described
    if name not in SCHEDULES:
        raise InputError(f"the model has a schedule {name}, which this version does not know")
    return SCHEDULES[name](**arguments)  # type: ignore[no-any-return]

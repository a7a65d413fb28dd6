"""The options of Word2Vec as a folder keeps them."""

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
    "ns_exponent", "epochs", "min_n", "max_n", "bucket",
)  # fmt: skip
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

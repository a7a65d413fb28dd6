"""Tasks as JSON and back, for configurations and saved models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, cast

from mt2st_fast.errors import InputError
from mt2st_fast.model.tasks import Classification, MultiLabel, Regression, Task

_KNOWN = (Classification, MultiLabel, Regression)


def tasks_to_json(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"tasks": [{"name", "class", and every option}, ...]}, a list because JSON keys may lose their order.

    Raises InputError, naming the task, for a task that is not a dataclass with a fused head: a custom loss is code.
    """
    return {"tasks": [{"name": name, **_described(name, task)} for name, task in tasks.items()]}


def tasks_from_json(stored: Mapping[str, Any], classes: Iterable[type] = ()) -> dict[str, Task]:
    """Restore the tasks that `tasks_to_json` described; classes: task classes that are not in this package.

    Raises InputError for an unknown class, for an unknown option, and for anything that is not such a description.
    """
    known = {each.__name__: each for each in (*_KNOWN, *classes)}
    entries = stored.get("tasks") if isinstance(stored, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(
            'tasks in JSON must be {"tasks": [{"name": ..., "class": ...}, ...]}, as tasks_to_json writes them'
        )
    tasks: dict[str, Task] = {}
    for entry in entries:
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
        name, kind = options.pop("name", None), options.pop("class", None)
        if not isinstance(name, str) or not isinstance(kind, str):
            raise InputError(f"a task in JSON needs a name and a class, but has {dict(entry)}")
        if name in tasks:
            raise InputError(f"two tasks in JSON are named {name}")
        if kind not in known:
            raise InputError(f"the task {name} is of the unknown class {kind}; pass classes=({kind},)")
        try:
            tasks[name] = cast(Task, known[kind](**options))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the task {name} in JSON is not a valid {kind}: {' '.join(str(error).split())}"
            ) from None
    return tasks


def _described(name: str, task: Any) -> dict[str, Any]:
    if not is_dataclass(task) or isinstance(task, type) or not hasattr(task, "head"):
        raise InputError(
            f"the task {name} cannot be saved: {type(task).__name__} computes its own loss or is not a dataclass; "
            "save heads without it"
        )
    options = asdict(task)
    if taken := options.keys() & {"name", "class"}:
        raise InputError(
            f"the task {name} cannot be saved: its option {min(taken)} has a reserved name; rename it"
        )
    as_lists = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
    return {"class": type(task).__name__, **as_lists}

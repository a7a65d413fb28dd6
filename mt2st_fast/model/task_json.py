"""Tasks as JSON and back: what a configuration or a model's folder keeps of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, cast

from mt2st_fast.errors import InputError
from mt2st_fast.model.tasks import Classification, MultiLabel, Regression, Task

_KNOWN = (Classification, MultiLabel, Regression)


def tasks_to_json(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """{"tasks": [{"name", "class", and every option}, ...]} in the order of `tasks`, which JSON's keys may not keep.

    Raises InputError, naming the task, for one that is no dataclass of a fused head: a loss of its own is code.
    """
    return {"tasks": [{"name": name, **_described(name, task)} for name, task in tasks.items()]}


def tasks_from_json(stored: Mapping[str, Any], classes: Iterable[type] = ()) -> dict[str, Task]:
    """The tasks that `tasks_to_json` described; classes: those that are not of this package.

    Raises InputError for a class that is not known, an option that it does not take and what is no description.
    """
    known = {each.__name__: each for each in (*_KNOWN, *classes)}
    entries = stored.get("tasks") if isinstance(stored, Mapping) else None
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise InputError(
            'tasks in JSON are {"tasks": [{"name": ..., "class": ...}, ...]}, as tasks_to_json writes them'
        )
    tasks: dict[str, Task] = {}
    for entry in entries:
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
        name, kind = options.pop("name", None), options.pop("class", None)
        if not isinstance(name, str) or not isinstance(kind, str):
            raise InputError(f"a task in JSON needs a name and a class, and has {dict(entry)}")
        if name in tasks:
            raise InputError(f"two tasks in JSON are named {name}")
        if kind not in known:
            raise InputError(
                f"the task {name} is a {kind}, which is not known here; give its class: classes=({kind},)"
            )
        try:
            tasks[name] = cast(Task, known[kind](**options))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the task {name} in JSON is no {kind}: {' '.join(str(error).split())}"
            ) from None
    return tasks


def _described(name: str, task: Any) -> dict[str, Any]:
    if not is_dataclass(task) or isinstance(task, type) or not hasattr(task, "head"):
        raise InputError(
            f"the task {name} cannot be kept: a {type(task).__name__} is a loss of its own, or no dataclass; keep "
            "heads without it"
        )
    options = asdict(task)
    if taken := options.keys() & {"name", "class"}:
        raise InputError(f"the task {name} cannot be kept: its option {min(taken)} needs another name")
    as_lists = {key: list(v) if isinstance(v, tuple) else v for key, v in options.items()}
    return {"class": type(task).__name__, **as_lists}

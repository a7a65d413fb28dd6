"""The tasks of heads by name, which stay as they are: layers and layouts are made for them."""

from __future__ import annotations

from typing import Any, NoReturn

from mt2st_fast.errors import InputError
from mt2st_fast.model.tasks import Task

FIXED = ("main", "names", "tasks")  # attributes of heads that stay as they were made


def refuse_change(*_: Any, **__: Any) -> NoReturn:
    """Raise InputError for a change of the tasks of heads."""
    raise InputError(
        "the tasks of heads cannot be changed, nor which is the main one, as layers and losses were made for them; "
        "make new heads for other tasks (MultiTaskHeads.from_modules takes over layers), or retire tasks: "
        "heads.set_active([...])"
    )


class FixedTasks(dict[str, Task]):
    """A mapping that refuses every change, which would reach only some of what was made for these tasks."""

    __setitem__ = __delitem__ = __ior__ = refuse_change
    update = pop = popitem = clear = setdefault = refuse_change

    def __reduce__(self) -> Any:
        # A copied or unpickled dictionary would be filled item by item.
        return type(self), (dict(self),)

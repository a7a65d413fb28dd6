"""The tasks of heads by name, which stay as they are: layers and layouts are made for them."""

from __future__ import annotations

from typing import Any, NoReturn

from mt2st_fast.errors import InputError
from mt2st_fast.model.tasks import Task


class FixedTasks(dict[str, Task]):
    """A mapping that refuses every change, which would reach only some of what was made for these tasks."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(
            "the tasks of heads cannot be changed, as layers and losses were made for them; make new heads for other "
            "tasks (MultiTaskHeads.from_modules takes over layers), or retire tasks: heads.set_active([...])"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = pop = popitem = clear = setdefault = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        # A copied or unpickled dictionary would be filled item by item.
        return type(self), (dict(self),)

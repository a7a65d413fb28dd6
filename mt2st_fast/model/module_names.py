"""Names of tasks as names of modules."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_TAKEN_NAMES = frozenset([*dir(nn.ModuleDict()), *dir(nn.ParameterDict())])


def module_name(task: str) -> str:
    """Return a task's name as a module name, which cannot contain a dot (feats.Number) or be taken (type).

    Raises ValueError for a name that is no string.
    """
    if not isinstance(task, str):
        raise ValueError(f"the name of a task must be a string, not {task!r}")
    name = task.replace(".", "__")
    return f"{name}__" if name in _TAKEN_NAMES else name


def check_module_names(tasks: Iterable[str]) -> None:
    """Raises ValueError for a task without a name, and for two that would share a module name."""
    task_of: dict[str, str] = {}
    for task in tasks:
        if not task:
            raise ValueError("task names must not be empty")
        other = task_of.setdefault(module_name(task), task)
        if other != task:
            raise ValueError(f"tasks {other} and {task} would share the module name {module_name(task)}")

"""What the user asked a reader for: main and auxiliary tasks by name and kind."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mt2st_fast.errors import InputError

_KIND_OF_SUFFIX = {
    "classes": "classes",
    "classification": "classes",
    "multilabel": "labels",
    "regression": "values",
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TaskRequest:
    """A task by name, and its kind ("classes", "labels", "values")."""

    name: str
    kind: str = "classes"


@dataclass(frozen=True)
class ReadRequest:
    """What a reader is given; main or auxiliary of None stand for the reader's defaults.

    `path` says nothing to a reader that needs none.
    """

    path: Path
    main: TaskRequest | None
    auxiliary: tuple[TaskRequest, ...] | None
    progress: Progress | None = None

    @property
    def requested(self) -> tuple[TaskRequest, ...]:
        """All tasks asked for by name, main task first."""
        return (() if self.main is None else (self.main,)) + (self.auxiliary or ())

    def only_classes(self, reader: str) -> None:
        """Raise InputError where a task was asked for as regression or multilabel."""
        for task in self.requested:
            if task.kind != "classes":
                raise InputError(
                    f"task {task.name!r}: {reader} has classes only; other kinds are for csv:PATH"
                )


def parse_task(text: str) -> TaskRequest:
    """`rating:regression`, `tags:multilabel`, or a name alone for classes."""
    name, separator, suffix = text.rpartition(":")
    if separator and name and suffix in _KIND_OF_SUFFIX:
        return TaskRequest(name, _KIND_OF_SUFFIX[suffix])
    return TaskRequest(text)


def make_request(
    path: Path, main: str | None, auxiliary: Sequence[str] | None, progress: Progress | None
) -> ReadRequest:
    """Parse the task names. Raises InputError for an auxiliary task named twice."""
    main_request = None if main is None else parse_task(main)
    auxiliary_requests = None if auxiliary is None else tuple(map(parse_task, auxiliary))
    names = [task.name for task in auxiliary_requests or ()]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"auxiliary task {repeated[0]!r} is named twice; name it once")
    return ReadRequest(path, main_request, auxiliary_requests, progress)


def choose_tasks(
    request: ReadRequest,
    existing: Sequence[str],
    default_main: str,
    default_auxiliary: Iterable[str],
    where: str,
) -> tuple[TaskRequest, tuple[TaskRequest, ...]]:
    """Main and auxiliary tasks, with the reader's defaults where the request leaves them open.

    Raises InputError for a task that does not exist (it lists those that do) or that is main and auxiliary.
    """
    main = request.main or TaskRequest(default_main)
    auxiliary = request.auxiliary
    if auxiliary is None:
        auxiliary = tuple(TaskRequest(name) for name in default_auxiliary if name != main.name)
    for task in (main, *auxiliary):
        if task.name not in existing:
            raise InputError(
                f"{where}: there is no task {task.name!r}; it has {', '.join(existing) or 'none'}"
            )
    if main.name in [task.name for task in auxiliary]:
        raise InputError(f"task {main.name!r} is main and auxiliary; take it out of the auxiliary tasks")
    return main, auxiliary

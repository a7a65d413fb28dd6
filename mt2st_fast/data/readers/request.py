"""The definition of a reader, and a user's request to it: main and auxiliary tasks by name and kind."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mt2st_fast.data.corpus import Splits
from mt2st_fast.errors import InputError
from mt2st_fast.spelling import listed, meant, quoted

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
    """The input of a reader; None for main or auxiliary selects the reader's defaults.

    `path` is meaningless for a reader that needs none; text_column and delimiter are for tables. measured: for
    evaluation without training, the parts that are needed, so that text need not be split for the others; None for all
    three.
    """

    path: Path
    main: TaskRequest | None
    auxiliary: tuple[TaskRequest, ...] | None
    progress: Progress | None = None
    text_column: str | None = None
    delimiter: str | None = None
    measured: tuple[str, ...] | None = None

    @property
    def requested(self) -> tuple[TaskRequest, ...]:
        """All tasks requested by name, the main task first."""
        return (() if self.main is None else (self.main,)) + (self.auxiliary or ())


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """The texts of a file in their order, or its sentences as lists of words; notes: what was left out, and why."""

    units: Sequence[str] | Sequence[list[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Reader:
    """How one kind of corpus is read; each reader module in `mt2st_fast.data.readers` has one as its `READER`.

    name            of the kind, as in `name:PATH`
    read            from a request to Splits; raises InputError for what cannot be used
    path            what PATH is, in a few words; "" for a reader that takes none
    kinds           of the tasks that it can read ("classes", "labels", "values"); () for text without labels
    tokenizer       how it splits a text into words, a name in data/text/tokenizers.py; "words" if files define them
    label_fraction  default share of the training units or groups that keep their main labels
    level           of its rows: "token" or "document"
    options         fields of a request that only some readers use: "text_column", "delimiter"
    extensions      of its files
    unlabelled      reads one file for a model to label, whether or not it has labels; None where lines do
    """

    name: str
    read: Callable[[ReadRequest], Splits]
    path: str
    kinds: tuple[str, ...] = ("classes",)
    label_fraction: float = 1.0
    tokenizer: str = "words"
    level: str = "token"
    options: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    unlabelled: Callable[[ReadRequest], Unlabelled] | None = None

    @property
    def needs_path(self) -> bool:
        """Whether a path follows the name."""
        return bool(self.path)

    @property
    def spec(self) -> str:
        """The form of its data option, `name` or `name:PATH`."""
        return f"{self.name}:PATH" if self.needs_path else self.name


def parse_task(text: str) -> TaskRequest:
    """Parse `rating:regression`, `tags:multilabel`, or a name alone for classes."""
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
    """Return main and auxiliary tasks, using the reader's defaults where the request leaves them open.

    Raises InputError for a task that does not exist (it lists those that do) or that is main and auxiliary.
    """
    main = request.main or TaskRequest(default_main)
    auxiliary = request.auxiliary
    if auxiliary is None:
        auxiliary = tuple(TaskRequest(name) for name in default_auxiliary if name != main.name)
    for task in (main, *auxiliary):
        if task.name not in existing:
            raise InputError(
                f"{where}: no task {task.name!r}; available: {listed(existing)}"
                + (meant(task.name, existing) or quoted(existing))
            )
    if main.name in [task.name for task in auxiliary]:
        raise InputError(f"task {main.name!r} is both main and auxiliary; remove it from the auxiliary tasks")
    return main, auxiliary

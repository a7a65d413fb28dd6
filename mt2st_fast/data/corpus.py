"""The corpus: word type ids, sentence or document bounds, and one target column per task."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mt2st_fast.data.tokens import check_bounds
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError

MISSING = -100  # the class of a row without a label; torch's and our heads' ignore_index


@dataclass(frozen=True, eq=False)
class TargetColumn:
    """The labels of one task for N rows.

    kind         values                                               class_names
    "classes"    int64 (N,), a class in [0, C) or MISSING             the C classes
    "labels"     float32 (N, C), 0 or 1, NaN where missing            the C labels (multi-label)
    "values"     float32 (N, C), any number, NaN where missing        the C quantities (regression)
    """

    kind: str
    class_names: tuple[str, ...]
    values: np.ndarray

    def __post_init__(self) -> None:
        if self.kind == "classes":
            self._check_classes()
        elif self.kind in ("labels", "values"):
            self._check_dense()
        else:
            raise ValueError(
                f"the kind of a target column must be classes, labels or values, not {self.kind!r}"
            )

    def _check_classes(self) -> None:
        if self.values.ndim != 1 or self.values.dtype != np.int64:
            raise ValueError(f"classes must be int64 (N,), not {self.values.dtype} {self.values.shape}")
        given = self.values[self.values != MISSING]
        if given.size and not 0 <= given.min() <= given.max() < self.size:
            raise ValueError(
                f"classes must lie in [0, {self.size}) or be {MISSING}; they range from {given.min()} to {given.max()}"
            )

    def _check_dense(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != np.float32 or self.values.shape[1] != self.size:
            wanted = f"float32 (N, {self.size})"
            raise ValueError(f"{self.kind} must be {wanted}, not {self.values.dtype} {self.values.shape}")
        if np.isinf(self.values).any():
            raise ValueError(f"{self.kind} contain an infinite number")
        if self.kind == "labels" and not (np.isnan(self.values) | np.isin(self.values, (0, 1))).all():
            raise ValueError("labels must be 0, 1 or NaN")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size(self) -> int:
        """C, the number of outputs a head for this task has."""
        return len(self.class_names)

    def labelled(self) -> np.ndarray:
        """Return which rows have a label, bool (N,)."""
        if self.kind == "classes":
            return self.values != MISSING
        return ~np.isnan(self.values).all(axis=1)

    def hide(self, rows: np.ndarray) -> "TargetColumn":
        """Return a copy in which the rows of a bool mask (N,) have no label."""
        values = self.values.copy()
        values[rows] = MISSING if self.kind == "classes" else np.nan
        return replace(self, values=values)


@dataclass(frozen=True, eq=False)
class Corpus:
    """T tokens in units (sentences or documents), with the labels of N rows.

    tokens   int32 (T,), word type ids
    bounds   int64 (n_units + 1,), unit u is tokens[bounds[u]:bounds[u + 1]]
    targets  task name -> TargetColumn of N rows
    level    "token": a row is a token, N = T; "document": a row is a unit, N = n_units
    groups   None, or int64 (n_groups + 1,): group g (such as a file) is units groups[g]:groups[g + 1]
    """

    tokens: np.ndarray
    bounds: np.ndarray
    targets: Mapping[str, TargetColumn]
    level: str = "token"
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.level not in ("token", "document"):
            raise ValueError(f"the level of a corpus must be token or document, not {self.level!r}")
        if self.tokens.ndim != 1 or self.tokens.dtype != np.int32:
            raise ValueError(f"tokens must be int32 (T,), not {self.tokens.dtype} {self.tokens.shape}")
        if self.tokens.size and self.tokens.min() < 0:
            raise ValueError("a token has a negative type id")
        check_bounds("bounds", self.bounds, len(self.tokens))
        if self.groups is not None:
            check_bounds("groups", self.groups, self.n_units)
        for task, column in self.targets.items():
            if len(column) != self.n_rows:
                raise ValueError(f"task {task} has {len(column)} targets for {self.n_rows} rows")

    @property
    def n_units(self) -> int:
        """The number of sentences or documents."""
        return len(self.bounds) - 1

    @property
    def n_rows(self) -> int:
        """N: tokens at token level, documents at document level."""
        return len(self.tokens) if self.level == "token" else self.n_units

    @property
    def unit_of_token(self) -> np.ndarray:
        """The unit of each token, int64 (T,)."""
        return np.repeat(np.arange(self.n_units), np.diff(self.bounds))

    @property
    def unit_of_row(self) -> np.ndarray:
        """The unit of each row, int64 (N,)."""
        return self.unit_of_token if self.level == "token" else np.arange(self.n_units)

    @property
    def group_of_unit(self) -> np.ndarray:
        """The group of each unit, int64 (n_units,); without groups each unit is a group."""
        if self.groups is None:
            return np.arange(self.n_units)
        return np.repeat(np.arange(len(self.groups) - 1), np.diff(self.groups))

    def digest(self, tasks: Sequence[str]) -> str:
        """Return a checksum of the text and of the labels and names of tasks."""
        state = hashlib.sha256(f"{self.level} {self.tokens.shape}".encode())
        for array in (self.tokens, self.bounds):
            state.update(np.ascontiguousarray(array).data)
        for task in tasks:
            column = self.column(task)
            state.update(json.dumps([task, column.kind, column.class_names]).encode())
            state.update(np.ascontiguousarray(column.values).data)
        return state.hexdigest()

    def column(self, task: str) -> TargetColumn:
        """Return the targets of a task. Raises InputError, which lists the tasks, where there is none of that name."""
        try:
            return self.targets[task]
        except KeyError:
            known = ", ".join(self.targets) or "none"
            raise InputError(f"the corpus has no task {task!r}; available: {known}") from None


@dataclass(frozen=True)
class FileRead:
    """A file that was read: its part, and how many units (sentences, documents) and rows it gave.

    left_out: the counts of what was skipped, by kind (`{"blank lines": 3}`).
    """

    path: str
    part: str
    units: int
    rows: int
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnRead:
    """A column of a table: its role, and the numbers of its different values and empty cells over all files."""

    name: str
    taken_as: str
    values: int
    empty: int
    nan: int


@dataclass(frozen=True)
class ReadRecord:
    """What was read: the files, the columns of tables, and what a reader inferred (`{"delimiter": "comma"}`)."""

    files: tuple[FileRead, ...] = ()
    columns: tuple[ColumnRead, ...] = ()
    understood: Mapping[str, str] = field(default_factory=dict)


NOTHING_RECORDED = ReadRecord()


@dataclass(frozen=True, eq=False)
class Splits:
    """Training, development and test corpus over one vocabulary, and the name of the main task.

    `main` is None only for text without labels. `notes` are lines for reports (what was left out, what was hidden);
    `record` says what was read.
    """

    train: Corpus
    dev: Corpus
    test: Corpus
    vocabulary: Vocabulary
    name: str
    main: str | None = None
    auxiliary: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    record: ReadRecord = NOTHING_RECORDED

    def __post_init__(self) -> None:
        for part, corpus in self.parts.items():
            if corpus.tokens.size and corpus.tokens.max() >= len(self.vocabulary):
                raise ValueError(
                    f"{part} contains a type id outside the vocabulary of {len(self.vocabulary)} types"
                )
            if corpus.level != self.train.level or corpus.targets.keys() != self.train.targets.keys():
                raise ValueError(f"{part} and train differ in their level or tasks")
            for task, column in corpus.targets.items():
                expected = self.train.targets[task]
                if (column.kind, column.class_names) != (expected.kind, expected.class_names):
                    raise ValueError(f"{part} and train differ in the kind or classes of task {task}")
        for task in self.tasks:
            self.train.column(task)

    @property
    def parts(self) -> dict[str, Corpus]:
        """The corpora by the names of their splits."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, the main task first."""
        return (() if self.main is None else (self.main,)) + self.auxiliary


def check_main(corpus: Corpus, main: str) -> None:
    """Raise InputError if the (training) corpus has no task of that name or no label of it."""
    if not corpus.column(main).labelled().any():
        raise InputError(
            f"no training row has a label for the main task {main!r}; label some rows or choose another main task"
        )


def hide_labels(corpus: Corpus, task: str, fraction: float, seed: int) -> Corpus:
    """Keep a task's labels only in a fraction of the units that have any, or of the groups if the corpus has groups.

    Meant for the training split only. Deterministic in the seed; a smaller fraction keeps a subset of what a larger one
    keeps, and at least one unit or group keeps its labels. Raises InputError for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InputError(
            f"label fraction {fraction} is outside (0, 1]; 0.05, for example, keeps 5 % of the main labels"
        )
    column = corpus.column(task)
    if fraction == 1:
        return corpus
    group_of_row = corpus.group_of_unit[corpus.unit_of_row]
    labelled_groups = np.unique(group_of_row[column.labelled()])
    shuffled = np.random.Generator(np.random.PCG64(seed)).permutation(labelled_groups)
    kept = shuffled[: max(1, round(fraction * len(shuffled)))]
    hidden = column.hide(~np.isin(group_of_row, kept))
    return replace(corpus, targets={**corpus.targets, task: hidden})

"""What a kind of head is: one record of its loss, its metric and what the kernels compile of it.

A kind lives in a file of its own in `kinds/`, which is all that adding one takes:

    class PoissonOptions(Options): ...             its options, if there are any
    def element(z, y, weight, options): ...        loss and gradient of one output, in the words of `elements`
    POISSON = elementwise_kind("POISSON", ...)     the record, found by its name as Kind.POISSON
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, NamedTuple
from zlib import crc32

import torch
from torch import Tensor

MAX_NUMBERS = 4  # of an option record that a kernel can read


@dataclass(frozen=True)
class Options:
    """The options of a kind's loss, and what the kernels need of them; the base has none.

    Raises ValueError for a value out of range.
    """

    def check(self, size: int) -> None:
        """Raises ValueError for options that do not fit a head of `size` outputs."""

    @property
    def column_weights(self) -> tuple[float, ...] | None:
        """(C,) a weight for each output, or None where all are 1."""
        return None

    @property
    def numbers(self) -> tuple[float, ...]:
        """At most MAX_NUMBERS numbers: what an element function gets as its `options`."""
        return ()


def as_weights(option: str, values: Any) -> tuple[float, ...] | None:
    """Weights of outputs as a tuple, which can be hashed.

    Raises ValueError for one that is negative, infinite or NaN, and for a mapping or set, which has no order.
    """
    if values is None:
        return None
    if isinstance(values, Mapping | Set):
        raise ValueError(
            f"{option} must be a list with a number for every output, in order, not a {type(values).__name__}: give "
            "[weights[c] for c in range(C)]"
        )
    if any(not 0.0 <= value < math.inf for value in values):
        raise ValueError(f"{option} must be finite and not negative: {values}")
    return tuple(float(value) for value in values)


def check_size(name: str, size: Any) -> None:
    """Raises ValueError for what is no number of outputs."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")


def check_weights(option: str, values: tuple[float, ...] | None, size: int) -> None:
    """Raises ValueError where there is not one weight for each output."""
    if values is not None and len(values) != size:
        raise ValueError(f"{option} needs {size} values, one per output, not {len(values)}")


class Metric(NamedTuple):
    """The quality of a head over many batches.

    name: as it stands in reports. sums: of a batch, from logits (N, C) and targets (N,) or (N, C), as tensors of one
    shape, () or (C,). value: the metric from those sums added up in float64, numbers or lists of them; NaN where no row
    carries a target.
    """

    name: str
    sums: Callable[[Tensor, Tensor, HeadSpec], tuple[Tensor, ...]]
    value: Callable[..., float]


class _Kinds(type):
    """Kind.SOFTMAX and the like: the records of the folder `kinds`, found when the first one is asked for."""

    def __getattr__(cls, name: str) -> Kind:
        if not name.isupper():
            raise AttributeError(name)
        return cls.named(name)

    def __iter__(cls) -> Iterator[Kind]:
        return iter(_found().values())

    def named(cls, name: str) -> Kind:
        """The kind of that name. Raises AttributeError for a name that no kind has."""
        try:
            return _found()[name]
        except KeyError:
            raise AttributeError(f"there is no kind {name}; there are {', '.join(_found())}") from None


@dataclass(frozen=True, eq=False)
class Kind(metaclass=_Kinds):
    """How the outputs of a head are trained and judged.

    targets: "classes", integers (N,), or "values", floats (N, C) with NaN = missing.
    row_losses: the oracle, from logits (N, C), targets and the head's spec to the loss (N,) of every row, 0 of a row
    that is not valid; in the dtype of the logits.
    counts: from targets, the head's spec and a dtype to what every row (N,) counts for in the mean.
    correct: rows () int64 that are right, from logits (N, C), targets and the spec.
    metric: how good a head is on held-out rows.
    options: what may be set beside the number of outputs.
    bounds: between which values targets must lie, None where they may be any.
    element, hit: see `elementwise_kind`; element is None for a kind with kernels of its own.
    task_of_column: by the kind of a column of labels ("classes", "labels" or "values"), what makes the task of it from
    its number of outputs. A kind names those columns that nobody asks another kind for.
    """

    name: str
    targets: Literal["classes", "values"]
    row_losses: Callable[[Tensor, Tensor, HeadSpec], Tensor]
    counts: Callable[[Tensor, HeadSpec, torch.dtype], Tensor]
    correct: Callable[[Tensor, Tensor, HeadSpec], Tensor]
    metric: Metric
    options: type[Options] = Options
    element: Callable[..., Any] | None = None
    hit: Callable[..., Any] | None = None
    task_of_column: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)
    bounds: tuple[float, float] | None = None

    def loss(self, logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
        """Mean () over what counts in logits (N, C) and targets, 0 where nothing does; in the dtype of the logits."""
        total = self.row_losses(logits, target, head).sum()
        count = self.counts(target, head, logits.dtype).sum()
        return torch.where(count > 0, total / count.clamp_min(1e-30), total * 0)

    @property
    def code(self) -> int:
        """What the kernels branch on, 31 bits. Made from the name: another kind renumbers none."""
        return crc32(self.name.encode()) >> 1

    @property
    def takes_classes(self) -> bool:
        """Whether targets are integers (N,); otherwise they are floats (N, C)."""
        return self.targets == "classes"

    def __repr__(self) -> str:
        return f"Kind.{self.name}"

    def __reduce__(self) -> tuple[Callable[[str], Kind], tuple[str]]:
        # A copy, or one that comes back from another process, is the same kind.
        return _named, (self.name,)


def _named(name: str) -> Kind:
    return Kind.named(name)


@cache
def _found() -> dict[str, Kind]:
    """Every kind of the folder, by name, in the order of names. Raises ValueError for a name that two have."""
    package = f"{__package__}.kinds"
    path = importlib.import_module(package).__path__
    modules = [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(path)]
    found: dict[str, Kind] = {}
    for module in modules:
        for kind in vars(module).values():
            if isinstance(kind, Kind) and found.setdefault(kind.name, kind) is not kind:
                raise ValueError(f"two kinds of head are named {kind.name}")
    if len({kind.code for kind in found.values()}) < len(found):
        raise ValueError(f"two kinds of head among {', '.join(found)} have the same code: rename one")
    return dict(sorted(found.items()))


@dataclass(frozen=True, init=False)
class HeadSpec:
    """One head: its kind, its number of outputs C and the options of its loss, HeadSpec(Kind.HUBER, 3, delta=0.5).

    An option can be read as an attribute of the spec, too. Raises ValueError for an option that the kind does not
    have, and for one out of range.
    """

    kind: Kind
    size: int
    options: Options

    def __init__(self, kind: Kind, size: int, **options: Any) -> None:
        check_size("size", size)
        for option in options:
            _check_option(kind, option)
        made = kind.options(**options)
        made.check(size)
        if len(made.numbers) > MAX_NUMBERS:
            raise ValueError(f"a kernel reads {MAX_NUMBERS} numbers, {kind.name} has {len(made.numbers)}")
        for name, value in (("kind", kind), ("size", size), ("options", made)):
            object.__setattr__(self, name, value)

    def __getattr__(self, option: str) -> Any:
        # Without `options` this is a copy that is still empty.
        if option.startswith("_") or "options" not in self.__dict__:
            raise AttributeError(option)
        return getattr(self.options, option)

    @property
    def column_weights(self) -> tuple[float, ...]:
        """(C,) weights of the outputs, ones where none are set."""
        return self.options.column_weights or (1.0,) * self.size

    def is_labelled(self, target: Tensor) -> Tensor:
        """(N,) bool, where rows have one of the classes (N,)."""
        limits = torch.iinfo(target.dtype)
        if not limits.min <= self.ignore_index <= limits.max:  # which would wrap around to a class
            return torch.ones_like(target, dtype=torch.bool)
        return target != self.ignore_index  # type: ignore[no-any-return]

    def is_outside(self, target: Tensor) -> Tensor | None:
        """(N,) or (N, C) bool, the targets that this head does not take; None of values that may be any."""
        if self.kind.takes_classes:
            return self.is_labelled(target) & ((target < 0) | (target >= self.size))
        if self.kind.bounds is None:
            return None
        return (target < self.kind.bounds[0]) | (target > self.kind.bounds[1])

    @property
    def takes_all_targets(self) -> bool:
        """Whether no target of the right type and shape is wrong."""
        return not self.kind.takes_classes and self.kind.bounds is None

    @property
    def wanted_targets(self) -> str:
        """Where targets must lie, and what says that there is none."""
        if self.kind.takes_classes:
            return f"[0, {self.size}) and is not ignore_index {self.ignore_index}"
        low, high = self.kind.bounds or (-math.inf, math.inf)
        return f"[{low:g}, {high:g}] and is not NaN"

    def refusal(self, name: str, target: float) -> str:
        """What is said of a target of the task of that name that the head does not take."""
        shown = f"{target:g}" if isinstance(target, float) else target
        return f"targets of {name}: {shown} lies outside {self.wanted_targets}"

    def check_target_type(self, name: str, target: Tensor) -> None:
        """Raises TypeError for targets of a type that this head does not take."""
        if self.kind.takes_classes:
            if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
                raise TypeError(f"targets of {name} must be integers, not {target.dtype}")
        elif not target.is_floating_point():
            raise TypeError(f"targets of {name} must be floating point, not {target.dtype}")

    def target_shape(self, N: int) -> tuple[int, ...]:
        """Of the targets of N rows: (N,) classes or (N, C) values."""
        return (N,) if self.kind.takes_classes else (N, self.size)


def _check_option(kind: Kind, option: str) -> None:
    owners = [other.name for other in Kind if option in (f.name for f in fields(other.options))]
    if not owners:
        raise ValueError(f"no kind of head has an option {option}")
    if kind.name not in owners:
        raise ValueError(f"{option} belongs to {' and '.join(owners)} heads, this one is {kind.name}")


def elementwise_kinds() -> tuple[Kind, ...]:
    """The kinds whose loss the kernels compile from an element function."""
    return tuple(kind for kind in Kind if kind.element is not None)


def elementwise_kind(
    name: str,
    *,
    loss: Callable[[Tensor, Tensor, Tensor, Any], Tensor],
    element: Callable[..., Any],
    metric: Metric,
    hit: Callable[..., Any] | None = None,
    options: type[Options] = Options,
    task_of_column: Mapping[str, Callable[[int], Any]] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Kind:
    """A kind whose loss is a mean over outputs that know nothing of each other; targets are float values (N, C).

    loss: the oracle, from logits, targets and column weights (n,) and the head's options to losses (n,), in plain
    torch and not by `element`.
    element(z, y, weight, options) -> (loss, d loss/d z), in the words of `elements` and float literals only, and
    without annotations, since it is compiled by Numba and Triton: z and y are blocks, weight is the output's column
    weight, options the tuple `Options.numbers`, filled up with 0. y may be NaN: what comes of that is thrown away.
    hit(z, y) -> 1.0 where an output is right, else 0.0; without it no row counts as right.
    """

    def row_losses(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
        target = target.to(logits.dtype)
        valid = ~torch.isnan(target)
        weights = torch.tensor(head.column_weights, dtype=logits.dtype, device=logits.device)
        weights = weights.expand(valid.shape)[valid]
        # What is not valid is left out before the loss, not masked behind it: it may be infinite.
        of_valid = loss(logits[valid], target[valid], weights, head.options)
        return torch.zeros_like(logits).masked_scatter(valid, of_valid).sum(1)

    def counts(target: Tensor, head: HeadSpec, dtype: torch.dtype) -> Tensor:
        del head  # a positive weight counts for no more than another
        return (~torch.isnan(target)).sum(1).to(dtype)

    def correct(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
        if hit is None:
            return torch.zeros((), dtype=torch.int64, device=logits.device)
        valid = ~torch.isnan(target)
        return (((hit(logits, target) == 1.0) | ~valid).all(dim=1) & valid.any(dim=1)).sum()

    columns = {} if task_of_column is None else task_of_column
    return Kind(name, "values", row_losses, counts, correct, metric, options, element, hit, columns, bounds)


def task_of_column(column: str, size: int) -> Any:
    """The task that trains a column of labels ("classes", "labels", "values") with `size` outputs.

    Raises ValueError for a column that no kind, or more than one, is for.
    """
    makers = [kind.task_of_column[column] for kind in Kind if column in kind.task_of_column]
    if len(makers) != 1:
        known = sorted({name for kind in Kind for name in kind.task_of_column})
        raise ValueError(
            f"{len(makers)} kinds of head are for a column of {column}; columns are of {', '.join(known)}"
        )
    return makers[0](size)

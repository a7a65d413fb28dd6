"""Kinds of heads: one record with a kind's loss, its metric and what the kernels compile from it.

To add a kind, add one file to `kinds/`:

    class PoissonOptions(Options): ...             its options, if there are any
    def element(z, y, weight, options): ...        loss and gradient of one output, in terms of `elements`
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

import numpy as np
import torch
from torch import Tensor

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
MAX_NUMBERS = 4  # the most numbers of an option record that a kernel can read


@dataclass(frozen=True)
class Options:
    """Options of a kind's loss, and the values that kernels take from them. The base class has none.

    Raises ValueError for a value out of range.
    """

    def check(self, size: int) -> None:
        """Raise ValueError for options that do not fit a head of `size` outputs."""

    @property
    def column_weights(self) -> tuple[float, ...] | None:
        """Weight of each output (C,), or None if all are 1."""
        return None

    @property
    def has_uncounted_losses(self) -> bool:
        """Whether a labelled row may count 0 in the divisor, and yet have a loss, which its mean alone would drop."""
        return False

    @property
    def numbers(self) -> tuple[float, ...]:
        """Up to MAX_NUMBERS numbers, which an element function gets as its `options`."""
        return ()


def take_plain_numbers(record: Any) -> None:
    """Turn NumPy numbers in the fields of a frozen dataclass into Python's.

    A number of classes is often computed, such as `labels.max() + 1`, and files hold Python's numbers only.
    """
    for each in fields(record):
        value = getattr(record, each.name)
        if isinstance(value, np.generic):
            object.__setattr__(record, each.name, value.item())


def as_weights(option: str, values: Any) -> tuple[float, ...] | None:
    """Return output weights as a (hashable) tuple.

    Raises ValueError for a weight that is negative, infinite or NaN, for a single number, and for a set, a mapping, or
    a series of pandas, which is a mapping too: `labels.value_counts()` is in the order of the counts.
    """
    if values is None:
        return None
    if isinstance(values, Mapping | Set) or hasattr(values, "keys"):
        raise ValueError(
            f"{option} must be a list with one number per output, in order, not a {type(values).__name__}; pass "
            "[weights[c] for c in range(C)]"
        )
    if isinstance(values, int | float) or getattr(values, "ndim", 1) != 1:
        raise ValueError(
            f"{option} must be a list with one number per output, not {values!r}; one for all is [value] * C"
        )
    if any(not 0.0 <= value < math.inf for value in values):
        raise ValueError(f"{option} must be finite and not negative: {values}")
    return tuple(float(value) for value in values)


def check_size(name: str, size: Any) -> None:
    """Raise ValueError unless `size` is a valid number of outputs."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")


def check_weights(option: str, values: tuple[float, ...] | None, size: int) -> None:
    """Raise ValueError unless there is one weight for each output."""
    if values is not None and len(values) != size:
        raise ValueError(f"{option} needs {size} values, one per output, not {len(values)}")


class Metric(NamedTuple):
    """Quality of a head over many batches.

    name: as shown in reports.
    sums: computes the sums of a batch from logits (N, C) and targets (N,) or (N, C), as tensors of one shape, () or
    (C,).
    value: computes the metric from those sums, accumulated in float64, as numbers or lists of numbers; NaN if no row
    has a target.
    """

    name: str
    sums: Callable[[Tensor, Tensor, HeadSpec], tuple[Tensor, ...]]
    value: Callable[..., float]


class _Kinds(type):
    """Access to kinds as Kind.SOFTMAX etc.: the records in the folder `kinds`, collected on first use."""

    def __getattr__(cls, name: str) -> Kind:
        if not name.isupper():
            raise AttributeError(name)
        return cls.named(name)

    def __iter__(cls) -> Iterator[Kind]:
        return iter(_found().values())

    def named(cls, name: str) -> Kind:
        """Return the kind of that name. Raises AttributeError if there is none."""
        try:
            return _found()[name]
        except KeyError:
            raise AttributeError(f"unknown kind {name}; available: {', '.join(_found())}") from None


@dataclass(frozen=True, eq=False)
class Kind(metaclass=_Kinds):
    """How the outputs of a head are trained and evaluated.

    targets: "classes", integers (N,), or "values", floats (N, C) with NaN = missing.
    row_losses: the oracle: logits (N, C), targets and the head's spec -> the loss of every row (N,), 0 for an invalid
    row, in the dtype of the logits.
    counts: targets, the head's spec and a dtype -> how much every row counts in the mean (N,).
    correct: logits (N, C), targets and the spec -> the number of correct rows, () int64.
    metrics: ways to judge a head on held-out rows; the first is the default.
    options: what may be set besides the number of outputs.
    bounds: the range in which target values must lie, or None for any value.
    element, hit: see `elementwise_kind`; element is None for a kind with kernels of its own.
    task_of_column: label column type ("classes", "labels" or "values") -> a function from the number of outputs to the
    task. Lists only the column types for which this kind is the default.
    """

    name: str
    targets: Literal["classes", "values"]
    row_losses: Callable[[Tensor, Tensor, HeadSpec], Tensor]
    counts: Callable[[Tensor, HeadSpec, torch.dtype], Tensor]
    correct: Callable[[Tensor, Tensor, HeadSpec], Tensor]
    metrics: tuple[Metric, ...]
    options: type[Options] = Options
    element: Callable[..., Any] | None = None
    hit: Callable[..., Any] | None = None
    task_of_column: Mapping[str, Callable[[int], Any]] = field(default_factory=dict)
    bounds: tuple[float, float] | None = None

    def loss(self, logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
        """Mean loss () over the valid part of logits (N, C) and targets, or 0 if nothing is valid.

        In the dtype of the logits.
        """
        total = self.row_losses(logits, target, head).sum()
        count = self.counts(target, head, logits.dtype).sum()
        return torch.where(count > 0, total / count.clamp_min(1e-30), total * 0)

    @property
    def metric(self) -> Metric:
        """The default metric."""
        return self.metrics[0]

    def check_metric(self, name: str) -> None:
        """Raise ValueError for a name that no metric of this kind has."""
        names = [metric.name for metric in self.metrics]
        if name not in names:
            raise ValueError(
                f"metric {name!r} is unknown for this kind of task; available: {', '.join(names)}"
            )

    @property
    def code(self) -> int:
        """31-bit code that the kernels branch on.

        Made from the name, so that adding a kind does not change other codes.
        """
        return crc32(self.name.encode()) >> 1

    @property
    def takes_classes(self) -> bool:
        """Whether targets are integers (N,) rather than floats (N, C)."""
        return self.targets == "classes"

    def __repr__(self) -> str:
        return f"Kind.{self.name}"

    def __reduce__(self) -> tuple[Callable[[str], Kind], tuple[str]]:
        # A copied or unpickled kind is the same object as the original.
        return _named, (self.name,)


def _named(name: str) -> Kind:
    return Kind.named(name)


@cache
def _found() -> dict[str, Kind]:
    """Collect every kind in the folder, sorted by name. Raises ValueError if two kinds share a name or a code."""
    package = f"{__package__}.kinds"
    path = importlib.import_module(package).__path__
    modules = [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(path)]
    found: dict[str, Kind] = {}
    for module in modules:
        for kind in vars(module).values():
            if isinstance(kind, Kind) and found.setdefault(kind.name, kind) is not kind:
                raise ValueError(f"two kinds of head are named {kind.name}")
    if len({kind.code for kind in found.values()}) < len(found):
        raise ValueError(f"two kinds of head among {', '.join(found)} have the same code; rename one")
    return dict(sorted(found.items()))


@dataclass(frozen=True, init=False)
class HeadSpec:
    """One head: kind, number of outputs C and the options of its loss, as in HeadSpec(Kind.HUBER, 3, delta=0.5).

    Options can also be read as attributes of the spec. Raises ValueError for an option that the kind does not have, and
    for one out of range.
    """

    kind: Kind
    size: int
    options: Options

    def __init__(self, kind: Kind, size: int, **options: Any) -> None:
        size = size.item() if isinstance(size, np.generic) else size
        check_size("size", size)
        for option in options:
            _check_option(kind, option)
        made = kind.options(**options)
        made.check(size)
        if len(made.numbers) > MAX_NUMBERS:
            raise ValueError(
                f"a kernel reads at most {MAX_NUMBERS} numbers, but {kind.name} has {len(made.numbers)}"
            )
        for name, value in (("kind", kind), ("size", size), ("options", made)):
            object.__setattr__(self, name, value)

    def __getattr__(self, option: str) -> Any:
        # Without `options` this is a copy whose fields are not set yet.
        if option.startswith("_") or "options" not in self.__dict__:
            raise AttributeError(option)
        return getattr(self.options, option)

    @property
    def column_weights(self) -> tuple[float, ...]:
        """Weights of the outputs (C,): ones if none are set."""
        return self.options.column_weights or (1.0,) * self.size

    def is_labelled(self, target: Tensor) -> Tensor:
        """Return (N,) bool: which of the class targets (N,) are not ignore_index."""
        limits = torch.iinfo(target.dtype)
        if not limits.min <= self.ignore_index <= limits.max:  # it would wrap around to a class
            return torch.ones_like(target, dtype=torch.bool)
        return target != self.ignore_index  # type: ignore[no-any-return]

    def is_outside(self, target: Tensor) -> Tensor | None:
        """Return the targets that this head does not accept, as (N,) or (N, C) bool; None if any value is accepted."""
        if self.kind.takes_classes:
            return self.is_labelled(target) & ((target < 0) | (target >= self.size))
        if self.kind.bounds is None:
            return None
        return (target < self.kind.bounds[0]) | (target > self.kind.bounds[1])

    def comparable(self, target: Tensor) -> Tensor:
        """Return targets of a type that torch can compare: unsigned whole numbers beyond bytes become int64."""
        return target.long() if self.kind.takes_classes and target.dtype in UNSIGNED else target

    @property
    def takes_all_targets(self) -> bool:
        """Whether every target of the right type and shape is accepted."""
        return not self.kind.takes_classes and self.kind.bounds is None

    @property
    def wanted_targets(self) -> str:
        """Describe the accepted range, and the marker for a missing target, for an error message."""
        if self.kind.takes_classes:
            return f"[0, {self.size}) and is not ignore_index {self.ignore_index}"
        low, high = self.kind.bounds or (-math.inf, math.inf)
        return f"[{low:g}, {high:g}] and is not NaN"

    def refusal(self, name: str, target: float) -> str:
        """Error message for a target of task `name` that the head does not accept."""
        return refusal(name, target, self.wanted_targets)

    def check_target_type(self, name: str, target: Tensor) -> None:
        """Raise TypeError for targets of a type that this head does not accept."""
        if self.kind.takes_classes:
            if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
                # Tables hold whole numbers as floats as soon as one is missing: long() alone makes a number of NaN.
                known = f"nan_to_num({self.ignore_index})." if target.is_floating_point() else ""
                missing = ", in which NaN is a missing label" if known else ""
                raise TypeError(
                    f"targets of {name} must be integers, not {target.dtype}; pass classes as target.{known}long()"
                    f"{missing}"
                )
        elif not target.is_floating_point():
            raise TypeError(
                f"targets of {name} must be floating point, not {target.dtype}; pass values as target.float(), with "
                "NaN where one is missing"
            )

    def target_shape(self, N: int) -> tuple[int, ...]:
        """Shape of the targets of N rows: (N,) for classes, (N, C) for values."""
        return (N,) if self.kind.takes_classes else (N, self.size)


def refusal(name: str, target: float, wanted: str) -> str:
    """Error message for a target of task `name` that a head does not accept; wanted: its `wanted_targets`."""
    shown = f"{target:g}" if isinstance(target, float) else target
    return f"targets of {name}: {shown} lies outside {wanted}"


def _check_option(kind: Kind, option: str) -> None:
    owners = [other.name for other in Kind if option in (f.name for f in fields(other.options))]
    if not owners:
        raise ValueError(f"no kind of head has an option {option}")
    if kind.name not in owners:
        raise ValueError(f"{option} belongs to {' and '.join(owners)} heads, but this one is {kind.name}")


def elementwise_kinds() -> tuple[Kind, ...]:
    """Return the kinds whose loss the kernels compile from an element function."""
    return tuple(kind for kind in Kind if kind.element is not None)


def column_weights_on(head: HeadSpec, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weights (C,) of a head's outputs on a device."""
    # What is made within a transformation belongs to it.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return torch.tensor(head.column_weights, dtype=dtype, device=device)
    key = (head.column_weights, dtype, device)
    if key in _WEIGHTS:
        return _WEIGHTS[key]
    with torch.inference_mode(False):  # kept for later calls, so they must not be an inference tensor
        made = torch.tensor(head.column_weights, dtype=dtype, device=device)
    # In a trace it has no numbers, and is not kept.
    return _WEIGHTS.setdefault(key, made) if type(made) is Tensor else made


# Copying them to a device would wait for it in every step. Never freed: a CUDA graph may read them.
_WEIGHTS: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}


def elementwise_kind(
    name: str,
    *,
    loss: Callable[[Tensor, Tensor, Tensor, Any], Tensor],
    element: Callable[..., Any],
    metrics: tuple[Metric, ...],
    hit: Callable[..., Any] | None = None,
    options: type[Options] = Options,
    task_of_column: Mapping[str, Callable[[int], Any]] | None = None,
    bounds: tuple[float, float] | None = None,
) -> Kind:
    """Make a kind whose loss is a mean over independent outputs; targets are float values (N, C).

    loss: the oracle: logits, targets and column weights (N, C) and the head's options -> losses (N, C), written in
    plain torch and without `element`.
    element(z, y, weight, options) -> (loss, d loss/d z): z and y are blocks, weight is the output's column weight and
    options the tuple `Options.numbers`, padded with 0. Numba and Triton compile it, so it may use only the functions of
    `elements` and float literals, and no annotations. y may be NaN; the result is then discarded.
    hit(z, y) -> 1.0 if an output is right, else 0.0. Without it, no row counts as right.
    """

    def row_losses(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
        target = target.to(logits.dtype)
        valid = ~torch.isnan(target)
        weights = column_weights_on(head, logits.dtype, logits.device)
        # Zeros in place of the invalid elements before computing the loss, too: masking only the loss would not help
        # where it is infinite. No selection by a mask, whose size vmap could not know.
        z, y = (torch.where(valid, values, 0.0) for values in (logits, target))
        return torch.where(valid, loss(z, y, weights.expand(valid.shape), head.options), 0.0).sum(1)

    def counts(target: Tensor, head: HeadSpec, dtype: torch.dtype) -> Tensor:
        del head  # positive weights scale the loss only; every valid element counts 1
        return (~torch.isnan(target)).sum(1).to(dtype)

    def correct(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
        if hit is None:
            return torch.zeros((), dtype=torch.int64, device=logits.device)
        valid = ~torch.isnan(target)
        return (((hit(logits, target) == 1.0) | ~valid).all(dim=1) & valid.any(dim=1)).sum()

    columns = {} if task_of_column is None else task_of_column
    return Kind(name, "values", row_losses, counts, correct, metrics, options, element, hit, columns, bounds)


def task_of_column(column: str, size: int) -> Any:
    """Return the task that trains a column of labels ("classes", "labels", "values") with `size` outputs.

    Raises ValueError unless exactly one kind is for such a column.
    """
    makers = [kind.task_of_column[column] for kind in Kind if column in kind.task_of_column]
    if len(makers) != 1:
        known = sorted({name for kind in Kind for name in kind.task_of_column})
        raise ValueError(
            f"{len(makers)} kinds of head fit a column of {column}, but there must be exactly one; columns are of "
            f"{', '.join(known)}"
        )
    return makers[0](size)

"""C values: squared error (z - y)^2, and the R² metric that other regressions use too."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kind import HeadSpec, Kind, Metric, Options, check_size, elementwise_kind, take_plain_numbers
from ..pooling import Pooling, check_pooling


def _loss(z: Tensor, y: Tensor, weights: Tensor, options: Options) -> Tensor:
    del weights, options  # this kind has none
    return F.mse_loss(z, y, reduction="none")


def _element(z, y, weight, options):
    error = z - y
    return error * error, 2.0 * error


def _sums(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
    """Sums for R², (C,) each.

    Those of the targets are exact, for up to 2^29 rows of like size: targets that are far from zero vary by a tiny
    difference of large sums, and rounding would make one up where all of them are equal.
    """
    valid = ~torch.isnan(target)
    value = target.float().double().masked_fill(~valid, 0.0)  # losses take float32 as well
    error = (logits.double() - value).masked_fill(~valid, 0.0)
    upper, lower = _halves(value**2)
    return (error**2).sum(0), value.sum(0), upper.sum(0), lower.sum(0), valid.sum(0)


def _halves(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Split squares of float32 numbers, 48 bits each, into halves of 24 bits; float64 adds up 2^29 of such exactly."""
    upper = (squares.view(torch.int64) & -(1 << 29)).view(torch.float64)
    return upper, squares - upper


def _r2(
    squared_errors: list[float],
    totals: list[float],
    upper_squares: list[float],
    lower_squares: list[float],
    counts: list[float],
) -> float:
    """Mean R² over the outputs whose targets vary, so that outputs in different units have equal weight."""
    found = []
    for error, *of_targets in zip(squared_errors, totals, upper_squares, lower_squares, counts, strict=True):
        variation = _variation(*of_targets)
        if variation > 0:
            found.append(1.0 - error / variation)
    return sum(found) / len(found) if found else float("nan")


def _variation(total: float, upper: float, lower: float, count: float) -> float:
    """Sum of squared differences from the mean; 0 only if all targets are equal, NaN if one is infinite."""
    if not count:
        return 0.0
    if not math.isfinite(total + upper + lower):
        return math.nan
    return float(Fraction(upper) + Fraction(lower) - Fraction(total) ** 2 / Fraction(count))


R2 = Metric("r2", _sums, _r2)


@dataclass(frozen=True)
class Regression:
    """C values: squared error on float targets (N, C), or Huber loss if `huber_delta` is given; NaN = missing.

    The metric is the mean R² over the outputs. pooling: as in Classification.
    """

    outputs: int = 1
    huber_delta: float | None = None
    pooling: Pooling = field(default="none", kw_only=True)
    metric = "r2"

    def __post_init__(self) -> None:
        take_plain_numbers(self)
        check_pooling(self.pooling)
        check_size("outputs", self.outputs)
        _ = self.head

    @cached_property
    def head(self) -> HeadSpec:
        """The head in the form that the kernels take."""
        if self.huber_delta is None:
            return HeadSpec(SQUARED, self.outputs)
        return HeadSpec(Kind.HUBER, self.outputs, delta=self.huber_delta)


SQUARED = elementwise_kind(
    "SQUARED", loss=_loss, element=_element, metrics=(R2,), task_of_column={"values": Regression}
)

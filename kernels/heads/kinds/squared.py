"""C values: squared error (z - y)^2, and the R² that also judges other regressions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kind import HeadSpec, Kind, Metric, Options, elementwise_kind
from ..pooling import Pooling, check_pooling


def _loss(z: Tensor, y: Tensor, weights: Tensor, options: Options) -> Tensor:
    del weights, options  # there are none
    return F.mse_loss(z, y, reduction="none")


def _element(z, y, weight, options):
    error = z - y
    return error * error, 2.0 * error


def _sums(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
    valid = ~torch.isnan(target)
    value, error = target[valid].double(), (logits[valid] - target[valid]).double()
    return (error**2).sum(), value.sum(), (value**2).sum(), valid.sum()


def _r2(squared_error: float, total: float, total_of_squares: float, count: float) -> float:
    variation = total_of_squares - total * total / count if count else 0.0
    return 1.0 - squared_error / variation if variation > 0 else float("nan")


R2 = Metric("r2", _sums, _r2)


@dataclass(frozen=True)
class Regression:
    """C values: squared error on float targets (N, C), or Huber loss where `huber_delta` is given; NaN = missing.

    pooling as in Classification.
    """

    outputs: int = 1
    huber_delta: float | None = None
    pooling: Pooling = field(default="none", kw_only=True)
    metric = "r2"

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        _ = self.head

    @property
    def head(self) -> HeadSpec:
        """The head as the kernels know it."""
        if self.huber_delta is None:
            return HeadSpec(SQUARED, self.outputs)
        return HeadSpec(Kind.HUBER, self.outputs, delta=self.huber_delta)


SQUARED = elementwise_kind(
    "SQUARED", loss=_loss, element=_element, metric=R2, task_of_column={"values": Regression}
)

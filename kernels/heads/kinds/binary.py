"""Any of C labels: binary cross-entropy per label.

With positive weights q (as in binary_cross_entropy_with_logits) and l = 1 + (q-1) y:
    loss = (1-y) z + l (log1p exp(-|z|) + max(-z, 0)),   dz = l sigmoid(z) - q y
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..elements import absolute, exp_of_negative, log1p_and_reciprocal, where
from ..f1 import MACRO_F1, MICRO_F1, f1, macro_f1
from ..kind import (
    HeadSpec,
    Metric,
    Options,
    as_weights,
    check_size,
    check_weights,
    elementwise_kind,
    take_plain_numbers,
)
from ..pooling import Pooling, check_pooling


@dataclass(frozen=True)
class BinaryOptions(Options):
    """pos_weight: C values, as in torch.nn.functional.binary_cross_entropy_with_logits."""

    pos_weight: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pos_weight", as_weights("pos_weight", self.pos_weight))

    def check(self, size: int) -> None:
        """Raise ValueError unless there is one weight for each label."""
        check_weights("pos_weight", self.pos_weight, size)

    @property
    def column_weights(self) -> tuple[float, ...] | None:
        """pos_weight (C,)."""
        return self.pos_weight


def _loss(z: Tensor, y: Tensor, weights: Tensor, options: BinaryOptions) -> Tensor:
    del options  # pos_weight arrives as the column weights
    return F.binary_cross_entropy_with_logits(z, y, pos_weight=weights, reduction="none")


def _element(z, y, weight, options):
    u = exp_of_negative(0.0 - absolute(z))
    tail, inverse = log1p_and_reciprocal(u)
    factor = 1.0 + (weight - 1.0) * y
    loss = (1.0 - y) * z + factor * (tail + where(z < 0.0, 0.0 - z, 0.0))
    sigmoid = where(z >= 0.0, inverse, u * inverse)
    return loss, factor * sigmoid - weight * y


def _hit(z, y):
    return where(where(z > 0.0, 1.0, 0.0) == where(y > 0.5, 1.0, 0.0), 1.0, 0.0)


def _label_counts(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
    """Hits, false alarms and misses of each label, (C,)."""
    predicted, true, valid = logits > 0, target > 0.5, ~torch.isnan(target)
    return (
        (predicted & true & valid).sum(0),
        (predicted & ~true & valid).sum(0),
        (~predicted & true & valid).sum(0),
    )


def _counts(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
    """Hits, false alarms and misses, ()."""
    return tuple(of_labels.sum() for of_labels in _label_counts(logits, target, head))


@dataclass(frozen=True)
class MultiLabel:
    """Any of C labels: binary cross-entropy on float targets (N, C) in [0, 1], NaN = missing.

    pos_weight as in torch.nn.functional.binary_cross_entropy_with_logits; pooling as in Classification. metric:
    "micro_f1", over all labels together, or "macro_f1", the mean over labels.
    """

    labels: int
    pos_weight: tuple[float, ...] | None = None
    pooling: Pooling = field(default="none", kw_only=True)
    metric: str = field(default=MICRO_F1, kw_only=True)

    def __post_init__(self) -> None:
        take_plain_numbers(self)
        check_pooling(self.pooling)
        check_size("labels", self.labels)
        object.__setattr__(self, "pos_weight", as_weights("pos_weight", self.pos_weight))
        _ = self.head
        BINARY.check_metric(self.metric)

    @cached_property
    def head(self) -> HeadSpec:
        """The head in the form that the kernels take."""
        return HeadSpec(BINARY, self.labels, pos_weight=self.pos_weight)


BINARY = elementwise_kind(
    "BINARY",
    loss=_loss,
    element=_element,
    hit=_hit,
    metrics=(Metric(MICRO_F1, _counts, f1), Metric(MACRO_F1, _label_counts, macro_f1)),
    options=BinaryOptions,
    task_of_column={"labels": MultiLabel},
    bounds=(0.0, 1.0),
)

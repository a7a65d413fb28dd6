"""One of C classes: softmax cross-entropy on integer targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..f1 import MACRO_F1, macro_f1
from ..kind import (
    HeadSpec,
    Kind,
    Metric,
    Options,
    as_weights,
    check_size,
    check_weights,
    column_weights_on,
    take_plain_numbers,
)
from ..pooling import Pooling, check_pooling


@dataclass(frozen=True)
class SoftmaxOptions(Options):
    """Options of torch.nn.functional.cross_entropy; class_weights are C values."""

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ignore_index: int = -100

    def __post_init__(self) -> None:
        take_plain_numbers(self)
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1], not {self.label_smoothing}")
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise ValueError(f"ignore_index must be a whole number, not {self.ignore_index!r}")
        object.__setattr__(self, "class_weights", as_weights("class_weights", self.class_weights))

    def check(self, size: int) -> None:
        """Raise ValueError unless there is one weight for each class."""
        check_weights("class_weights", self.class_weights, size)

    @property
    def column_weights(self) -> tuple[float, ...] | None:
        """class_weights (C,)."""
        return self.class_weights

    @property
    def has_uncounted_losses(self) -> bool:
        """Whether it smooths labels of a class of weight 0: what it moves to the other classes has their weights."""
        return self.label_smoothing > 0.0 and 0.0 in (self.class_weights or ())


def _row_losses(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
    return F.cross_entropy(
        logits,
        target.long(),
        weight=column_weights_on(head, logits.dtype, logits.device),
        ignore_index=head.ignore_index,
        label_smoothing=head.label_smoothing,
        reduction="none",
    )


def _counts(target: Tensor, head: HeadSpec, dtype: torch.dtype) -> Tensor:
    valid = head.is_labelled(target)
    if head.options.column_weights is None:
        return valid.to(dtype)
    weights = column_weights_on(head, dtype, target.device)
    # Classes out of range are refused with the loss, and may be counted before.
    return weights[torch.where(valid, target, 0).long().clamp(0, head.size - 1)] * valid


def _correct(logits: Tensor, target: Tensor, head: HeadSpec) -> Tensor:
    """Number of correct rows, by the first maximum."""
    return ((logits.argmax(dim=1) == target) & head.is_labelled(target)).sum()


def _right_and_labelled(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
    return _correct(logits, target, head), head.is_labelled(target).sum()


def _accuracy(right: float, labelled: float) -> float:
    return right / labelled if labelled else float("nan")


def _class_counts(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, ...]:
    """Hits, false alarms and misses of each class, (C,) float64."""
    predicted, labelled = logits.argmax(dim=1), head.is_labelled(target)
    # A target outside the head is counted and named elsewhere.
    target = torch.where(labelled, target, 0).long().clamp(0, head.size - 1)

    # Rows are not selected by a mask, which would wait for a device.
    def count(classes: Tensor, rows: Tensor) -> Tensor:
        zeros = torch.zeros(head.size, dtype=torch.float64, device=logits.device)
        return zeros.index_add_(0, classes, rows.double())

    hits = count(target, labelled & (predicted == target))
    return hits, count(predicted, labelled) - hits, count(target, labelled) - hits


ACCURACY = Metric("accuracy", _right_and_labelled, _accuracy)


@dataclass(frozen=True)
class Classification:
    """One of C classes: softmax cross-entropy on integer targets (N,).

    Options are those of torch.nn.functional.cross_entropy. pooling: for a task on whole sequences, use the features of
    the first token ("first") or the mean over all tokens ("mean"). metric: "accuracy", or "macro_f1", the mean F1 of
    the classes, in which a rare class counts as much as a frequent one. Raises ValueError for an option out of range.
    """

    classes: int
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ignore_index: int = -100
    pooling: Pooling = field(default="none", kw_only=True)
    metric: str = field(default=ACCURACY.name, kw_only=True)

    def __post_init__(self) -> None:
        take_plain_numbers(self)
        check_pooling(self.pooling)
        check_size("classes", self.classes)
        object.__setattr__(self, "class_weights", as_weights("class_weights", self.class_weights))
        if self.class_weights and not any(self.class_weights):
            raise ValueError(
                "class_weights are all 0, so no label would count; leave the task out, or weigh a class"
            )
        _ = self.head
        SOFTMAX.check_metric(self.metric)

    @cached_property
    def head(self) -> HeadSpec:
        """The head in the form that the kernels take."""
        return HeadSpec(
            SOFTMAX,
            self.classes,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
        )


SOFTMAX = Kind(
    "SOFTMAX",
    "classes",
    row_losses=_row_losses,
    counts=_counts,
    correct=_correct,
    metrics=(ACCURACY, Metric(MACRO_F1, _class_counts, macro_f1)),
    options=SoftmaxOptions,
    task_of_column={"classes": Classification},
)

"""What a task is: the number of its outputs and the loss that trains them."""

from __future__ import annotations

from dataclasses import dataclass

from mt2st_fast.kernels import HeadSpec, Kind


@dataclass(frozen=True)
class Classification:
    """One of C classes: softmax cross-entropy on integer targets (N,).

    Options as in torch.nn.functional.cross_entropy. Raises ValueError for one out of range.
    """

    classes: int
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ignore_index: int = -100
    metric = "accuracy"

    def __post_init__(self) -> None:
        _ = self.head

    @property
    def head(self) -> HeadSpec:
        """The head as the kernels know it."""
        return HeadSpec(
            Kind.SOFTMAX,
            self.classes,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
        )


@dataclass(frozen=True)
class MultiLabel:
    """Any of C labels: binary cross-entropy on float targets (N, C) in [0, 1], NaN = missing.

    pos_weight as in torch.nn.functional.binary_cross_entropy_with_logits.
    """

    labels: int
    pos_weight: tuple[float, ...] | None = None
    metric = "micro_f1"

    def __post_init__(self) -> None:
        _ = self.head

    @property
    def head(self) -> HeadSpec:
        """The head as the kernels know it."""
        return HeadSpec(Kind.BINARY, self.labels, pos_weight=self.pos_weight)


@dataclass(frozen=True)
class Regression:
    """C values: squared error on float targets (N, C), or Huber loss where `huber_delta` is given; NaN = missing."""

    outputs: int = 1
    huber_delta: float | None = None
    metric = "r2"

    def __post_init__(self) -> None:
        _ = self.head

    @property
    def head(self) -> HeadSpec:
        """The head as the kernels know it."""
        if self.huber_delta is None:
            return HeadSpec(Kind.SQUARED, self.outputs)
        return HeadSpec(Kind.HUBER, self.outputs, delta=self.huber_delta)


Task = Classification | MultiLabel | Regression

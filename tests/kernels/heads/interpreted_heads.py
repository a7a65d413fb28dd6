"""Heads and targets for kernels in Triton's interpreter, and what torch's own losses say of them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mt2st_fast.kernels import HeadSpec, Kind
from tests.kernels.interpreter import assert_as_accurate_as_torch

MIXED = (
    HeadSpec(Kind.SOFTMAX, 3),
    HeadSpec(Kind.BINARY, 1),
    HeadSpec(Kind.SOFTMAX, 7, label_smoothing=0.1, class_weights=(0.5, 1, 2, 0, 1.5, 3, 1), ignore_index=-1),
    HeadSpec(Kind.BINARY, 5, pos_weight=(0.5, 1.0, 3.0, 7.0, 0.25)),
    HeadSpec(Kind.SQUARED, 2),
    HeadSpec(Kind.HUBER, 3, delta=0.7),
)
# 37 and 20 columns take several column blocks of 16.
WIDE = (
    HeadSpec(Kind.SOFTMAX, 37, label_smoothing=0.2),
    HeadSpec(Kind.SOFTMAX, 1),
    HeadSpec(Kind.BINARY, 20),
    HeadSpec(Kind.SOFTMAX, 33, class_weights=tuple(0.1 * (1 + c % 5) for c in range(33))),
    HeadSpec(Kind.HUBER, 18, delta=2.0),
)

# More heads than a launch takes addresses of, and several of each after one another, which programs loop over; with a
# head between them that is not.
EQUAL = (
    *(HeadSpec(Kind.SOFTMAX, 2, label_smoothing=0.1, class_weights=(0.5, 2.0)),) * 5,
    HeadSpec(Kind.SQUARED, 1),
    *(HeadSpec(Kind.BINARY, 2, pos_weight=(3.0, 0.5)),) * 9,
    *(HeadSpec(Kind.SOFTMAX, 3, ignore_index=1),) * 4,
    HeadSpec(Kind.SOFTMAX, 5),
)

# Cases of plans that are also computed where nobody needs a gradient, a task weighs nothing or the upstream gradient is
# 1: one of each dtype and way through a plan, as an interpreter takes its time.
PROMISING = frozenset({
    "packed", "packed-float16", "packed-no-bias", "packed-no-rows",
    "tile", "tile-float16", "tile-no-bias", "tile-no-rows",
    "chunked", "chunked-float16", "chunked-no-bias", "chunked-no-rows",
    "between", "between-float16", "chunks", "values",
})  # fmt: skip
# What is stored of every case, and of those.
KEPT = ("same-bits", "dtypes", "writes-to-no-argument", "residual-like")
CHANGES_NOTHING = ("upstream-1", "needs", "skip")
RESULTS = ("losses", "correct", "d_features", "d_weight", "d_bias")

# What our largest error may exceed torch's by, relative to the largest true value: a few roundings of a
# float32 sum in another order. float16 gradients may differ by one rounding of the largest value.
MARGIN = {"float32": 2e-6, "float16": 2.0**-11}


def assert_result_is_as_accurate_as_torchs(computed: dict[str, np.ndarray], case: str, result: str) -> None:
    if result == "d_bias" and case.endswith("no-bias"):
        assert f"{case}/d_bias/ours" not in computed
        return
    half = case.endswith("float16") and result not in ("losses", "correct")
    margin = 0.0 if result == "correct" else MARGIN["float16" if half else "float32"]
    assert_as_accurate_as_torch(computed, f"{case}/{result}", margin)


def make_targets(heads: tuple[HeadSpec, ...], N: int, empty: tuple[int, ...]) -> list[Tensor]:
    """About a fifth of the targets missing; everything missing in the tasks `empty`."""
    targets = []
    for k, head in enumerate(heads):
        missing = torch.rand(N, head.size) < (2.0 if k in empty else 0.2)
        if head.kind is Kind.SOFTMAX:
            dtype = torch.int32 if k % 2 else torch.int64
            target = torch.randint(head.size, (N,), dtype=dtype)
            targets.append(target.masked_fill(missing[:, 0], head.ignore_index))
        else:
            values = (
                torch.rand(N, head.size).round() if head.kind is Kind.BINARY else torch.randn(N, head.size)
            )
            targets.append(values.masked_fill(missing, float("nan")))
    return targets


def summed_loss(logits: Tensor, target: Tensor, head: HeadSpec) -> tuple[Tensor, Tensor, Tensor]:
    """(summed loss, denominator, correct) of one head by torch's own losses in the logits' dtype."""
    weights = torch.tensor(head.column_weights, dtype=logits.dtype)
    if head.kind is Kind.SOFTMAX:
        target = target.long()
        valid = target != head.ignore_index
        loss = F.cross_entropy(
            logits,
            target,
            weight=weights,
            ignore_index=head.ignore_index,
            label_smoothing=head.label_smoothing,
            reduction="sum",
        )
        right = (logits.argmax(1) == target) & valid if len(target) else valid
        return loss, weights[target[valid]].sum(), right.sum()
    target = target.to(logits.dtype)
    valid = ~torch.isnan(target)
    filled = target.nan_to_num()
    if head.kind is Kind.BINARY:
        loss = F.binary_cross_entropy_with_logits(logits, filled, reduction="none", pos_weight=weights)
        right = (((logits > 0) == (filled > 0.5)) | ~valid).all(1) & valid.any(1)
    else:
        squared = head.kind is Kind.SQUARED
        loss = (
            F.mse_loss(logits, filled, reduction="none")
            if squared
            else F.huber_loss(logits, filled, reduction="none", delta=head.delta)
        )
        right = torch.zeros(len(target))
    return torch.where(valid, loss, 0.0).sum(), valid.sum().to(logits.dtype), right.sum()

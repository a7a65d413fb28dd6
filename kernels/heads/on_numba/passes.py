"""What the CPU plans share: the layout as arrays, the batch as passes of heads over rows, and the backward pass.

Every plan computes its gradients in the forward pass, while the logits are in cache, and keeps them in float32 as the
residual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..call import Forward, Gradients, HeadsCall, Needs, Residual
from ..kind import MAX_NUMBERS, Kind
from ..layout import HeadLayout
from .targets import ALL_ROWS, LABELLED_ROWS, SKIPPED, labelled_rows, survey

HEAD_RECORD = np.dtype(
    [
        ("index", np.int64),  # k, its index in the layout
        ("kind", np.int64),
        ("offset", np.int64),
        ("size", np.int64),
        ("ignore_index", np.int64),
        ("least", np.float32),  # bounds of float targets
        ("most", np.float32),
        ("smoothing", np.float64),
        ("weight_sum", np.float64),
        ("weighted", np.bool_),
        ("counted", np.bool_),  # whether a row can be right
        *((f"number{i}", np.float32) for i in range(MAX_NUMBERS)),  # the options' numbers
    ]
)

# A head's unlabelled rows are skipped if they are at least half of all rows and cost more than another pass. Gathering
# a labelled row and adding to its feature gradient costs about as much as this many logits,
COMPACTED_ROW_LOGITS = 4
# and the pass itself as much as this many.
COMPACTED_PASS_LOGITS = 1 << 12


class HeadTable(NamedTuple):
    """A layout as arrays that kernels read."""

    records: np.ndarray  # (K,) of HEAD_RECORD
    column_weights: np.ndarray  # (S,) float32
    no_bias: Tensor  # (S,) float32 zeros
    widest: int


@lru_cache(maxsize=256)
def head_table(layout: HeadLayout) -> HeadTable:
    """Return the arrays of a layout, made once."""
    records = np.zeros(len(layout), HEAD_RECORD)
    for k, (first, _, head) in enumerate(layout):
        record, options = records[k], head.options
        record["index"], record["kind"], record["offset"], record["size"] = (
            k,
            head.kind.code,
            first,
            head.size,
        )
        record["weight_sum"], record["weighted"] = (
            sum(head.column_weights),
            options.column_weights is not None,
        )
        record["counted"] = head.kind.hit is not None
        record["least"], record["most"] = head.kind.bounds or (-np.inf, np.inf)
        if head.kind is Kind.SOFTMAX:
            record["ignore_index"], record["smoothing"] = head.ignore_index, head.label_smoothing
        for i, number in enumerate(options.numbers):
            record[f"number{i}"] = number
    columns = np.array([w for head in layout.heads for w in head.column_weights], np.float32)
    return HeadTable(
        records,
        columns,
        torch.zeros(len(columns), dtype=torch.float32, device="cpu"),
        max(head.size for head in layout.heads),
    )


class Batch(NamedTuple):
    """A call's targets, and what `survey` found in them."""

    n_rows: int
    table: HeadTable
    targets: list[Tensor]  # in the kernels' dtypes; owns the memory that `addresses` point to
    addresses: np.ndarray  # (K,) int64
    scale: np.ndarray  # (K,) float64, 1 / denominator of each mean, 0 without a valid row
    gradient_scale: np.ndarray  # (K,) float32, the same times the task weight
    way: np.ndarray  # (K,) int64, how each head is computed
    all_rows_only: bool  # every head is computed, over all rows

    def computed(self) -> np.ndarray:
        """Return the records of the heads that are not skipped, (K',)."""
        return self.table.records if self.all_rows_only else self.table.records[self.way != SKIPPED]


class Pass(NamedTuple):
    """Heads that are computed over the same rows."""

    heads: np.ndarray  # (K',) records
    rows: np.ndarray  # (rows,) int64 ascending, empty = all rows


NO_ROWS_LEFT_OUT = np.zeros(0, np.int64)


def survey_batch(
    targets: Sequence[Tensor], task_weights: Tensor, layout: HeadLayout, skip_zero_weights: bool
) -> Batch:
    """Survey the targets, once, before anything is computed.

    A head is skipped if it has no target, or if its weight is 0 and `skip_zero_weights` is set. Raises ValueError for a
    class target outside [0, C) that is not ignore_index, and for a value outside its kind's bounds.
    """
    table = head_table(layout)
    held = [_kernel_target(t, head.kind) for t, head in zip(targets, layout.heads, strict=True)]
    addresses = np.array([target.data_ptr() for target in held], np.int64)
    n_rows = targets[0].shape[0]
    weights = kernel_tensor(task_weights)
    scale, gradient_scale, way, counts, outside = survey(
        table.records, table.column_weights, addresses, n_rows, weights.data_ptr(), skip_zero_weights,
        COMPACTED_PASS_LOGITS, COMPACTED_ROW_LOGITS,
    )  # fmt: skip
    if outside[0] >= 0:
        _refuse_outside(layout, held, *outside.tolist())
    all_rows_only = counts[ALL_ROWS] == len(held)
    return Batch(n_rows, table, held, addresses, scale, gradient_scale, way, all_rows_only)


def passes(batch: Batch, heads: np.ndarray) -> Iterator[Pass]:
    """Group heads (records) by the rows they need: first those over all rows, then each that skips unlabelled rows."""
    if batch.all_rows_only:
        yield Pass(heads, NO_ROWS_LEFT_OUT)
        return
    way = batch.way[heads["index"]]
    if (way == ALL_ROWS).any():
        yield Pass(heads[way == ALL_ROWS], NO_ROWS_LEFT_OUT)
    for head in heads[way == LABELLED_ROWS]:
        rows = labelled_rows(head, batch.addresses[head["index"]], batch.n_rows)
        yield Pass(np.array([head]), rows)


def _kernel_target(target: Tensor, kind: Kind) -> Tensor:
    dtype = torch.int64 if kind.takes_classes else torch.float32
    return target if target.dtype is dtype and target.is_contiguous() else target.to(dtype).contiguous()


def _refuse_outside(layout: HeadLayout, targets: Sequence[Tensor], k: int, place: int) -> None:
    target = targets[k].flatten()[place].item()
    raise ValueError(layout.heads[k].refusal(layout.names[k], target))


def kernel_tensor(tensor: Tensor) -> Tensor:
    """Return the values as contiguous float32, which kernels read; the tensor itself if it is that already.

    Kernels take its address, not a numpy array: `numpy()` pins a parameter's storage, which FSDP2 must be able to
    resize.
    """
    if tensor.dtype is torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(torch.float32).contiguous()


def float_zeros(*shape: int) -> Tensor:
    """Zeros that kernels can read, whatever torch's default dtype."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


class Outputs:
    """Where the passes of one call store their results."""

    def __init__(self, features: Tensor, weight: Tensor, batch: Batch, needs: Needs) -> None:
        K = len(batch.scale)
        # What no pass computes stays 0.
        make = torch.empty if batch.all_rows_only else torch.zeros
        self.losses, self.correct = (
            make(K, dtype=torch.float32, device="cpu"),
            make(K, dtype=torch.int64, device="cpu"),
        )
        self.d_features = torch.empty(features.shape if needs[0] else 0, dtype=torch.float32, device="cpu")
        self.d_weight = make(weight.shape if needs[1] else 0, dtype=torch.float32, device="cpu")
        self.d_bias = make(weight.shape[0] if needs[2] else 0, dtype=torch.float32, device="cpu")
        self.wanted = needs[0] or needs[1] or needs[2]
        self.features_written = False  # whether further passes must add to d_features

    def zero_features(self) -> None:
        """Zero d_features if no single pass writes all of its rows."""
        if not self.features_written:
            self.d_features.zero_()
            self.features_written = True

    def forward(self) -> Forward:
        """Return the result, once all passes are done."""
        self.zero_features()
        return Forward(self.losses, self.correct, (self.d_features, self.d_weight, self.d_bias))


# --- the backward pass -----------------------------------------------------------------------------------

# The residual is the gradient: once it is handed out, a second backward pass must compute it again.
RESIDUAL_IS_GRADIENT = True


def residual_like(call: HeadsCall) -> Residual:
    """Return empty tensors of the shapes and dtypes of the residual."""
    device = call.features.device
    d_features, d_weight, d_bias = (
        torch.empty(t.shape if need else 0, dtype=torch.float32, device=device)  # type: ignore[union-attr]
        for t, need in zip(call[:3], call.needs, strict=True)
    )
    return d_features, d_weight, d_bias


def backward(call: HeadsCall, residual: Residual, grad_total: Tensor, *, own: bool) -> Gradients:
    """Return (d_features, d_weight, d_bias), each None if not needed.

    With `own` nobody else holds the residual, so it may be returned or overwritten.
    """
    upstream, needs = grad_total.item(), call.needs
    d_features, d_weight, d_bias = (
        _scaled(residual[i], upstream, own, call[i]) if needs[i] else None  # type: ignore[arg-type]
        for i in range(3)
    )
    return d_features, d_weight, d_bias


def _scaled(gradient: Tensor, upstream: float, own: bool, like: Tensor) -> Tensor:
    if not own:
        return (gradient * upstream).to(like.dtype)
    if upstream != 1.0:
        gradient.mul_(upstream)
    return gradient if gradient.dtype is like.dtype else gradient.to(like.dtype)

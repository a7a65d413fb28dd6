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

from ...machine.simd import FLOAT_BYTES
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
    offsets: tuple[int, ...]  # (K,) bytes from the first head's bias to each one's


def head_table(layout: HeadLayout) -> HeadTable:
    """Return the arrays of a layout, made once."""
    return _table_of(layout.key)  # by a string, which Python compares without code of ours


@lru_cache(maxsize=256)
def _table_of(key: str) -> HeadTable:
    layout = HeadLayout.from_key(key)
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
        tuple(FLOAT_BYTES * offset for offset in layout.offsets),
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


class Targets(NamedTuple):
    """A call's targets, and where `survey` writes what it finds in them; the fields are those of Batch, unless said."""

    n_rows: int
    table: HeadTable
    targets: list[Tensor]
    addresses: np.ndarray
    task_weights: Tensor  # (K,) float32, as kernels read them
    pass_logits: int
    row_logits: int
    scale: np.ndarray
    gradient_scale: np.ndarray
    way: np.ndarray
    outside: np.ndarray  # (2,), see `survey`

    def surveyed(self, n_whole: int, layout: HeadLayout) -> Batch:
        """Return the batch. n_whole: what `survey` has returned. Raises ValueError for a target out of range."""
        if n_whole < 0:
            raise refusal(self.targets, layout, self.outside)
        return Batch(
            self.n_rows, self.table, self.targets, self.addresses, self.scale, self.gradient_scale, self.way,
            n_whole == len(self.targets),
        )  # fmt: skip


def refusal(targets: Sequence[Tensor], layout: HeadLayout, outside: np.ndarray) -> ValueError:
    """Return the error for a target out of range; outside: see `survey`."""
    k, place = outside.tolist()
    return ValueError(layout.heads[k].refusal(layout.names[k], targets[k].flatten()[place].item()))


def kernel_targets(targets: Sequence[Tensor], layout: HeadLayout) -> list[Tensor]:
    """Return the targets as kernels read them: those themselves that are so already."""
    held = []
    for target, takes_classes in zip(targets, layout.takes_classes, strict=True):
        dtype = torch.int64 if takes_classes else torch.float32
        fits = target.dtype is dtype and target.is_contiguous()
        held.append(target if fits else target.to(dtype).contiguous())
    return held


def take_targets(targets: Sequence[Tensor], task_weights: Tensor, layout: HeadLayout) -> Targets:
    """Return the targets as kernels read them, not yet surveyed."""
    K, held = len(targets), kernel_targets(targets, layout)
    return Targets(
        targets[0].shape[0],
        head_table(layout),
        held,
        np.array(list(map(Tensor.data_ptr, held)), np.int64),
        kernel_tensor(task_weights),
        COMPACTED_PASS_LOGITS,
        COMPACTED_ROW_LOGITS,
        np.empty(K),
        np.empty(K, np.float32),
        np.empty(K, np.int64),
        np.empty(2, np.int64),
    )


def survey_batch(
    targets: Sequence[Tensor], task_weights: Tensor, layout: HeadLayout, skip_zero_weights: bool
) -> Batch:
    """Survey the targets, once, before anything is computed.

    A head is skipped if it has no target, or if its weight is 0 and `skip_zero_weights` is set. Raises ValueError for a
    class target outside [0, C) that is not ignore_index, and for a value outside its kind's bounds.
    """
    taken = take_targets(targets, task_weights, layout)
    n_whole = survey(
        taken.table.records, taken.table.column_weights, taken.addresses, taken.n_rows, taken.task_weights.data_ptr(),
        skip_zero_weights, taken.pass_logits, taken.row_logits, taken.scale, taken.gradient_scale, taken.way,
        taken.outside,
    )  # fmt: skip
    return taken.surveyed(n_whole, layout)


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


def kernel_tensor(tensor: Tensor) -> Tensor:
    """Return the values as contiguous float32, which kernels read; the tensor itself if it is that already.

    Kernels take its address, not a numpy array: `numpy()` pins a parameter's storage, which FSDP2 must be able to
    resize.
    """
    if tensor.dtype is torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(torch.float32).contiguous()


class Outputs:
    """Where the passes of one call store their results; not filled with anything."""

    def __init__(self, K: int, features: Tensor, weight: Tensor, bias: Tensor, needs: Needs) -> None:
        """features, weight, bias: `kernel_tensor`s, like which their gradients are."""
        need_features, need_weight, need_bias = needs
        self.losses = _FLOATS.new_empty(K)
        self.correct = _INTEGERS.new_empty(K)
        self.d_features = torch.empty_like(features) if need_features else _FLOATS.new_empty(0)
        self.d_weight = torch.empty_like(weight) if need_weight else _FLOATS.new_empty(0)
        self.d_bias = torch.empty_like(bias) if need_bias else _FLOATS.new_empty(0)
        self.wanted = need_features or need_weight or need_bias
        self.features_written = False  # whether further passes must add to d_features

    def zero(self) -> None:
        """Zero what no pass may compute: the losses and gradients of heads that are skipped."""
        for tensor in (self.losses, self.correct, self.d_weight, self.d_bias):
            tensor.zero_()

    def zero_features(self) -> None:
        """Zero d_features if no single pass writes all of its rows."""
        if not self.features_written:
            self.d_features.zero_()
            self.features_written = True

    def forward(self, total: Tensor | None = None) -> Forward:
        """Return the result, once all passes are done."""
        self.zero_features()
        return Forward(self.losses, self.correct, (self.d_features, self.d_weight, self.d_bias), total)


# Like these, whatever torch's default dtype and device.
_FLOATS = torch.empty(0, dtype=torch.float32, device="cpu")
_INTEGERS = torch.empty(0, dtype=torch.int64, device="cpu")


def float_empty(*shape: int) -> Tensor:
    """A tensor that kernels can fill."""
    return _FLOATS.new_empty(shape)


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
    upstream = grad_total.item()
    features, weight, bias = residual
    need_features, need_weight, need_bias = call.needs
    return (
        _scaled(features, upstream, own, call.features) if need_features else None,
        _scaled(weight, upstream, own, call.weight) if need_weight else None,
        _scaled(bias, upstream, own, call.bias) if need_bias else None,  # type: ignore[arg-type]
    )


def _scaled(gradient: Tensor, upstream: float, own: bool, like: Tensor) -> Tensor:
    if not own:
        return (gradient * upstream).to(like.dtype)
    if upstream != 1.0:
        gradient.mul_(upstream)
    return gradient if gradient.dtype is like.dtype else gradient.to(like.dtype)

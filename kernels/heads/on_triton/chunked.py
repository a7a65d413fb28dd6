"""The chunked plan on a GPU, for vocabulary-sized heads: logits of one chunk of rows at a time, in one buffer.

The logits of all rows may not fit. So a chunk's logits are computed, turned into their gradient in place, consumed by
the GEMMs of the two gradients, and overwritten by the next chunk's. Denominators are counted beforehand, so the
gradient of the logits is already scaled: GEMMs write the features' gradient, and with a single chunk the weight's, in
the dtype that is handed out.

cuBLAS uses its oldest kernels, eight times as slow for a vocabulary, if a size is not a multiple of 16 bytes. A weight
that is cast or small is copied and padded; of any other weight only the last rows are, so that no vocabulary is copied.
If D is not such a multiple, or the weight's address is not aligned to 16 bytes, cuBLAS is correct, but slow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..call import Forward, Gradients, HeadsCall, Residual
from .chunk import Chunk
from .chunk_losses import n_sums, rows_per_program, split_heads, take_losses
from .column_sums import column_sums
from .mean_scales import Scales, take_scales
from .means import take_means
from .packed import ALIGNMENT, mm_float32, padded_width
from .tables import head_tables
from .targets import Targets, locate_targets
from .upstream import times_upstream
from .weights import padded_weight

# Bytes of a chunk's logits. With these and both gradients, 152,000 outputs of 4096 features in 16 bits and 8192 rows
# take 3.8 GB.
BUDGET_BYTES = 5 << 29
# A chunk reads and writes the whole float32 weight gradient: with fewer rows that costs more than 6 % of the GEMMs on
# an H200.
MIN_ROWS = 4096
# A multiple of every GEMM tile, and of the rows per program of the loss kernels.
ROW_MULTIPLE = 128
# The row stride of the logits is a multiple of this: 32 bytes in 16 bits.
STRIDE = 16
# A weight of up to this many bytes is copied and padded: that costs less than two more GEMMs.
COPIED_BYTES = 16 << 20
# Rows of the weight for which a chunk's float32 gradient is held in memory besides the sum over all chunks.
SLAB_ROWS = 16384


def chunk_rows(n_rows: int, width: int, itemsize: int, budget_bytes: int = BUDGET_BYTES) -> int:
    """Number of rows of a chunk whose logits, rows of `width` elements of `itemsize` bytes, fit the budget.

    Even chunks, as few as possible; at least MIN_ROWS rows even if the budget is smaller, and a multiple of
    ROW_MULTIPLE unless one chunk holds all rows.
    """
    most = max(MIN_ROWS, budget_bytes // (width * itemsize) // ROW_MULTIPLE * ROW_MULTIPLE)
    if n_rows <= most:
        return max(n_rows, 1)
    n_chunks = -(-n_rows // most)
    return -(-n_rows // n_chunks // ROW_MULTIPLE) * ROW_MULTIPLE


def forward(call: HeadsCall, budget_bytes: int = BUDGET_BYTES, least_rows: int | None = None) -> Forward:
    """Compute the losses of all heads; the residual is the needed gradients of the total.

    A skipped task of weight 0 has loss 0 and gradient 0 (its GEMMs run: the host does not know the weight).
    budget_bytes: limit for a chunk's logits, see `chunk_rows`. least_rows: overrides the chunk size chosen from it.

    The first call with a layout on a device copies its tables there: make it before a graph capture.
    """
    features, layout = call.features, call.layout
    N, n_columns = features.shape[0], padded_width(layout.width)
    row_stride = -(-n_columns // STRIDE) * STRIDE
    B = least_rows or chunk_rows(N, row_stride, features.element_size(), budget_bytes)
    targets = locate_targets(call.targets, layout, N)
    scales = take_scales(call, targets) if any(call.needs) else None
    pieces = weight_pieces(call.weight, features.dtype, n_columns)
    gradients = _Sums(call, scales, pieces, n_chunks=len(range(0, N, B)))
    # The buffer of logits is freed before the gradients are rounded, which takes memory again.
    sums = _sweep(call, targets, gradients, features.new_empty(min(B, N), row_stride)[:, :n_columns])
    means = take_means(sums, call.task_weights)
    return Forward(means.losses, means.correct, gradients.residual(), means.total)


def _sweep(call: HeadsCall, targets: Targets, gradients: _Sums, buffer: Tensor) -> Tensor:
    """Compute the losses of one chunk of rows after another in the buffer (rows of a chunk, n_columns).

    Adds their gradients, and returns the sums (n_blocks, K, 3) of the losses.
    """
    layout, N, (B, n_columns) = call.layout, call.features.shape[0], buffer.shape
    split, rows = split_heads(layout, n_columns), rows_per_program(N)
    firsts = range(0, N, max(B, 1))
    n_blocks = n_sums(split, B, rows)
    sums = buffer.new_zeros(len(firsts), n_blocks, len(layout), 3, dtype=torch.float32)
    tables = head_tables(layout, buffer.device)
    for i, first in enumerate(firsts):
        some = _part(call.features, slice(first, min(first + B, N)))
        logits = _part(buffer, slice(0, len(some)))
        for piece in gradients.pieces:
            torch.mm(some, piece.weight.t(), out=_part(logits, piece.columns, axis=1))
        take_losses(Chunk(call, tables, targets, gradients.scales, logits, first, sums[i]), split, rows)
        gradients.add(logits, some, first)
    return sums.view(-1, len(layout), 3)


def _part(tensor: Tensor, part: slice, axis: int = 0) -> Tensor:
    """Return this part of an axis: nearly always the whole, of which a view would cost the host microseconds."""
    if part.start == 0 and part.stop == tensor.shape[axis]:
        return tensor
    return tensor.narrow(axis, part.start, part.stop - part.start)


class Piece(NamedTuple):
    """Rows of the weight, cast to the features' dtype and of aligned number, and the columns of their logits."""

    columns: slice
    weight: Tensor


def weight_pieces(weight: Tensor, dtype: torch.dtype, n_columns: int) -> tuple[Piece, ...]:
    """Split the weight (S, D), padded with rows of 0 to n_columns, into pieces.

    If there are two, the small one comes first.
    """
    S, D = weight.shape
    whole = slice(0, n_columns)
    if n_columns == S and weight.dtype is dtype:
        return (Piece(whole, weight),)
    aligned = n_columns - ALIGNMENT
    if weight.dtype is not dtype or n_columns * D * weight.element_size() <= COPIED_BYTES or not aligned:
        return (Piece(whole, padded_weight(weight.contiguous(), n_columns, dtype)),)
    end = weight.new_zeros(ALIGNMENT, D)
    end[: S - aligned] = weight[aligned:]
    return Piece(slice(aligned, n_columns), end), Piece(slice(0, aligned), weight[:aligned])


class _Sums:
    """The gradients of the total, accumulated from the scaled logit gradients of successive chunks."""

    def __init__(
        self, call: HeadsCall, scales: Scales | None, pieces: tuple[Piece, ...], *, n_chunks: int
    ) -> None:
        self._call, self.pieces, self.scales = call, pieces, scales
        self._largest = None if scales is None else scales.largest
        features, needs = call.features, call.needs
        self._d_features = features.new_empty(
            features.shape if needs[0] else 0, dtype=handed_over_in(features.dtype)
        )
        # With a single chunk, its gradients are the result: there is no sum to add to.
        self._d_weight = self._d_bias = None
        if n_chunks != 1:
            shape = padded_width(call.layout.width), features.shape[1]
            self._d_weight = features.new_zeros(shape, dtype=torch.float32) if needs[1] else None
            self._d_bias = features.new_zeros(shape[0], dtype=torch.float32) if needs[2] else None

    def add(self, dz: Tensor, some: Tensor, first: int) -> None:
        """Add rows first.. of the features, whose logit gradient is dz (rows, n_columns)."""
        need_features, need_weight, need_bias = self._call.needs
        if need_features:
            self._add_features(dz, _part(self._d_features, slice(first, first + len(some))))
        if need_weight:
            self._add_weight(dz, some)
        if need_bias:
            of_chunk = column_sums(dz)
            self._d_bias = of_chunk if self._d_bias is None else self._d_bias.add_(of_chunk)

    def _add_features(self, dz: Tensor, out: Tensor) -> None:
        first, *others = self.pieces
        if self._largest is None:
            # The small product first: the sum over all outputs is rounded once, at the end.
            torch.mm(_part(dz, first.columns, axis=1), first.weight, out=out)
            for piece in others:
                out.addmm_(_part(dz, piece.columns, axis=1), piece.weight)
            return
        product = mm_float32(_part(dz, first.columns, axis=1), first.weight)
        for piece in others:
            product += mm_float32(_part(dz, piece.columns, axis=1), piece.weight)
        torch.mul(product, self._largest, out=out)

    def _add_weight(self, dz: Tensor, some: Tensor) -> None:
        if self._d_weight is not None:
            # Not addmm with out_dtype, which not every torch version has: the slab is stored, then added.
            for begin in range(0, dz.shape[1], SLAB_ROWS):
                slab = slice(begin, begin + SLAB_ROWS)
                self._d_weight[slab] += mm_float32(dz[:, slab].t(), some)
        elif dz.dtype is handed_over_in(self._call.weight.dtype):
            self._d_weight = torch.mm(dz.t(), some)
        else:
            self._d_weight = mm_float32(dz.t(), some)

    def residual(self) -> Residual:
        """Return the tensors described by `residual_like`."""
        S, dtype = self._call.layout.width, handed_over_in(self._call.weight.dtype)
        d_weight, d_bias = self._d_weight, self._d_bias
        if self._largest is not None:
            d_weight = None if d_weight is None else d_weight.mul_(self._largest)
            d_bias = None if d_bias is None else d_bias.mul_(self._largest)
        # Separate tensors: a custom op may not return the same tensor twice.
        empty = self._call.features.new_empty
        return (
            self._d_features,
            empty(0, dtype=dtype) if d_weight is None else _part(d_weight, slice(0, S)).to(dtype),
            empty(0, dtype=torch.float32) if d_bias is None else _part(d_bias, slice(0, S)),
        )


def handed_over_in(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which the residual holds a gradient of `dtype`.

    float16 gradients are held in float32: a loss scale must be applied before rounding.
    """
    return torch.float32 if dtype is torch.float16 else dtype


# The residual is the gradient: once it is handed out, a second backward pass must compute it again.
RESIDUAL_IS_GRADIENT = True


def residual_like(call: HeadsCall) -> Residual:
    """Return empty tensors of the shapes and dtypes of the residual."""
    features, weight, needs = call.features, call.weight, call.needs
    return (
        features.new_empty(features.shape if needs[0] else 0, dtype=handed_over_in(features.dtype)),
        features.new_empty(weight.shape if needs[1] else 0, dtype=handed_over_in(weight.dtype)),
        features.new_empty(call.layout.width if needs[2] else 0, dtype=torch.float32),
    )


def backward(call: HeadsCall, residual: Residual, grad_total: Tensor, *, own: bool) -> Gradients:
    """Return (d_features, d_weight, d_bias), each None if not needed.

    With `own` nobody else holds the residual, so it may be returned or overwritten.
    """
    tensors = call.features, call.weight, call.bias
    gradients = [gradient if need else None for gradient, need in zip(residual, call.needs, strict=True)]
    dtypes = [torch.float32 if tensor is None else tensor.dtype for tensor in tensors]
    d_features, d_weight, d_bias = times_upstream(gradients, dtypes, grad_total, own)
    return d_features, d_weight, d_bias

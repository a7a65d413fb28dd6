"""The hidden layer over windows, and two ways to compute its outputs.

h = ReLU(b + sum_w A_w v(t_w))        A_w (H, D) the columns of the hidden weight for place w, v(t) a type's vector

By window: the vectors of a window's words side by side, times the whole weight. Required with dropout, which makes each
of them different. By type: A_w v(t) once for every type and place; a window is then a sum of W such rows. Text repeats
its words, so without dropout this is a fraction of the products. The choice, and with it the last bits of a window's
outputs, depends on the words of a batch.
"""

from __future__ import annotations

import numpy as np

from ...heads.on_numba.stages import multiply_panels, round_up
from ...machine.gemm import (
    BLOCK_ROWS,
    PANEL,
)
from ...machine.jit import address_of, helper
from ...machine.simd import FLOAT_BYTES
from .text_index import NONE

ZERO = np.float32(0)
TYPES_A_PIECE = 64
# With up to this many types per window, types are projected. A window then costs a sum of rows, which is not free.
MOST_TYPES_A_WINDOW = 0.75


@helper
def project_types(p, D, H, index, b):
    """b.projected[u, w] (H,) = A_w v(u) for the types of piece p."""
    first = p * TYPES_A_PIECE
    rows = round_up(min(TYPES_A_PIECE, index.counts[0] - first), BLOCK_ROWS)
    W, ldp = b.projected.shape[1], b.projected.shape[2]
    panel_floats = W * D * PANEL
    for w in range(W):
        multiply_panels(
            address_of(b.vectors[first]), D, rows, D, address_of(b.forward) + FLOAT_BYTES * w * D * PANEL, panel_floats,
            H, address_of(b.projected[first, w]), W * ldp,
        )  # fmt: skip


@helper
def outputs_by_type(first, rows, padded, bias, index, b):
    """Compute b.a of a tile from its types' projections; zero past the last row and column."""
    H, W = len(bias), b.projected.shape[1]
    for i in range(first, first + rows):
        a = b.a[i]
        for h in range(H):
            a[h] = bias[h]
        for w in range(W):
            slot = np.int64(index.slots[i * W + w])
            if slot != NONE:
                projected = b.projected[slot, w]
                for h in range(H):
                    a[h] += projected[h]
    _rectify(first, rows, padded, H, b)


@helper
def outputs_by_window(first, rows, padded, F, bias, b):
    """Compute b.a of a tile from its windows b.x; zero past the last row and column."""
    H, lda = len(bias), b.a.shape[1]
    multiply_panels(
        address_of(b.x[first]), b.x.shape[1], padded, F, address_of(b.forward), F * PANEL, H, address_of(b.a[first]),
        lda,
    )  # fmt: skip
    for i in range(first, first + rows):
        for h in range(H):
            b.a[i, h] += bias[h]
    _rectify(first, rows, padded, H, b)


@helper
def _rectify(first, rows, padded, H, b):
    """ReLU; NaN stays NaN."""
    lda = b.a.shape[1]
    for i in range(first, first + rows):
        for h in range(H):
            value = b.a[i, h]
            b.a[i, h] = ZERO if value <= ZERO else value
        for h in range(H, lda):
            b.a[i, h] = ZERO
    for i in range(first + rows, first + padded):
        for h in range(lda):
            b.a[i, h] = ZERO

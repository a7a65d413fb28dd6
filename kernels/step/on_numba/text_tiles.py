"""From word types to the gradients of vectors: the vectors of types, then forward and backward over tiles of rows.

A tile of windows or bags stays in cache through gather, dropout, the hidden layer if there is one, the heads' logits
and losses, and all gradients down to the vectors. Sums over all rows are left to text_updates.py.
"""

from __future__ import annotations

import numba
import numpy as np

from ...bags.on_numba.row_sums import scale_row, sum_rows
from ...bags.on_numba.row_updates import ask_for_row
from ...heads.on_numba.stages import (
    multiply_panels,
    pack_for_features,
    pack_for_logits,
    round_up,
    scratch,
)
from ...heads.on_numba.tile import pack_heads
from ...machine.gemm import BLOCK_ROWS, PANEL
from ...machine.jit import address_of, borrower, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, load, store
from ..text_model import TO_HIDDEN, TO_NOTHING, TO_TABLE
from .dense_tiles import head_tile
from .dropout import draw_factors, words_of
from .text_hidden import (
    TYPES_A_PIECE,
    ZERO,
    outputs_by_type,
    outputs_by_window,
)
from .text_index import NONE, index_rows, index_types
from .text_memory import TILE_ROWS

ONE = np.float32(1)
AHEAD = 2  # types whose rows are prefetched


# --- rounds 1 and 2: the batch's words, packed weights, vectors of types ---------------------------------

N_PREPARED = 4


@helper
def prepare(p, texts, hidden, weights, H, heads, columns, for_logits, for_features, reach, index, b):
    """Pack the hidden weight (H, W D), the way back only if needed, and the heads' rows; number the types (piece 3).

    weights (K,): addresses of those of the computed heads. On two threads, the first two pieces take about as long as
    the others, also if the threads share no cache.
    """
    if p == 0:
        for panel in range(-(-len(hidden) // PANEL)):
            first = panel * PANEL
            pack_for_logits(hidden, first, min(PANEL, len(hidden) - first), b.forward[panel])
    elif p == 1:
        pack_heads(weights, H, heads, columns, for_logits, for_features)
    elif p == 2:
        if reach == TO_TABLE and len(hidden) > 0:
            pack_for_features(hidden, 0, len(hidden), b.backward)
    else:
        index_types(texts, index)


@helper
def average_rows(p, table, index, b):
    """Make the vectors of the types of piece p: the mean of their rows."""
    D, M, U = table.D, table.rows_of_type.shape[1], index.counts[0]
    rows, vectors = table.rows_of_type.reshape(-1), address_of(b.vectors)
    for u in range(p * TYPES_A_PIECE, min(U, (p + 1) * TYPES_A_PIECE)):
        ahead, first = np.int64(index.types[min(u + AHEAD, U - 1)]) * M, np.int64(index.types[u]) * M
        size = 0
        for m in range(M):
            ask_for_row(table.address, np.int64(rows[ahead + m]), D)
            size += np.int64(rows[first + m] != NONE)
        vector = vectors + FLOAT_BYTES * u * D
        sum_rows(table.address, D, rows, first, first + M, b.no_scales, vector)
        scale_row(vector, D, ONE / np.float32(max(1, size)))
        index.sizes[u] = size


# --- round 3: tiles --------------------------------------------------------------------------------------


@borrower
def _scale_into(source, factors, scale, n, target):
    """target (n,) = source * factors * scale, all float32 at addresses; factors 0: none. target lies elsewhere."""
    if n < WIDTH:
        _scale_narrow(source, factors, scale, n, target)
        return
    # Written with vectors: in a loop over arrays, indices might be negative, and numbers are read one by one.
    for column in range(0, n, WIDTH):
        at = FLOAT_BYTES * min(column, n - WIDTH)
        value = load(source + at)
        if factors:
            value = value * load(factors + at)
        store(value * scale, target + at)


@helper
def _scale_narrow(source, factors, scale, n, target):
    """_scale_into for rows that do not fill a vector."""
    own, to = numba.carray(pointer_to_float32(source), (n,)), numba.carray(pointer_to_float32(target), (n,))
    by = numba.carray(pointer_to_float32(factors if factors else source), (n,))
    for d in range(n):
        to[d] = (own[d] * by[d] if factors else own[d]) * scale


@borrower
def _gather_windows(first, rows, W, D, slots, vectors, factors, x):
    """Gather the vectors of windows first.. into x, times factors (rows, W * D) at an address (0: none)."""
    # Both addresses are taken where the arrays are arguments, so that they outlive them.
    source, target = np.int64(vectors.ctypes.data), np.int64(x.ctypes.data)
    for i in range(rows):
        for w in range(W):
            slot, row = np.int64(slots[(first + i) * W + w]), first + i
            if slot == NONE:
                for d in range(w * D, (w + 1) * D):
                    x[row, d] = ZERO
            else:
                _scale_into(
                    source + FLOAT_BYTES * slot * D, factors + FLOAT_BYTES * (i * W + w) * D if factors else factors,
                    ONE, D, target + FLOAT_BYTES * (row * x.shape[1] + w * D),
                )  # fmt: skip


@helper
def _gather_bag(row, D, texts, index, drop, factors, i, b):
    """Gather the sum of a bag's vectors times its scale into x, with dropout by row i of factors (., D)."""
    x, scale = b.x[row], texts.scales[row]
    sum_rows(
        address_of(b.vectors), D, index.slots, texts.starts[row], texts.starts[row + 1], b.no_scales, address_of(x)
    )  # fmt: skip
    if drop.threshold > 0:
        for d in range(D):
            x[d] *= scale * factors[i, d]
    else:
        for d in range(D):
            x[d] *= scale


@helper
def _gather(first, rows, padded, W, D, texts, index, drop, factors, b):
    """Gather windows or bags first.. into x, with dropout by factors (rows, W * D).

    Zero past the last row and column.
    """
    F = W * D
    words = np.empty(words_of(F), np.uint64)
    # All are drawn before the first is read: a vector that spans several recent stores would wait for them.
    for i in range(rows if drop.threshold > 0 else 0):
        draw_factors(factors[i], F, drop.key, first + i, drop.threshold, drop.kept, words)
    if len(texts.starts) > 0:
        for i in range(rows):
            _gather_bag(first + i, D, texts, index, drop, factors, i, b)
    else:
        at = address_of(factors) if drop.threshold > 0 else 0
        _gather_windows(first, rows, W, D, index.slots, b.vectors, at, b.x)
    for i in range(rows):
        for f in range(F, b.x.shape[1]):
            b.x[first + i, f] = ZERO
    for i in range(rows, padded):
        for f in range(b.x.shape[1]):
            b.x[first + i, f] = ZERO


@helper
def _store_gradients(first, rows, F, texts, drop, factors, d_x, ldx, b):
    """Compute b.d_x of a tile from d_x (rows, ldx), the gradients of what was gathered, after dropout."""
    source, target = address_of(d_x), address_of(b.d_x) + FLOAT_BYTES * first * F
    by = address_of(factors) if drop.threshold > 0 else 0
    for i in range(rows):
        scale, at = texts.scales[first + i] if len(texts.scales) > 0 else ONE, FLOAT_BYTES * i * F
        _scale_into(source + FLOAT_BYTES * i * ldx, by + at if by else 0, scale, F, target + at)


@helper
def _hidden_gradient(first, rows, H, b, d_bias):
    """Backward through the ReLU: d_a becomes 0 where a is 0; d_bias (H,) = sum of d_a over the tile."""
    for h in range(H):
        d_bias[h] = ZERO
    for i in range(first, first + rows):
        for h in range(H):
            value = b.d_a[i, h] if b.a[i, h] > ZERO else ZERO
            b.d_a[i, h] = value
            d_bias[h] += value


@helper
def run_tile(
    p, N, W, D, texts, index, drop, by_type, has_hidden, hidden_bias, for_logits, for_features, head_bias, heads,
    columns, column_weights, targets, scale, reach, table, b,
):  # fmt: skip
    """Process the rows of tile p: losses, and the gradients of logits, hidden layer and vectors. Piece 0 is not a tile.

    Only as far back as `reach`: with TO_NOTHING only b.a. by_type: types are projected, and windows are not gathered.
    """
    if p == 0:
        if reach == TO_TABLE:
            index_rows(texts, table.rows_of_type, table.frozen, table.d_rows != 0, index)
        return
    tile, H, F = p - 1, len(hidden_bias), W * D
    first = tile * TILE_ROWS
    rows = min(TILE_ROWS, N - first)
    padded = round_up(rows, WIDTH)
    ldx, lda = b.x.shape[1], b.a.shape[1]
    factors = scratch(rows if drop.threshold > 0 else 0, F)
    if by_type:
        outputs_by_type(first, rows, padded, hidden_bias, index, b)
    else:
        _gather(first, rows, padded, W, D, texts, index, drop, factors, b)
        if has_hidden:
            outputs_by_window(first, rows, padded, F, hidden_bias, b)
    if reach == TO_NOTHING:
        return
    d_a = address_of(b.d_a[first])
    head_tile(
        tile, first, rows, N, for_logits, for_features, head_bias, heads, columns, column_weights, targets, scale,
        d_a if reach >= TO_HIDDEN else 0, b.dense,
    )  # fmt: skip
    if reach < TO_HIDDEN:
        return
    if not has_hidden:
        _store_gradients(
            first, rows, F, texts, drop, factors, b.d_a[first : first + rows].reshape(-1), lda, b
        )
        return
    _hidden_gradient(first, rows, H, b, b.d_hidden_bias[tile])
    if reach < TO_TABLE:
        return
    d_x = scratch(padded, ldx)
    multiply_panels(
        d_a, lda, round_up(rows, BLOCK_ROWS), H, address_of(b.backward), H * PANEL, F, address_of(d_x), ldx
    )
    _store_gradients(first, rows, F, texts, drop, factors, d_x.reshape(-1), ldx, b)

"""From the gradients of windows to updated parameters: dense ones piece by piece, the table row by row."""

from __future__ import annotations

import numba
import numpy as np

from ...bags.on_numba.row_sums import scale_row, sum_rows
from ...bags.on_numba.row_updates import moves, update_from_transposed, update_row
from ...heads.on_numba.stages import DEPTH, SKEW, add_weight_gradient, round_up, scratch
from ...machine.gemm import BLOCK_ROWS, PANEL, add_by_column, add_by_column_1
from ...machine.jit import helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH
from ..text_model import HEAD_BIAS, HEAD_WEIGHT, HIDDEN_BIAS, HIDDEN_WEIGHT
from .text_hidden import TYPES_A_PIECE, ZERO, address_of
from .text_index import NONE
from .text_memory import TILE_ROWS
from .text_tiles import ONE

ROWS_A_PIECE = 256


# --- round 4: dense parameters, and the gradients of types -----------------------------------------------


@helper
def _hidden_weight_gradient(begin, n, N, F, b, gradient):
    """Rows begin..begin + n of the hidden weight's gradient (., ld), over all windows; writes whole blocks of rows."""
    ldg, lda, ldx = gradient.shape[1], b.d_a.shape[1], b.x.shape[1]
    for i in range(0, N, DEPTH):
        depth = min(DEPTH, N - i)
        for panel in range(-(-F // PANEL)):
            x = address_of(b.x[i]) + FLOAT_BYTES * panel * PANEL
            wide = F - panel * PANEL > WIDTH
            for r in range(0, n, BLOCK_ROWS):
                d_a = address_of(b.d_a[i]) + FLOAT_BYTES * (begin + r)
                g = address_of(gradient[r]) + FLOAT_BYTES * panel * PANEL
                if wide:
                    add_by_column(d_a, lda, x, ldx, g, ldg, depth)
                else:
                    add_by_column_1(d_a, lda, x, ldx, g, ldg, depth)


@helper
def _head_weight_gradient(column, n, N, H, b, gradient):
    """Rows of the heads' weight gradient (., ld), starting at an output of the heads.

    Writes whole half blocks of rows.
    """
    ldg, lda, ldz = gradient.shape[1], b.a.shape[1], b.z.shape[2]
    for tile in range(-(-N // TILE_ROWS)):
        first = tile * TILE_ROWS
        z = address_of(b.z[tile]) + FLOAT_BYTES * column * ldz
        rows = min(TILE_ROWS, N - first)
        add_weight_gradient(z, ldz, address_of(b.a[first]), lda, rows, n, H, address_of(gradient), ldg)


@helper
def _bias_gradient(sums, n_tiles, column, gradient, n):
    """gradient, n numbers = sums over all tiles of sums (tiles, .), starting at a column."""
    for i in range(n):
        total = ZERO
        for tile in range(n_tiles):
            total += sums[tile, column + i]
        gradient[i] = total


@helper
def _gradient_of_piece(piece, column_of, N, F, H, b, gradient):
    """The gradient of a piece, (rows, ld), or contiguous for a bias. column_of (K,): -1 = not computed."""
    of, n_tiles = piece["of"], -(-N // TILE_ROWS)
    if of == HIDDEN_WEIGHT:
        _hidden_weight_gradient(piece["begin"], piece["rows"], N, F, b, gradient)
    elif of == HIDDEN_BIAS:
        _bias_gradient(b.d_hidden_bias, n_tiles, 0, gradient[0], H)
    else:
        column = column_of[piece["head"]]
        if column < 0:
            return
        if of == HEAD_WEIGHT:
            _head_weight_gradient(column + piece["begin"], piece["rows"], N, H, b, gradient)
        else:
            _bias_gradient(b.d_head_bias, n_tiles, column, gradient[0], piece["rows"] * piece["columns"])


@helper
def _move_piece(piece, rules, decays, column_of, N, F, H, b):
    """Update a piece of a dense parameter."""
    R, C, rule = piece["rows"], piece["columns"], rules[piece["rule"]]
    is_bias = piece["of"] == HIDDEN_BIAS or piece["of"] == HEAD_BIAS
    ld = round_up(R * C, PANEL) if is_bias else round_up(C, PANEL) + SKEW
    gradient = scratch(1 if is_bias else round_up(R, BLOCK_ROWS), ld)
    for r in range(len(gradient)):
        for c in range(ld):
            gradient[r, c] = ZERO
    _gradient_of_piece(piece, column_of, N, F, H, b, gradient)
    step_between = C if is_bias else ld
    parameter = numba.carray(pointer_to_float32(piece["parameter"]), (R * C,))
    decay = decays[piece["rule"]]
    if decay != ONE:
        for i in range(R * C):
            parameter[i] *= decay
    counts = numba.carray(pointer_to_float32(piece["per_row"]), (R if piece["per_row"] else 0,))
    own = np.empty(1, np.float32)
    for r in range(R):
        at, offset = address_of(gradient) + FLOAT_BYTES * r * step_between, FLOAT_BYTES * r * C
        first = piece["first"] + offset if piece["first"] else 0
        second = piece["second"] + offset if piece["second"] else 0
        if piece["whole"] and len(counts):
            own[0] = counts[0]
        # Otherwise the state is one number per row, at the row's own address.
        per_row = own if piece["whole"] else counts[r:]
        update_row(rule, piece["parameter"] + offset, np.int64(0), at, C, per_row, first, second)


@helper
def _has_moving_row(u, table, index):
    """Whether a step updates any row of the type u."""
    n_moving = 0
    for row in table.rows_of_type[index.types[u]]:
        n_moving += row != NONE and moves(row, table.frozen)
    return n_moving > 0


@helper
def move_dense(p, pieces, rules, decays, column_of, N, W, H, table, index, b):
    """Update some dense parameters (the first pieces), or compute the gradients of some types (the others)."""
    D = table.D
    if p < len(pieces):
        _move_piece(pieces[p], rules, decays, column_of, N, W * D, H, b)
        return
    d_x, d_vectors = address_of(b.d_x), address_of(b.d_vectors)
    first = (p - len(pieces)) * TYPES_A_PIECE
    for u in range(first, min(index.counts[0], first + TYPES_A_PIECE)):
        if len(table.frozen) and not _has_moving_row(u, table, index):
            continue
        d_vector = d_vectors + FLOAT_BYTES * u * D
        sum_rows(d_x, D, index.positions, index.begins[u], index.begins[u + 1], b.no_scales, d_vector)
        scale_row(d_vector, D, ONE / np.float32(max(1, index.sizes[u])))


# --- round 5: rows ---------------------------------------------------------------------------------------


@helper
def move_rows(p, rule, table, index, b):
    """Update some rows, or store their gradients."""
    first, last = p * ROWS_A_PIECE, min(index.counts[1], (p + 1) * ROWS_A_PIECE)
    d_vectors = address_of(b.d_vectors)
    if table.d_rows:
        for r in range(first, last):
            sum_rows(
                d_vectors, table.D, index.row_types, index.row_begins[r], index.row_begins[r + 1], b.no_scales,
                table.d_rows + FLOAT_BYTES * r * table.D,
            )  # fmt: skip
        return
    update_from_transposed(
        rule, table.address, index.rows, index.row_begins, index.row_types, first, last, table.frozen, b.no_scales,
        d_vectors, table.D, table.per_row, table.first, table.second,
    )  # fmt: skip

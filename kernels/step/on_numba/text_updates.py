"""From the gradients of windows to updated parameters: dense ones piece by piece, the table row by row."""

from __future__ import annotations

import numba
import numpy as np

from ...bags.on_numba.row_sums import scale_row, sum_rows
from ...bags.on_numba.row_updates import moves, update_from_transposed, update_row
from ...heads.on_numba.stages import DEPTH, SKEW, add_weight_gradient, round_up
from ...machine.gemm import BLOCK_ROWS, PANEL, add_by_column, add_by_column_1
from ...machine.jit import helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH
from ..text_model import HEAD_BIAS, HIDDEN_BIAS, HIDDEN_WEIGHT
from .text_hidden import TYPES_A_PIECE, ZERO, address_of
from .text_index import NONE
from .text_memory import HALVES, TILE_ROWS
from .text_tiles import ONE

ROWS_A_PIECE = 256


# --- round 4: gradients of dense parameters over each half of the rows, and of types -----------------------


@helper
def _hidden_weight_gradient(begin, n, first, last, F, b, gradient):
    """Rows begin..begin + n of the hidden weight's gradient (., ld), over windows first..last.

    Writes whole blocks of rows.
    """
    ldg, lda, ldx = gradient.shape[1], b.d_a.shape[1], b.x.shape[1]
    for i in range(first, last, DEPTH):
        depth = min(DEPTH, last - i)
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
def _head_weight_gradient(column, n, first, last, H, b, gradient):
    """Rows of the heads' weight gradient (., ld), starting at an output of the heads, over rows first..last.

    Writes whole half blocks of rows.
    """
    ldg, lda, ldz = gradient.shape[1], b.a.shape[1], b.z.shape[2]
    for i in range(first, last, TILE_ROWS):
        z = address_of(b.z[i // TILE_ROWS]) + FLOAT_BYTES * column * ldz
        rows = min(TILE_ROWS, last - i)
        add_weight_gradient(z, ldz, address_of(b.a[i]), lda, rows, n, H, address_of(gradient), ldg)


@helper
def _is_bias(piece):
    return piece["of"] == HIDDEN_BIAS or piece["of"] == HEAD_BIAS


@helper
def _sums_of(piece, sums):
    """The part of sums (floats,) that holds the gradient of a piece of a weight, (rows, ld)."""
    rows, ld = round_up(piece["rows"], BLOCK_ROWS), round_up(piece["columns"], PANEL) + SKEW
    return sums[: rows * ld].reshape((rows, ld))


@helper
def _add_up_weight(piece, first, last, column_of, F, H, b, sums):
    """Sum the gradient of a piece of a weight over rows first..last. column_of (K,): -1 = not computed, which is 0."""
    gradient = _sums_of(piece, sums)
    for r in range(gradient.shape[0]):
        for c in range(gradient.shape[1]):
            gradient[r, c] = ZERO
    if piece["of"] == HIDDEN_WEIGHT:
        _hidden_weight_gradient(piece["begin"], piece["rows"], first, last, F, b, gradient)
    elif column_of[piece["head"]] >= 0:
        column = column_of[piece["head"]] + piece["begin"]
        _head_weight_gradient(column, piece["rows"], first, last, H, b, gradient)


@helper
def _has_moving_row(u, table, index):
    """Whether a step updates any row of the type u."""
    n_moving = 0
    for row in table.rows_of_type[index.types[u]]:
        n_moving += row != NONE and moves(row, table.frozen)
    return n_moving > 0


@helper
def _add_up_types(p, table, index, b):
    """Compute the gradients of the rows that the types of piece p are means of: the same for all rows of a type."""
    D, d_x, d_vectors = table.D, address_of(b.d_x), address_of(b.d_vectors)
    for u in range(p * TYPES_A_PIECE, min(index.counts[0], (p + 1) * TYPES_A_PIECE)):
        if len(table.frozen) and not _has_moving_row(u, table, index):
            continue
        d_vector = d_vectors + FLOAT_BYTES * u * D
        sum_rows(d_x, D, index.positions, index.begins[u], index.begins[u + 1], b.no_scales, d_vector)
        scale_row(d_vector, D, ONE / np.float32(max(1, index.sizes[u])))


@helper
def n_pieces_to_add_up(n_dense, n_types):
    """How many pieces `add_up` has, for so many pieces of dense parameters and of types."""
    return HALVES * n_dense + n_types


@helper
def add_up(p, pieces, n_types, column_of, N, W, H, table, index, b):
    """Sum the gradients of some dense parameters over a half of the rows, or those of some types.

    First come the dense parameters over the first half of the tiles, then types, then the other half: as threads begin
    with pieces of their own in every round, a thread finds most of the tiles' rows where it has put them.
    """
    middle = min(N, -(-N // TILE_ROWS) // HALVES * TILE_ROWS)
    if p < len(pieces):
        if not _is_bias(pieces[p]):
            _add_up_weight(pieces[p], 0, middle, column_of, W * table.D, H, b, b.sums[0, p])
    elif p < len(pieces) + n_types:
        _add_up_types(p - len(pieces), table, index, b)
    else:
        p -= len(pieces) + n_types
        if not _is_bias(pieces[p]):
            _add_up_weight(pieces[p], middle, N, column_of, W * table.D, H, b, b.sums[1, p])


# --- round 5: dense parameters, and rows -----------------------------------------------------------------


@helper
def _bias_gradient(sums, n_tiles, column, gradient, n):
    """gradient, n numbers = sums over all tiles of sums (tiles, .), starting at a column."""
    for i in range(n):
        total = ZERO
        for tile in range(n_tiles):
            total += sums[tile, column + i]
        gradient[i] = total


@helper
def _gradient_of_bias(piece, column_of, n_tiles, H, b, gradient):
    """The gradient of a bias; column_of (K,): -1 = not computed, which is 0."""
    n = piece["rows"] * piece["columns"]
    if piece["of"] == HIDDEN_BIAS:
        _bias_gradient(b.d_hidden_bias, n_tiles, 0, gradient, H)
    elif column_of[piece["head"]] >= 0:
        _bias_gradient(b.d_head_bias, n_tiles, column_of[piece["head"]], gradient, n)
    else:
        for i in range(n):
            gradient[i] = ZERO


@helper
def _sum_halves(piece, sums, more):
    """sums += more, for the gradient of a piece of a weight."""
    gradient, other = _sums_of(piece, sums), _sums_of(piece, more)
    for r in range(piece["rows"]):
        for c in range(piece["columns"]):
            gradient[r, c] += other[r, c]


@helper
def _move_piece(piece, rules, decays, gradient, columns_between):
    """Update a piece of a dense parameter by its gradient, an array whose rows are so many numbers apart."""
    R, C, rule = piece["rows"], piece["columns"], rules[piece["rule"]]
    parameter = numba.carray(pointer_to_float32(piece["parameter"]), (R * C,))
    decay = decays[piece["rule"]]
    if decay != ONE:
        for i in range(R * C):
            parameter[i] *= decay
    counts = numba.carray(pointer_to_float32(piece["per_row"]), (R if piece["per_row"] else 0,))
    own, start = np.empty(1, np.float32), address_of(gradient)
    for r in range(R):
        at, offset = start + FLOAT_BYTES * r * columns_between, FLOAT_BYTES * r * C
        first = piece["first"] + offset if piece["first"] else 0
        second = piece["second"] + offset if piece["second"] else 0
        if piece["whole"] and len(counts):
            own[0] = counts[0]
        # Otherwise the state is one number per row, at the row's own address.
        per_row = own if piece["whole"] else counts[r:]
        update_row(rule, piece["parameter"] + offset, np.int64(0), at, C, per_row, first, second)


@helper
def _move_dense(p, piece, rules, decays, column_of, n_tiles, H, b):
    """Update piece p of the dense parameters."""
    if _is_bias(piece):
        bias = np.empty(piece["rows"] * piece["columns"], np.float32)
        _gradient_of_bias(piece, column_of, n_tiles, H, b, bias)
        _move_piece(piece, rules, decays, bias, piece["columns"])
    else:
        _sum_halves(piece, b.sums[0, p], b.sums[1, p])
        _move_piece(piece, rules, decays, b.sums[0, p], round_up(piece["columns"], PANEL) + SKEW)


@helper
def move(p, pieces, rules, decays, column_of, n_tiles, H, table, index, b):
    """Update some dense parameters (the first pieces), or some rows (the others)."""
    if p < len(pieces):
        _move_dense(p, pieces[p], rules, decays, column_of, n_tiles, H, b)
    else:
        _move_rows(p - len(pieces), rules[table.rule], table, index, b)


@helper
def _move_rows(p, rule, table, index, b):
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

"""From the gradients of windows to updated parameters: dense ones piece by piece, the table row by row."""

from __future__ import annotations

import numpy as np

from ...bags.on_numba.row_sums import scale_row, sum_rows
from ...bags.on_numba.row_updates import moves, update_from_transposed
from ...machine.jit import address_of, helper
from ...machine.simd import FLOAT_BYTES, WIDTH
from .dense_memory import HALVES
from .dense_updates import add_up_dense, move_dense, square_of_piece, sum_of_squares
from .text_hidden import TYPES_A_PIECE
from .text_index import NONE
from .text_memory import TILE_ROWS
from .text_tiles import ONE

ROWS_A_PIECE = 256


# --- round 4: gradients of dense parameters over each half of the rows, and of types -----------------------


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
def add_up(p, pieces, n_types, column_of, N, table, index, b):
    """Sum the gradients of some dense parameters over a half of the rows, or those of some types.

    First come the dense parameters over the first half of the tiles, then types, then the other half: as threads begin
    with pieces of their own in every round, a thread finds most of the tiles' rows where it has put them.
    """
    n = len(pieces)
    if p < n:
        add_up_dense(p, 0, pieces, N, TILE_ROWS, column_of, b.dense)
    elif p < n + n_types:
        _add_up_types(p - n, table, index, b)
    else:
        add_up_dense(p - n - n_types, 1, pieces, N, TILE_ROWS, column_of, b.dense)


# --- round 5: dense parameters, and rows -----------------------------------------------------------------


@helper
def square(p, pieces, column_of, n_tiles, table, index, b, squares):
    """squares[p] = the sum of the squares of the gradient of a dense parameter's piece, or of some rows."""
    if p < len(pieces):
        squares[p] = square_of_piece(p, pieces, column_of, n_tiles, b.dense)
    else:
        squares[p] = _square_of_rows(p - len(pieces), table, index, b)


@helper
def _square_of_rows(p, table, index, b):
    """Of the rows that move: the index has no others."""
    D, total, gradient = table.D, 0.0, np.empty(table.D + WIDTH, np.float32)
    for r in range(p * ROWS_A_PIECE, min(index.counts[1], (p + 1) * ROWS_A_PIECE)):
        sum_rows(
            address_of(b.d_vectors), D, index.row_types, index.row_begins[r], index.row_begins[r + 1], b.no_scales,
            address_of(gradient),
        )  # fmt: skip
        total += sum_of_squares(gradient[:D])
    return total


@helper
def scale_types(p, factor, D, index, b):
    """Scale the gradients that the types of piece p give to their rows."""
    for u in range(p * TYPES_A_PIECE, min(index.counts[0], (p + 1) * TYPES_A_PIECE)):
        for d in range(D):
            b.d_vectors[u, d] *= factor


@helper
def move(p, n_pieces, pieces, rules, decays, factor, column_of, n_tiles, table, index, b):
    """Update some dense parameters, or some rows; there are n_pieces of both.

    Both kinds are mixed evenly, so that every thread begins with rows, and with the same dense parameters in each step:
    its core's cache then holds them. With all dense parameters first, one thread would have those alone.
    """
    n_dense = p * len(pieces) // n_pieces
    if (p + 1) * len(pieces) // n_pieces > n_dense:
        move_dense(n_dense, pieces, rules, decays, factor, column_of, n_tiles, b.dense)
    else:
        _move_rows(p - n_dense, rules[table.rule], table, index, b)


@helper
def _move_rows(p, rule, table, index, b):
    """Update some rows, or store their gradients."""
    first, last = p * ROWS_A_PIECE, min(index.counts[1], (p + 1) * ROWS_A_PIECE)
    d_vectors = address_of(b.d_vectors)
    if table.d_rows:
        into = table.room[0] if index.counts[1] * table.D <= table.room[1] else table.d_rows
        for r in range(first, last):
            sum_rows(
                d_vectors, table.D, index.row_types, index.row_begins[r], index.row_begins[r + 1], b.no_scales,
                into + FLOAT_BYTES * r * table.D,
            )  # fmt: skip
        return
    update_from_transposed(
        rule, table.address, index.rows, index.row_begins, index.row_types, first, last, table.frozen, b.no_scales,
        d_vectors, table.D, table.per_row, table.first, table.second,
    )  # fmt: skip

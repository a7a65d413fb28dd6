"""What comes before the layers of a stack: features as they are, or rows of a table, and those rows' gradients.

A table's gradient is never stored whole. Where its rule leaves rows without a gradient as they are, only the batch's
rows are updated; else the table is swept once, piece by piece, each with the gradients of its own rows.
"""

from __future__ import annotations

import numba
import numpy as np

from ...bags.batch import NONE
from ...bags.on_numba.row_sums import sum_rows
from ...bags.on_numba.row_updates import move_decayed, move_row, pool_bag, update_from_transposed
from ...machine.gemm import copy_floats
from ...machine.jit import address_of, helper, pointer_to_float32, pointer_to_int32, pointer_to_int64
from ...machine.simd import FLOAT_BYTES, WIDTH
from .dense_updates import ONE, ZERO, move_piece, numbers_of_whole, sum_of_squares
from .dropout import draw_factors
from .embedding_memory import BESIDE, INDICES_A_PIECE, MEAN
from .text_index import number_distinct, transpose

ROWS_A_PIECE = 256  # of the batch's rows
BLOCK_FLOATS = 4096  # of a table: half of a cache of 32 KiB

# --- the batch's indices --------------------------------------------------------------------------------------


@helper
def n_index_pieces(embedding):
    """Into how many pieces taking the batch's indices is divided."""
    return -(-embedding[0]["n"] // INDICES_A_PIECE)


@helper
def take_indices(p, embedding):
    """Copy piece p of the batch's indices; outside[p] = the position of its first one outside [0, V), or -1."""
    of = embedding[0]
    n = of["n"]
    first, last = p * INDICES_A_PIECE, min(n, (p + 1) * INDICES_A_PIECE)
    outside = numba.carray(pointer_to_int64(of["outside"]), (p + 1,))
    if of["wide"]:
        outside[p] = _take(numba.carray(pointer_to_int64(of["given"]), (n,)), embedding, first, last)
    else:
        outside[p] = _take(numba.carray(pointer_to_int32(of["given"]), (n,)), embedding, first, last)


@helper
def _take(given, embedding, first, last):
    of = embedding[0]
    V, padding = of["V"], of["padding"]
    trained = numba.carray(pointer_to_int32(of["trained"]), (last,))
    outside = 0
    for i in range(first, last):
        row = np.int64(given[i])
        outside += np.int64(row < 0) + np.int64(row >= V)
        trained[i] = NONE if row == padding else row
    if outside:
        for i in range(first, last):
            if given[i] < 0 or given[i] >= V:
                return i
    if of["ids"] != of["trained"]:
        ids = numba.carray(pointer_to_int32(of["ids"]), (last,))
        for i in range(first, last):
            ids[i] = given[i]
    return -1


@helper
def first_outside(embedding):
    """The position of the batch's first index that is not a row of the table, or -1."""
    outside = numba.carray(pointer_to_int64(embedding[0]["outside"]), (n_index_pieces(embedding),))
    for p in range(len(outside)):
        if outside[p] >= 0:
            return outside[p]
    return -1


# --- forward ------------------------------------------------------------------------------------------------


@helper
def load_rows(embedding, table_pieces, inputs, drop, first, rows, factors, words):
    """Make rows first.. of x, with dropout: copies of inputs (N, F), an address, or vectors of the table.

    table_pieces: None without a table.
    """
    of = embedding[0]
    F = of["F"]
    for i in range(first, first + rows):
        at = of["x"] + FLOAT_BYTES * i * of["ld"]
        if table_pieces is None:
            copy_floats(inputs + FLOAT_BYTES * i * F, at, F)
        else:
            _load_vectors(embedding, i, at)
        if drop["threshold"] > 0:
            draw_factors(factors[:F], F, drop["key"], i, drop["threshold"], drop["kept"], words)
            x = numba.carray(pointer_to_float32(at), (F,))
            for f in range(F):
                x[f] *= factors[f]


@helper
def _load_vectors(embedding, i, target):
    """target (F,), an address = the vectors of the indices of row i, pooled or side by side."""
    of = embedding[0]
    D, L, n, no_scales = of["D"], of["L"], of["n"], np.empty(0, np.float32)
    ids = numba.carray(pointer_to_int32(of["ids"]), (n,))
    if of["how"] == BESIDE:
        for k in range(L):
            pool_bag(of["table"], D, ids, i * L + k, i * L + k + 1, no_scales, target + FLOAT_BYTES * k * D)
        return
    pool_bag(of["table"], D, ids, i * L, (i + 1) * L, no_scales, target)
    scale = ONE
    if of["how"] == MEAN:
        count = 0
        for k in range(i * L, (i + 1) * L):
            count += np.int64(ids[k] != NONE)
        scale = ONE / np.float32(max(1, count))
        x = numba.carray(pointer_to_float32(target), (D,))
        for d in range(D):
            x[d] *= scale
    numba.carray(pointer_to_float32(of["scales"]), (i + 1,))[i] = scale


# --- backward -----------------------------------------------------------------------------------------------


@helper
def store_vector_gradients(embedding, drop, first, rows, factors, words):
    """Store the gradients of the vectors of rows first.., from those of x."""
    of = embedding[0]
    F = of["F"]
    scales = numba.carray(pointer_to_float32(of["scales"]), (first + rows,))
    for i in range(first, first + rows):
        d_x = numba.carray(pointer_to_float32(of["d_x"] + FLOAT_BYTES * i * of["ld"]), (F,))
        target = numba.carray(pointer_to_float32(of["d_vectors"] + FLOAT_BYTES * i * F), (F,))
        scale = ONE if of["how"] == BESIDE else scales[i]
        if drop["threshold"] > 0:
            draw_factors(factors[:F], F, drop["key"], i, drop["threshold"], drop["kept"], words)
            for f in range(F):
                target[f] = d_x[f] * factors[f] * scale
        else:
            for f in range(F):
                target[f] = d_x[f] * scale


@helper
def index_batch(embedding, sweeps):
    """Group the batch's indices by row of the table. sweeps: whether `move_table` will."""
    of = embedding[0]
    n = of["n"]
    trained = numba.carray(pointer_to_int32(of["trained"]), (n,))
    slots = numba.carray(pointer_to_int32(of["slots"]), (n,))
    slot_of_row = numba.carray(pointer_to_int32(of["slot_of_row"]), (of["V"],))
    rows = numba.carray(pointer_to_int32(of["rows"]), (min(n, of["V"]),))
    R = number_distinct(trained, n, slot_of_row, slots, rows)
    begins = numba.carray(pointer_to_int64(of["begins"]), (R + 1,))
    owners = numba.carray(pointer_to_int32(of["owners"]), (n,))
    vector_of = np.empty(n, np.int32)
    each = 1 if of["how"] == BESIDE else of["L"]
    for i in range(0, n, max(1, each)):
        for k in range(i, i + each):
            vector_of[k] = i // each
    transpose(slots, vector_of, n, R, begins, owners)
    if sweeps:
        for r in range(R):
            slot_of_row[rows[r]] = r
    of["n_rows"] = R


@helper
def square_of_rows(p, embedding):
    """The sum of the squares of the gradients of rows p ROWS_A_PIECE.. of those in the batch."""
    of = embedding[0]
    D, R = of["D"], of["n_rows"]
    begins = numba.carray(pointer_to_int64(of["begins"]), (R + 1,))
    owners = numba.carray(pointer_to_int32(of["owners"]), (of["n"],))
    no_scales, gradient, total = np.empty(0, np.float32), np.empty(D + WIDTH, np.float32), 0.0
    for r in range(p * ROWS_A_PIECE, min(R, (p + 1) * ROWS_A_PIECE)):
        sum_rows(of["d_vectors"], D, owners, begins[r], begins[r + 1], no_scales, address_of(gradient))
        total += sum_of_squares(gradient[:D])
    return total


@helper
def scale_vectors(tile, N, tile_rows, factor, embedding):
    """Scale the gradients of the vectors of a tile's rows."""
    of = embedding[0]
    first, last = tile * tile_rows * of["F"], min(N, (tile + 1) * tile_rows) * of["F"]
    d_vectors = numba.carray(pointer_to_float32(of["d_vectors"]), (last,))
    for i in range(first, last):
        d_vectors[i] *= factor


# --- updates ------------------------------------------------------------------------------------------------


@helper
def sweeps_table(rule, decay):
    """Whether a rule moves rows whose gradient is 0, too."""
    return not rule["by_step"] or decay[0] != ONE or decay[1] != ZERO or decay[2] != ZERO


@helper
def n_table_pieces(embedding, table_pieces, sweeps):
    """Into how many pieces the update of a table is divided, if it is swept or if the batch's rows are updated."""
    if len(table_pieces) == 0:  # the table is not updated
        return 0
    return len(table_pieces) if sweeps else -(-embedding[0]["n_rows"] // ROWS_A_PIECE)


@helper
def move_table(p, embedding, table_pieces, sweeps, rules, decays):
    """Update the rows of piece p."""
    of = embedding[0]
    D, R = of["D"], of["n_rows"]
    begins = numba.carray(pointer_to_int64(of["begins"]), (R + 1,))
    owners = numba.carray(pointer_to_int32(of["owners"]), (of["n"],))
    no_scales = np.empty(0, np.float32)
    if sweeps:
        _sweep(table_pieces[p], embedding, begins, owners, no_scales, rules, decays)
        return
    rows = numba.carray(pointer_to_int32(of["rows"]), (R,))
    per_row = numba.carray(pointer_to_float32(of["per_row"]), (of["V"] if of["per_row"] else 0,))
    first, last = p * ROWS_A_PIECE, min(R, (p + 1) * ROWS_A_PIECE)
    update_from_transposed(
        rules[of["rule"]], of["table"], rows, begins, owners, first, last, np.empty(0, np.uint8), no_scales,
        of["d_vectors"], D, per_row, of["first"], of["second"],
    )  # fmt: skip


@helper
def _sweep(piece, embedding, begins, owners, no_scales, rules, decays):
    """Update a piece of the table, most of whose rows may have gradient 0."""
    rule = rules[piece["rule"]]
    has_state = piece["per_row"] != 0 or piece["first"] != 0 or rule["uses_mean_square"] != 0
    alike = piece["whole"] != 0 or not has_state
    D, n = piece["columns"], piece["rows"]
    at_once = max(1, BLOCK_FLOATS // D) if alike else n
    gradient = np.zeros(min(n, at_once) * D, np.float32)
    if not alike:
        _sum_block(embedding, piece["begin"], n, begins, owners, no_scales, gradient)
        move_piece(piece, rules, decays, ONE, gradient, D)
        _clear_block(embedding, piece["begin"], n, gradient)
        return
    counts = numba.carray(pointer_to_float32(piece["per_row"]), (1 if piece["per_row"] else 0,))
    step, scale = numbers_of_whole(rule, counts)
    decay = decays[piece["rule"]]
    for i in range(0, n, at_once):
        rows = min(at_once, n - i)
        _sum_block(embedding, piece["begin"] + i, rows, begins, owners, no_scales, gradient)
        _move_block(piece, i * D, rows * D, rule, decay, gradient, step, scale)
        _clear_block(embedding, piece["begin"] + i, rows, gradient)


@helper
def _sum_block(embedding, begin, n, begins, owners, no_scales, gradient):
    """gradient (n, D), zeros before = the gradients of rows begin.. that are in the batch."""
    of, at = embedding[0], address_of(gradient)
    D = of["D"]
    slot_of_row = numba.carray(pointer_to_int32(of["slot_of_row"]), (of["V"],))
    for i in range(n):
        r = slot_of_row[begin + i]
        if r != NONE:
            sum_rows(
                of["d_vectors"], D, owners, begins[r], begins[r + 1], no_scales, at + FLOAT_BYTES * i * D
            )


@helper
def _clear_block(embedding, begin, n, gradient):
    """Make what _sum_block has written 0 again, and forget the rows of the batch."""
    D = embedding[0]["D"]
    slot_of_row = numba.carray(pointer_to_int32(embedding[0]["slot_of_row"]), (embedding[0]["V"],))
    for i in range(n):
        if slot_of_row[begin + i] != NONE:
            slot_of_row[begin + i] = NONE
            row = gradient[i * D : (i + 1) * D]
            for d in range(D):
                row[d] = ZERO


@helper
def _move_block(piece, begin, n, rule, decay, gradient, step, scale):
    """Decay and update n numbers of a piece, and their state, by their gradients; the same numbers hold for all."""
    offset = FLOAT_BYTES * begin
    at, first = piece["parameter"] + offset, piece["first"] + offset if piece["first"] else 0
    second = piece["second"] + offset if piece["second"] else 0
    if n >= WIDTH:
        move_decayed(rule, decay[0], decay[1], at, address_of(gradient), n, first, second, step, scale)
        return
    w = numba.carray(pointer_to_float32(at), (n,))
    for i in range(n):
        if decay[1] != ZERO:
            gradient[i] += decay[1] * w[i]
        w[i] *= decay[0]
    move_row(rule, at, address_of(gradient), n, first, second, step, scale)
    for i in range(n):
        gradient[i] = ZERO

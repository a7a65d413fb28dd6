"""Steps by gradients in several pieces on a CPU: dense parameters piece by piece, the table row by row.

Rows ascend in every piece, so that the pieces are merged, and nothing is sorted. Whatever the number of threads, a sum
is taken in the order of the pieces, and a row or a part of a dense parameter is moved once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numba
import numpy as np

from ...bags.on_numba.row_updates import AHEAD, ask_to_write, update_row
from ...bags.rules import RowRule, packed
from ...machine.jit import borrower, helper, pointer_to_float32, pointer_to_int32
from ...machine.simd import FLOAT_BYTES, WIDTH, load, store
from ...machine.team import Kernel, in_parallel
from ..dense_model import Decay
from ..summed import Piece, Summed, SummedModel
from .dense_tiles import count_step
from .dense_updates import ONE, move_piece

ROWS_A_PIECE = 256
NO_MORE = np.int64(1) << np.int64(62)  # after the last row
INDEX_BITS = 32
INDEX = (1 << INDEX_BITS) - 1
DENSE, ROWS, D_ROWS, N_ROWS = range(4)  # addresses of a piece's arrays, and the number of its rows


class RowTable(NamedTuple):
    """The table (V, D) and its rule's state; addresses are of float32, 0 for what is not there."""

    address: int
    D: int
    per_row: np.ndarray
    first: int
    second: int
    rule: int
    steps: int


@helper
def _merge(pieces, found, begins, sources):
    """Merge the rows of all pieces (P, 4), which ascend in each; return how many distinct ones there are, U.

    found (U,): these rows. begins (U + 1,): row u is at sources[begins[u] : begins[u + 1]]; a source is the number of a
    piece above INDEX_BITS, and a place among its rows.
    """
    P = len(pieces)
    places, heads = np.zeros(P, np.int64), np.empty(P, np.int64)
    for p in range(P):
        rows = numba.carray(pointer_to_int32(pieces[p, ROWS]), (pieces[p, N_ROWS],))
        heads[p] = rows[0] if len(rows) else NO_MORE
    U = n = 0
    while True:
        least = NO_MORE
        for p in range(P):
            least = min(least, heads[p])
        begins[U] = n
        if least == NO_MORE:
            return U
        found[U] = least
        U += 1
        for p in range(P):
            if heads[p] == least:
                sources[n] = (p << INDEX_BITS) | places[p]
                n += 1
                places[p] += 1
                rows = numba.carray(pointer_to_int32(pieces[p, ROWS]), (pieces[p, N_ROWS],))
                heads[p] = rows[places[p]] if places[p] < len(rows) else NO_MORE


@helper
def _sum_dense(piece, start, pieces, gradient):
    """gradient = the sum over all pieces of that of a part of a dense parameter, which begins at `start` in each."""
    n = piece["rows"] * piece["columns"]
    one = numba.carray(pointer_to_float32(pieces[0, DENSE] + FLOAT_BYTES * start), (n,))
    for i in range(n):
        gradient[i] = one[i]
    for p in range(1, len(pieces)):
        other = numba.carray(pointer_to_float32(pieces[p, DENSE] + FLOAT_BYTES * start), (n,))
        for i in range(n):
            gradient[i] += other[i]


@helper
def _move_dense_or_merge(p, pieces, parts, starts, rules, decays, found, begins, sources, n_found):
    """Piece 0 merges the rows; the others move parts of dense parameters."""
    if p == 0:
        n_found[0] = _merge(pieces, found, begins, sources)
        return
    part = parts[p - 1]
    gradient = np.empty(part["rows"] * part["columns"] + WIDTH, np.float32)
    _sum_dense(part, starts[p - 1], pieces, gradient)
    move_piece(part, rules, decays, ONE, gradient, part["columns"])


@borrower
def _at(source, pieces, D):
    """Return the address of a row's gradient (D,)."""
    return pieces[source >> INDEX_BITS, D_ROWS] + FLOAT_BYTES * (source & INDEX) * D


@helper
def _add(one, other, D, total):
    """total (D,) = one + other; addresses."""
    d = 0
    while d + WIDTH <= D:
        at = FLOAT_BYTES * d
        store(load(one + at) + load(other + at), total + at)
        d += WIDTH
    a, b = numba.carray(pointer_to_float32(one), (D,)), numba.carray(pointer_to_float32(other), (D,))
    c = numba.carray(pointer_to_float32(total), (D,))
    while d < D:
        c[d] = a[d] + b[d]
        d += 1


@borrower
def _move_some_rows(first_row, last_row, pieces, rule, table, found, begins, sources, total):
    """Move the rows found[first_row:last_row]; total (D,): room for the sum of a row's gradients."""
    # The address is taken where `total` is an argument, so that it outlives it.
    D, sums = table.D, np.int64(total.ctypes.data)
    for u in range(first_row, last_row):
        if u + AHEAD < last_row:
            ask_to_write(table.address, table.first, table.second, found[u + AHEAD], D)
        gradient = _at(sources[begins[u]], pieces, D)
        for i in range(begins[u] + 1, begins[u + 1]):
            _add(gradient, _at(sources[i], pieces, D), D, sums)
            gradient = sums
        update_row(rule, table.address, found[u], gradient, D, table.per_row, table.first, table.second)


@helper
def _move_rows(p, pieces, rules, table, found, begins, sources, n_found):
    last = min(n_found, (p + 1) * ROWS_A_PIECE)
    _move_some_rows(
        p * ROWS_A_PIECE, last, pieces, rules[table.rule], table, found, begins, sources,
        np.empty(table.D + WIDTH, np.float32),
    )  # fmt: skip


def _step_on_pieces(team, rules, decays, pieces, moves_table, table, parts, starts, counts):  # type: ignore[no-untyped-def]
    """Move parts of dense parameters, and the rows of the table in any piece.

    pieces (P, 4): the addresses of DENSE, ROWS and D_ROWS, and N_ROWS. parts: PIECE of dense parameters. starts: where
    the gradient of each part begins. counts: addresses of the counters of steps of dense parameters.
    """
    M = 0
    for p in range(len(pieces)):
        M += pieces[p, N_ROWS]
    found, begins, sources = np.empty(M, np.int64), np.empty(M + 1, np.int64), np.empty(M, np.int64)
    n_found = np.zeros(1, np.int64)
    if moves_table and table.steps:
        rules[table.rule]["table_steps"] = count_step(table.steps)
    in_parallel(team, 1 + len(parts), _move_dense_or_merge, (
        pieces, parts, starts, rules, decays, found, begins, sources, n_found
    ))  # fmt: skip
    if moves_table:
        U = n_found[0]
        in_parallel(team, -(-U // ROWS_A_PIECE), _move_rows, (
            pieces, rules, table, found, begins, sources, U
        ))  # fmt: skip
    for i in range(len(counts)):
        count_step(counts[i])


step_on_pieces = Kernel(_step_on_pieces)

_NO_NUMBERS = np.zeros(0, np.float32)


def step(
    model: SummedModel,
    moving: Summed,
    rules: Sequence[RowRule],
    decays: Sequence[Decay],
    pieces: Sequence[Piece],
) -> None:
    """Move what `summed_step` in step/summed.py moves."""
    addresses = np.array(
        [(*map(_address, piece), len(piece.rows)) for piece in pieces],
        np.int64,
    )
    step_on_pieces(
        packed(rules), np.array(decays, np.float32), addresses, moving.moves_table, _table(model), moving.pieces,
        moving.starts, moving.counts,
    )  # fmt: skip


def _address(array: np.ndarray) -> int:
    """Return what `ctypes.data` does, in a tenth of its time."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]


def _table(model: SummedModel) -> RowTable:
    table, state = model.table.parameter, model.table.state
    first, second = (0 if part is None else part.data_ptr() for part in state[1:])
    return RowTable(
        table.data_ptr(), table.shape[1], _NO_NUMBERS if state.per_row is None else state.per_row.numpy(), first,
        second, max(0, model.table.rule), 0 if model.table_steps is None else model.table_steps.data_ptr(),
    )  # fmt: skip

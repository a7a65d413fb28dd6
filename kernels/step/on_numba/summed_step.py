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
from ..summed import Piece, Share, Summed, SummedModel
from .dense_tiles import count_step
from .dense_updates import ONE, move_piece
from .text_memory import GROWTH

ROWS_A_PIECE = 256
# Processes move blocks of so many rows (log2) in turn: the numbers that a rule keeps per row then share no cache line.
BLOCK_BITS = 4
NO_MORE = np.int64(1) << np.int64(62)  # after the last row
INDEX_BITS = 32
INDEX = (1 << INDEX_BITS) - 1
DENSE, ROWS, D_ROWS, N_ROWS = range(4)  # addresses of a piece's arrays, and the number of its rows


class Work(NamedTuple):
    """Memory for the rows of a step, M at most in all pieces: which there are (U,), and who moves them."""

    found: np.ndarray  # the rows, ascending
    begins: np.ndarray  # (U + 1,): row u is at sources[begins[u] : begins[u + 1]]
    sources: np.ndarray  # the number of a piece above INDEX_BITS, and a place among its rows
    places: np.ndarray  # the number of row u among those that its process moves
    mine: np.ndarray  # the rows u that this process moves
    theirs: np.ndarray  # those that others move
    sizes: np.ndarray  # (processes,): how many rows each moves


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
def _merge_two(pieces, found, begins, sources):
    """_merge of two pieces, without branches that depend on their rows."""
    n_a, n_b = pieces[0, N_ROWS], pieces[1, N_ROWS]
    rows_a = numba.carray(pointer_to_int32(pieces[0, ROWS]), (n_a,))
    rows_b = numba.carray(pointer_to_int32(pieces[1, ROWS]), (n_b,))
    second = np.int64(1) << INDEX_BITS
    U = n = a = b = 0
    while a < n_a and b < n_b:
        row_a, row_b = np.int64(rows_a[a]), np.int64(rows_b[b])
        begins[U], found[U] = n, min(row_a, row_b)
        U += 1
        # What is not taken is overwritten by the next one.
        sources[n] = a
        n += row_a <= row_b
        sources[n] = second | b
        n += row_b <= row_a
        a += row_a <= row_b
        b += row_b <= row_a
    while a < n_a:
        begins[U], found[U], sources[n] = n, rows_a[a], a
        U, n, a = U + 1, n + 1, a + 1
    while b < n_b:
        begins[U], found[U], sources[n] = n, rows_b[b], second | b
        U, n, b = U + 1, n + 1, b + 1
    begins[U] = n
    return U


@helper
def _merge(pieces, found, begins, sources):
    """Merge the rows of all pieces (P, 4), which ascend in each; return how many distinct ones there are, U.

    found (U,): these rows. begins (U + 1,): row u is at sources[begins[u] : begins[u + 1]]; a source is the number of a
    piece above INDEX_BITS, and a place among its rows.
    """
    P = len(pieces)
    if P == 2:
        return _merge_two(pieces, found, begins, sources)
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
def _divide(U, rank, work):
    """Divide U rows among the processes, of which this is number `rank`."""
    count = len(work.sizes)
    for owner in range(count):
        work.sizes[owner] = 0
    n_mine = n_theirs = 0
    for u in range(U):
        owner = (work.found[u] >> BLOCK_BITS) % count
        work.places[u] = work.sizes[owner]
        work.sizes[owner] += 1
        if owner == rank:
            work.mine[n_mine] = u
            n_mine += 1
        else:
            work.theirs[n_theirs] = u
            n_theirs += 1


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
def _move_dense_or_merge(p, pieces, parts, starts, rules, decays, rank, work):
    """Piece 0 merges and divides the rows; the others move parts of dense parameters."""
    if p == 0:
        _divide(_merge(pieces, work.found, work.begins, work.sources), rank, work)
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


@helper
def _copy(source, D, target):
    """Copy D numbers; addresses."""
    d = 0
    while d + WIDTH <= D:
        store(load(source + FLOAT_BYTES * d), target + FLOAT_BYTES * d)
        d += WIDTH
    a, b = numba.carray(pointer_to_float32(source), (D,)), numba.carray(pointer_to_float32(target), (D,))
    while d < D:
        b[d] = a[d]
        d += 1


@borrower
def _move_some_rows(first, last, pieces, rule, table, work, moved, total):
    """Move the rows mine[first:last], and copy each to its place in `moved`, an address or 0.

    total (D,): room for the sum of a row's gradients.
    """
    # The address is taken where `total` is an argument, so that it outlives it.
    D, sums = table.D, np.int64(total.ctypes.data)
    for i in range(first, last):
        if i + AHEAD < last:
            ask_to_write(table.address, table.first, table.second, work.found[work.mine[i + AHEAD]], D)
        u = work.mine[i]
        gradient = _at(work.sources[work.begins[u]], pieces, D)
        for k in range(work.begins[u] + 1, work.begins[u + 1]):
            _add(gradient, _at(work.sources[k], pieces, D), D, sums)
            gradient = sums
        row = work.found[u]
        update_row(rule, table.address, row, gradient, D, table.per_row, table.first, table.second)
        if moved:
            _copy(table.address + FLOAT_BYTES * row * D, D, moved + FLOAT_BYTES * i * D)


@helper
def _move_rows(p, pieces, rules, table, work, moved, n_mine):
    last = min(n_mine, (p + 1) * ROWS_A_PIECE)
    _move_some_rows(
        p * ROWS_A_PIECE, last, pieces, rules[table.rule], table, work, moved,
        np.empty(table.D + WIDTH, np.float32),
    )  # fmt: skip


def _step_on_pieces(  # type: ignore[no-untyped-def]
    team, rules, decays, pieces, moves_table, table, parts, starts, counts, rank, work, room, most, moved
):
    """Move parts of dense parameters, and this process's share of the rows of the table in any piece.

    pieces (P, 4): the addresses of DENSE, ROWS and D_ROWS, and N_ROWS. parts: PIECE of dense parameters. starts: where
    the gradient of each part begins. counts: addresses of the counters of steps of dense parameters. The rows are
    copied to `room`, an address, if they have at most `most` numbers, else to `moved`, another one; 0 for nothing.
    """
    if moves_table and table.steps:
        rules[table.rule]["table_steps"] = count_step(table.steps)
    in_parallel(team, 1 + len(parts), _move_dense_or_merge, (
        pieces, parts, starts, rules, decays, rank, work
    ))  # fmt: skip
    if moves_table:
        n_mine = work.sizes[rank]
        in_parallel(team, -(-n_mine // ROWS_A_PIECE), _move_rows, (
            pieces, rules, table, work, room if n_mine * table.D <= most else moved, n_mine
        ))  # fmt: skip
    for i in range(len(counts)):
        count_step(counts[i])


step_on_pieces = Kernel(_step_on_pieces)


@helper
def _take_rows(p, address, D, messages, work, n_theirs):
    """Copy some of the rows that others have moved into the table."""
    last = min(n_theirs, (p + 1) * ROWS_A_PIECE)
    for i in range(p * ROWS_A_PIECE, last):
        if i + AHEAD < last:
            ask_to_write(address, 0, 0, work.found[work.theirs[i + AHEAD]], D)
        u = work.theirs[i]
        row = work.found[u]
        owner = (row >> BLOCK_BITS) % len(messages)
        _copy(messages[owner] + FLOAT_BYTES * work.places[u] * D, D, address + FLOAT_BYTES * row * D)


def _take_moved_rows(team, address, D, messages, work, n_theirs):  # type: ignore[no-untyped-def]
    """messages (processes,): the addresses of the rows that each has moved."""
    in_parallel(team, -(-n_theirs // ROWS_A_PIECE), _take_rows, (address, D, messages, work, n_theirs))


take_moved_rows = Kernel(_take_moved_rows)

_NO_NUMBERS = np.zeros(0, np.float32)


class Memory(NamedTuple):
    """What a model keeps between steps: the rows of the last step, and where this process's own are copied to.

    moved: unless they have room elsewhere. (M * D,), or (0,) if nobody else moves rows.
    """

    work: Work
    moved: np.ndarray


def step(
    model: SummedModel,
    moving: Summed,
    rules: Sequence[RowRule],
    decays: Sequence[Decay],
    pieces: Sequence[Piece],
    share: Share,
    room: np.ndarray | None,
) -> np.ndarray:
    """Move what `summed_step` in step/summed.py moves; return the rows moved here (n, D), if there are other shares."""
    addresses = np.array([(*map(_address, piece), len(piece.rows)) for piece in pieces], np.int64)
    memory = _memory_of(model, int(addresses[:, N_ROWS].sum()), share.total)
    others, table = share.total > 1, model.table.parameter
    rooms = [each if others and each is not None else _NO_NUMBERS for each in (room, memory.moved)]
    step_on_pieces(
        packed(rules), np.array(decays, np.float32), addresses, moving.moves_table, _table(model), moving.pieces,
        moving.starts, moving.counts, share.number, memory.work,
        _address(rooms[0]), len(rooms[0]), _address(rooms[1]) if others else 0,
    )  # fmt: skip
    n, D = int(memory.work.sizes[share.number]) if others and moving.moves_table else 0, table.shape[1]
    return rooms[n * D > len(rooms[0])][: n * D].reshape(n, D)


def sizes(model: SummedModel) -> list[int]:
    """Return how many rows each share had in the last step."""
    return model.memory.work.sizes.tolist()  # type: ignore[no-any-return]


def take(model: SummedModel, messages: Sequence[np.ndarray], share: Share) -> None:
    """Copy the rows (n, D) that every other share has moved into the table."""
    work, table = model.memory.work, model.table.parameter
    n_theirs = int(work.sizes.sum() - work.sizes[share.number])
    addresses = np.array(list(map(_address, messages)), np.int64)
    take_moved_rows(table.data_ptr(), table.shape[1], addresses, work, n_theirs)


def _memory_of(model: SummedModel, M: int, count: int) -> Memory:
    """Return the model's memory, made again if there are more rows than in all steps before."""
    held: Memory | None = model.memory
    if held is None or len(held.work.found) < M or len(held.work.sizes) != count:
        M = M if held is None else int(GROWTH * M)
        found, sources, places, mine, theirs = (np.empty(M, np.int64) for _ in range(5))
        work = Work(
            found, np.empty(M + 1, np.int64), sources, places, mine, theirs, np.zeros(count, np.int64)
        )
        D = model.table.parameter.shape[1]
        held = model.memory = Memory(work, np.empty(M * D if count > 1 else 0, np.float32))
    return held


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

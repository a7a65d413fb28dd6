"""Index of a batch for a step on the words of a text.

Which types the batch holds, which is known before anything is computed; and where they are, and which types each row of
the table is in, which only gradients need. Numbers are assigned in the order of first appearance, so nothing is sorted
but the rows whose gradients are handed out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...bags.on_numba.ids import sort_keys
from ...bags.on_numba.row_updates import moves
from ...machine.held import Ints1, ShortInts1
from ...machine.jit import entry, helper
from ..text_model import TextStepModel

NONE = -1
LOW_HALF = np.uint64(0xFFFFFFFF)


class Rows(NamedTuple):
    """The n word types of N rows, int32, followed by E types whose vectors have a gradient from elsewhere.

    A row is a window of W types, or bag i in types[starts[i] : starts[i + 1]].
    """

    types: np.ndarray  # (n + E,) int32
    starts: np.ndarray  # (N + 1,) int64; (0,) for windows
    scales: np.ndarray  # (N,) float32, the factor of the sum of a bag's vectors; (0,) for windows
    n_rows: int  # N
    n_types: int  # n


class BatchIndex(NamedTuple):
    """Memory for a batch of n word positions, with U distinct types and R distinct rows."""

    slots: ShortInts1  # (n,): the number u of each position's type, NONE for no type
    types: ShortInts1  # (U,)
    sizes: ShortInts1  # (U,): type u is the mean of so many rows of the table
    begins: Ints1  # (U + 1,): type u occurs at positions[begins[u] : begins[u + 1]]
    positions: ShortInts1  # indices of vectors that have a gradient
    rows: ShortInts1  # (R,)
    row_begins: Ints1  # (R + 1,): rows[r] is in the types row_types[row_begins[r] : row_begins[r + 1]]
    row_types: ShortInts1  # type numbers u
    slot_of_type: ShortInts1  # (T + 1,), NONE between calls
    slot_of_row: ShortInts1  # (V,), NONE between calls
    counts: Ints1  # (2,): U, R


def new_index(model: TextStepModel, n_positions: int) -> BatchIndex:
    """Allocate memory for batches of up to this many positions."""
    types, M = model.rows_of_type.shape
    V = len(model.table.parameter)
    U = min(n_positions, types)
    R = min(U * M, V)
    return BatchIndex(
        slots=np.empty(n_positions, np.int32),
        types=np.empty(U, np.int32),
        sizes=np.empty(U, np.int32),
        begins=np.empty(U + 1, np.int64),
        positions=np.empty(n_positions, np.int32),
        rows=np.empty(R, np.int32),
        row_begins=np.empty(R + 1, np.int64),
        row_types=np.empty(U * M, np.int32),
        slot_of_type=np.full(types, NONE, np.int32),
        slot_of_row=np.full(V, NONE, np.int32),
        counts=np.zeros(2, np.int64),
    )


@helper
def number_distinct(values, n, slot_of, slots, found):
    """Number the distinct values by first appearance; return how many there are, U.

    slots (n,): set to each value's number. found (U,): set to the distinct values.
    slot_of is NONE everywhere, before and after. A value of NONE gets no number.
    """
    U = 0
    for i in range(n):
        value = values[i]
        if value == NONE:
            slots[i] = NONE
            continue
        if slot_of[value] == NONE:
            slot_of[value] = U
            found[U] = value
            U += 1
        slots[i] = slot_of[value]
    for u in range(U):
        slot_of[found[u]] = NONE
    return U


@helper
def transpose(slots, owners, n, U, begins, out):
    """out[begins[u] : begins[u + 1]] = the owners of the indices i < n with slots[i] = u, in order."""
    for u in range(U + 1):
        begins[u] = 0
    for i in range(n):
        if slots[i] != NONE:
            begins[slots[i] + 1] += 1
    for u in range(U):
        begins[u + 1] += begins[u]
    for i in range(n):
        if slots[i] != NONE:
            out[begins[slots[i]]] = owners[i]
            begins[slots[i]] += 1
    for u in range(U, 0, -1):
        begins[u] = begins[u - 1]
    begins[0] = 0


@entry
def first_unknown(types, n_types):
    """Return the index of the first type that is neither NONE nor in [0, n_types); -1 if there is none."""
    for i in range(len(types)):
        if types[i] < NONE or types[i] >= n_types:
            return i
    return -1


@helper
def _vector_of_position(rows):
    """Return the index of each position's gradient vector, (n + E,) int32: its position, or its bag.

    After the vectors of all rows come those of the E types from elsewhere.
    """
    of_position = np.empty(len(rows.types), np.int32)
    n_vectors = rows.n_types
    if len(rows.starts) > 0:
        n_vectors = rows.n_rows
        for bag in range(rows.n_rows):
            for i in range(rows.starts[bag], rows.starts[bag + 1]):
                of_position[i] = bag
    else:
        for i in range(rows.n_types):
            of_position[i] = i
    for i in range(rows.n_types, len(rows.types)):
        of_position[i] = n_vectors + i - rows.n_types
    return of_position


@helper
def index_types(rows, index):
    """Number the types of a batch."""
    index.counts[0] = number_distinct(
        rows.types, len(rows.types), index.slot_of_type, index.slots, index.types
    )


@helper
def _number_ascending(found, n, V, slots, n_slots):
    """Renumber n distinct values in [0, V) in their order; slots (n_slots,) hold their numbers."""
    keys = np.empty(n, np.uint64)
    for u in range(n):
        keys[u] = (np.uint64(found[u]) << np.uint64(32)) | np.uint64(u)
    keys = sort_keys(keys, V - 1)
    renumbered = np.empty(n, np.int32)
    for u in range(n):
        found[u] = np.int32(keys[u] >> np.uint64(32))
        renumbered[np.int64(keys[u] & LOW_HALF)] = u
    for i in range(n_slots):
        slots[i] = renumbered[slots[i]]


@helper
def index_rows(rows, rows_of_type, frozen, ascending, index):
    """Find the positions of each type; number the rows of the table that are updated, and find the types of each.

    ascending: number the rows in their order, not as they appear.
    """
    U, M = index.counts[0], rows_of_type.shape[1]
    transpose(index.slots, _vector_of_position(rows), len(rows.types), U, index.begins, index.positions)
    owners, moving = np.empty(U * M + 1, np.int32), np.empty(U * M + 1, np.int32)
    total = 0
    for u in range(U):
        for m in range(M):
            row = rows_of_type[index.types[u], m]
            # Overwritten by the next one, if it is none: no branch to guess wrong.
            owners[total], moving[total] = u, row
            total += np.int64(row != NONE and moves(row, frozen))
    slots = np.empty(total, np.int32)
    R = number_distinct(moving, total, index.slot_of_row, slots, index.rows)
    index.counts[1] = R
    if ascending:
        _number_ascending(index.rows, R, len(index.slot_of_row), slots, total)
    transpose(slots, owners, total, R, index.row_begins, index.row_types)

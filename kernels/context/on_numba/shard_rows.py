"""The rows that shards touch in a round: numbered, copied, and at its end merged into the tables.

A shard moves copies of its rows. When all shards of a round are done, each part of a table's rows is merged on its own:
a row becomes itself plus what each shard has changed, in the order of shards.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from ...bags.on_numba.ids import LINE_BYTES, part_of
from ...machine.jit import borrower, helper, pointer_to_float32
from ...machine.simd import FLOAT_BYTES, WIDTH, load, prefetch, prefetch_to_write, splat, store

f32 = np.float32
ZERO, ONE = f32(0), f32(1)
NONE = -1
AHEAD = 4  # rows that are prefetched
VECTOR_BYTES = FLOAT_BYTES * WIDTH


@borrower
def forget_rows(touched, p):
    """Begin a round of shard p: it has no rows."""
    slot_of, rows = touched.slot_of[p], touched.rows[p]
    for u in range(touched.counts[p]):
        slot_of[rows[u]] = NONE
    touched.counts[p] = 0


@borrower
def number_rows(values, n, touched, p, slots):
    """Set slots (n,) to the local rows of these rows in shard p; new ones are appended."""
    slot_of, rows, visits = touched.slot_of[p], touched.rows[p], touched.visits[p]
    n_rows = touched.counts[p]
    for i in range(n):
        row = values[i]
        slot = slot_of[row]
        if slot < 0:
            slot = n_rows
            slot_of[row] = slot
            rows[slot] = row
            visits[slot] = 0
            n_rows += 1
        visits[slot] += 1
        slots[i] = slot
    touched.counts[p] = n_rows


@borrower
def sort_by_part(touched, p):
    """Group the local rows of shard p, all of which are known now, by part of the table."""
    rows, by_part, ends = touched.rows[p], touched.by_part[p], touched.ends[p]
    n, n_parts = touched.counts[p], len(ends) - 1
    ends[:] = 0
    for u in range(n):
        ends[part_of(np.int64(rows[u]), n_parts) + 1] += 1
    for part in range(n_parts):
        ends[part + 1] += ends[part]
    for u in range(n):
        part = part_of(np.int64(rows[u]), n_parts)
        by_part[ends[part]] = u
        ends[part] += 1
    for part in range(n_parts, 0, -1):
        ends[part] = ends[part - 1]
    ends[0] = 0


@borrower
def _row_at(table, row, D):
    return table + FLOAT_BYTES * np.int64(row) * D


@borrower
def copy_in(table, rows, n, copies):
    """Copy rows of table (V, D) into copies (n, ld), zero past D."""
    D, ld = table.shape[1], copies.shape[1]
    source, target = table.ctypes.data, copies.ctypes.data
    for u in range(n):
        if u + AHEAD < n:
            ahead = _row_at(source, rows[u + AHEAD], D)
            for line in range(0, FLOAT_BYTES * D, LINE_BYTES):
                prefetch(ahead + line)
        _copy_padded(_row_at(source, rows[u], D), D, _row_at(target, u, ld), ld)


@borrower
def _copy_padded(row, D, copy, ld):
    """copy (ld,) = row (D,), zero past D."""
    last = FLOAT_BYTES * (D - WIDTH)
    store(splat(ZERO), copy + FLOAT_BYTES * (ld - WIDTH))
    for d in range(0, last, VECTOR_BYTES):
        store(load(row + d), copy + d)
    if last >= 0:  # the last vector ends with the last column
        store(load(row + last), copy + last)
    else:
        _copy_narrow(row, copy, D)


@helper
def _copy_narrow(row, copy, D):
    """copy (D,) = row, for rows that do not fill a vector."""
    source = numba.carray(pointer_to_float32(row), (D,))
    target = numba.carray(pointer_to_float32(copy), (D,))
    for d in range(D):
        target[d] = source[d]


@helper
def merge_rows(table, touched, counts, copies, locks, pull, part):
    """Add the changes of all shards to the rows of one part of a table (V, D).

    counts (P,): the first local rows of a shard, which have a copy in copies (P, U, ld). pull: see `_factor`.
    """
    _merge_rows(table, touched, counts, copies, locks, pull, part, np.empty(len(counts), np.int64))


@borrower
def _merge_rows(table, touched, counts, copies, locks, pull, part, of_shards):
    """merge_rows; of_shards (P,) is scratch, for the addresses of the shards' copies of a row."""
    P, D, ld, target = len(counts), table.shape[1], copies.shape[2], table.ctypes.data
    for q in range(P):
        source = copies.ctypes.data + FLOAT_BYTES * q * copies.shape[1] * ld
        last = touched.ends[q, part + 1]
        for i in range(touched.ends[q, part], last):
            u = touched.by_part[q, i]
            if u >= counts[q]:
                break
            if i + AHEAD < last:
                _ask_for(target, source, touched.by_part[q, i + AHEAD], touched.rows[q], D, ld)
            row = np.int64(touched.rows[q, u])
            n, visits, is_first = 0, 0, True
            for s in range(P):
                slot = touched.slot_of[s, row]
                if slot >= 0:
                    visits += touched.visits[s, slot]
                if 0 <= slot < counts[s]:
                    is_first &= s >= q
                    of_shards[n] = copies[s, slot].ctypes.data
                    n += 1
            if is_first:
                factor = _factor(pull, visits, P)
                if len(locks):
                    factor *= locks[row]
                _add_changes(_row_at(target, row, D), D, of_shards, n, factor)


@borrower
def _ask_for(table, copies, u, rows, D, ld):
    """Prefetch a row that will be written, and its copy of a shard."""
    row, copy = _row_at(table, rows[u], D), _row_at(copies, u, ld)
    for line in range(0, FLOAT_BYTES * D, LINE_BYTES):
        prefetch_to_write(row + line)
        prefetch(copy + line)


@borrower
def _factor(pull, visits, P):
    """Return the shrink factor of the changes that P shards have made in so many visits to a row."""
    k = pull / P * visits
    return f32(math.expm1(-P * k) / (P * math.expm1(-k))) if k > 1e-9 else ONE


@borrower
def _changed(row, at, of_shards, n, factor):
    """Return a vector of a row after the changes of n shards, whose copies are at addresses of_shards."""
    before = load(row + at)
    after = before
    for s in range(n):
        after = after + (load(of_shards[s] + at) - before) * factor
    return after


@borrower
def _add_changes(row, D, of_shards, n, factor):
    """Add the changes of n shards to a row (D,)."""
    last = FLOAT_BYTES * (D - WIDTH)
    if last < 0:
        _add_changes_of_narrow(row, D, of_shards, n, factor)
        return
    # The last vector ends with the last column. It may overlap the one before it, so it is computed before that one is
    # stored.
    end = _changed(row, last, of_shards, n, factor)
    for at in range(0, last, VECTOR_BYTES):
        store(_changed(row, at, of_shards, n, factor), row + at)
    store(end, row + last)


@helper
def _add_changes_of_narrow(row, D, of_shards, n, factor):
    """_add_changes for rows that do not fill a vector."""
    values = numba.carray(pointer_to_float32(row), (D,))
    for d in range(D):
        before = values[d]
        after = before
        for s in range(n):
            after += (numba.carray(pointer_to_float32(of_shards[s]), (D,))[d] - before) * factor
        values[d] = after

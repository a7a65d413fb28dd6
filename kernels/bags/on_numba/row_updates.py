"""Row-sparse optimizer steps on a CPU: of rows by their gradients, and of all rows in bags by the bags' gradients.

Each row that the batch touches is summed in the order of positions, whatever the number of threads, and updated once.
Other rows cost nothing. Addresses are of contiguous float32.
"""

from __future__ import annotations

import numba
import numpy as np

from ...machine.jit import borrower, helper, pointer_to_float32
from ...machine.simd import (
    FLOAT_BYTES,
    WIDTH,
    load,
    prefetch,
    prefetch_to_write,
    splat,
    store,
    sum_of,
)
from ...machine.team import Kernel, in_parallel
from ..batch import NONE
from .ids import LINE_BYTES, group_bags
from .row_sums import ONE, SHORT_SUM, ZERO, place, sum_rows
from .rules import move_columns, row_numbers

AHEAD = 16  # rows that are prefetched
AHEAD_IN_BAGS = 8  # ids whose rows are prefetched


@helper
def _move(row, gradient, D, step):
    """row (D,) -= step * gradient."""
    d = 0
    while d + WIDTH <= D:
        at = row + FLOAT_BYTES * d
        store(load(at) - load(gradient + FLOAT_BYTES * d) * step, at)
        d += WIDTH
    values = numba.carray(pointer_to_float32(row), (D,))
    g = numba.carray(pointer_to_float32(gradient), (D,))
    while d < D:
        values[d] -= step * g[d]
        d += 1


@helper
def _mean_square(gradient, D):
    total = splat(ZERO)
    d = 0
    while d + WIDTH <= D:
        g = load(gradient + FLOAT_BYTES * d)
        total = total + g * g
        d += WIDTH
    square = sum_of(total)
    rest = numba.carray(pointer_to_float32(gradient), (D,))
    while d < D:
        square += rest[d] * rest[d]
        d += 1
    return square / np.float32(D)


@borrower
def _numbers_of(rule):
    """The rule's numbers as float32."""
    numbers = rule["numbers"]
    return (
        np.float32(numbers[0]), np.float32(numbers[1]), np.float32(numbers[2]), np.float32(numbers[3]),
        np.float32(numbers[4]), np.float32(numbers[5]), np.float32(numbers[6]),
    )  # fmt: skip


@borrower
def _moved_vector(kind, row, gradient, first, second, at, step, scale, numbers):
    """Return the new (w, first, second) of a vector of columns, at a byte offset."""
    return move_columns(
        kind, load(row + at), load(gradient + at), load(first + at), load(second + at), step, scale, numbers
    )


@borrower
def _store_vector(moved, row, first, second, at, has_first, has_second):
    store(moved[0], row + at)
    if has_first:
        store(moved[1], first + at)
    if has_second:
        store(moved[2], second + at)


@helper
def _move_narrow(kind, row, gradient, D, first, second, step, scale, numbers, has_first, has_second):
    """_move_by_columns for rows that do not fill a vector."""
    w, g = numba.carray(pointer_to_float32(row), (D,)), numba.carray(pointer_to_float32(gradient), (D,))
    m, v = numba.carray(pointer_to_float32(first), (D,)), numba.carray(pointer_to_float32(second), (D,))
    for d in range(D):
        moved = move_columns(kind, w[d], g[d], m[d], v[d], step, scale, numbers)
        w[d] = moved[0]
        if has_first:
            m[d] = moved[1]
        if has_second:
            v[d] = moved[2]


@borrower
def _move_by_columns(rule, row, gradient, D, first, second, step, scale):
    """Update a row (D,) and its state; first, second: addresses of (D,), 0 for what the rule does not keep."""
    kind, numbers, has_first, has_second = rule["kind"], _numbers_of(rule), first != 0, second != 0
    # What is not kept is read from elsewhere, and not stored.
    first, second = first if has_first else row, second if has_second else row
    if D < WIDTH:
        _move_narrow(kind, row, gradient, D, first, second, step, scale, numbers, has_first, has_second)
        return
    # The last vector ends with the last column. It may overlap the one before it, so it is computed before that one is
    # stored; both have the same numbers in the columns that they share.
    last = FLOAT_BYTES * (D - WIDTH)
    moved = _moved_vector(kind, row, gradient, first, second, last, step, scale, numbers)
    for at in range(0, last, FLOAT_BYTES * WIDTH):
        own = _moved_vector(kind, row, gradient, first, second, at, step, scale, numbers)
        _store_vector(own, row, first, second, at, has_first, has_second)
    _store_vector(moved, row, first, second, last, has_first, has_second)


@borrower
def move_row(rule, row, gradient, D, first, second, step, scale):
    """Update a row (D,) and its state at these addresses, 0 for what the rule does not keep, by its two numbers."""
    if rule["by_step"]:
        _move(row, gradient, D, step)
    else:
        _move_by_columns(rule, row, gradient, D, first, second, step, scale)


@borrower
def move_decayed(rule, factor, added, row, gradient, n, first, second, step, scale):
    """move_row of n >= WIDTH numbers w, which decay on the way: w *= factor, and gradient += added * w before that."""
    kind, numbers, has_first, has_second = rule["kind"], _numbers_of(rule), first != 0, second != 0
    first, second = first if has_first else row, second if has_second else row
    last = FLOAT_BYTES * (n - WIDTH)
    moved = _decayed_vector(kind, factor, added, row, gradient, first, second, last, step, scale, numbers)
    for at in range(0, last, FLOAT_BYTES * WIDTH):
        own = _decayed_vector(kind, factor, added, row, gradient, first, second, at, step, scale, numbers)
        _store_vector(own, row, first, second, at, has_first, has_second)
    _store_vector(moved, row, first, second, last, has_first, has_second)


@borrower
def _decayed_vector(kind, factor, added, row, gradient, first, second, at, step, scale, numbers):
    w, g = load(row + at), load(gradient + at)
    if added != ZERO:  # infinity times 0 would be NaN
        g = g + w * added
    return move_columns(kind, w * factor, g, load(first + at), load(second + at), step, scale, numbers)


@borrower
def update_row(rule, table, row, gradient, D, per_row, first, second):
    """Update a row of the table (V, D) by its gradient (D,); rule is a record of rules.RULE_RECORD.

    per_row (V,), first and second (addresses of (V, D), or 0) are the rule's state.
    """
    mean_square = _mean_square(gradient, D) if rule["uses_mean_square"] else ZERO
    step, scale = row_numbers(rule, mean_square, per_row, row)
    offset = FLOAT_BYTES * row * D
    move_row(
        rule, table + offset, gradient, D, first + offset if first else 0, second + offset if second else 0, step, scale
    )  # fmt: skip


@borrower
def _update_split(p, rule, table, rows, gradient, D, per_row, first, second, n_splits):
    last = (p + 1) * len(rows) // n_splits
    for u in range(p * len(rows) // n_splits, last):
        if u + AHEAD < last:
            ask_to_write(table, first, second, np.int64(rows[u + AHEAD]), D)
        at = gradient + FLOAT_BYTES * u * D
        update_row(rule[0], table, np.int64(rows[u]), at, D, per_row, first, second)


def _update_rows(team, rule, table, rows, gradient, D, per_row, first, second, n_splits):  # type: ignore[no-untyped-def]
    """Update the rows (U,), all distinct, by their gradients (U, D); rule (1,)."""
    in_parallel(
        team, n_splits, _update_split, (rule, table, rows, gradient, D, per_row, first, second, n_splits)
    )


update_rows = Kernel(_update_rows, beside_torch=True)


@helper
def _update_split_from_bags(
    p, rule, table, V, ids, starts, scales, gradient, D, per_row, first, second, n_splits
):
    bags, rows, begins = group_bags(ids, starts, V - 1, p, n_splits)
    none_frozen = np.empty(0, np.uint8)
    update_from_transposed(
        rule[0], table, rows, begins, bags, 0, len(rows), none_frozen, scales, gradient, D, per_row, first, second
    )  # fmt: skip


def _update_from_bags(  # type: ignore[no-untyped-def]
    team, rule, table, V, ids, starts, scales, gradient, D, per_row, first, second, n_splits
):
    """Update all rows in the bags by the gradient of the bags (B, D), which is never expanded to the rows.

    scales (B,) are of the bags, or empty. Every split has its own rows, so none waits for another.
    """
    in_parallel(team, n_splits, _update_split_from_bags, (
        rule, table, V, ids, starts, scales, gradient, D, per_row, first, second, n_splits
    ))  # fmt: skip


@borrower
def moves(row, frozen):
    """Whether a step updates a row of a table; frozen (V,) uint8, or (0,) if it updates all."""
    return len(frozen) == 0 or frozen[row] == 0


@helper
def update_from_transposed(
    rule, table, rows, begins, bags, first_row, last_row, frozen, scales, gradient, D, per_row, first, second
):  # fmt: skip
    """Update rows[first_row:last_row] by the gradient of their bags, bags[begins[u] : begins[u + 1]] for row u.

    Frozen rows, by frozen (V,), cost nothing; (0,): none is frozen.
    """
    if WIDTH <= D <= 8 * WIDTH and rule["by_step"]:
        _update_by_steps(
            rule, table, rows, begins, bags, first_row, last_row, frozen, scales, gradient, D, per_row, _new_lanes(D)
        )  # fmt: skip
    else:
        _update_by_sums(
            rule, table, rows, begins, bags, first_row, last_row, frozen, scales, gradient, D, per_row, first, second,
            np.empty(D + WIDTH, np.float32),
        )  # fmt: skip


@borrower
def _update_by_steps(
    rule, table, rows, begins, bags, first_row, last_row, frozen, scales, gradient, D, per_row, lanes
):  # fmt: skip
    """update_from_transposed for rows that registers hold, moved by steps alone; lanes: _new_lanes(D)."""
    for u in range(first_row, last_row):
        if u + AHEAD < last_row and moves(rows[u + AHEAD], frozen):
            _ask_to_write_row(table, np.int64(rows[u + AHEAD]), D)
        if moves(rows[u], frozen):
            _update_in_registers(
                rule, table, np.int64(rows[u]), bags, begins[u], begins[u + 1], scales, gradient, D, per_row, lanes
            )  # fmt: skip


@borrower
def _update_by_sums(
    rule, table, rows, begins, bags, first_row, last_row, frozen, scales, gradient, D, per_row, first, second, sums
):  # fmt: skip
    """update_from_transposed by way of sums (D + WIDTH,): the gradient of one row after another."""
    # The address is taken where `sums` is an argument, so that it outlives it.
    total = np.int64(sums.ctypes.data)  # otherwise helpers are compiled for uintp, too
    for u in range(first_row, last_row):
        if u + AHEAD < last_row and moves(rows[u + AHEAD], frozen):
            ask_to_write(table, first, second, np.int64(rows[u + AHEAD]), D)
        if moves(rows[u], frozen):
            sum_rows(gradient, D, bags, begins[u], begins[u + 1], scales, total)
            update_row(rule, table, np.int64(rows[u]), total, D, per_row, first, second)


@borrower
def ask_for_row(table, row, D):
    """Prefetch a row that will be read."""
    at = table + FLOAT_BYTES * row * D
    for line in range(0, FLOAT_BYTES * D, LINE_BYTES):
        prefetch(at + line)


@borrower
def pool_bag(table, D, ids, first, last, scales, target):
    """sum_rows of the rows ids[first:last] of a table; prefetches those that are AHEAD_IN_BAGS of each."""
    for i in range(first + AHEAD_IN_BAGS, min(last + AHEAD_IN_BAGS, len(ids))):
        if ids[i] != NONE:
            ask_for_row(table, np.int64(ids[i]), D)
    sum_rows(table, D, ids, first, last, scales, target)


@borrower
def _ask_to_write_row(table, row, D):
    """Prefetch a row that will be written."""
    at = table + FLOAT_BYTES * row * D
    for line in range(0, FLOAT_BYTES * D, LINE_BYTES):
        prefetch_to_write(at + line)


@borrower
def ask_to_write(table, first, second, row, D):
    """Prefetch a row and its state."""
    _ask_to_write_row(table, row, D)
    if first:
        _ask_to_write_row(first, row, D)
    if second:
        _ask_to_write_row(second, row, D)


@helper
def _new_lanes(D):
    """(8 * WIDTH,) mask: 1 where 8 vectors that end with column D hold a column for the first time, else 0."""
    lanes = np.zeros(8 * WIDTH, np.float32)
    for v in range(8):
        for lane in range(WIDTH):
            if v * WIDTH <= min(v * WIDTH, D - WIDTH) + lane < D and v * WIDTH < D:
                lanes[v * WIDTH + lane] = ONE
    return lanes


@borrower
def _update_in_registers(rule, table, row, bags, first, last, scales, gradient, D, per_row, lanes):
    """Update a row by a step, if 8 vectors hold it: the sum of its gradients is never stored."""
    scaled = len(scales) > 0
    at_a, at_b, at_c, at_d = place(D, 0), place(D, WIDTH), place(D, 2 * WIDTH), place(D, 3 * WIDTH)
    at_e, at_f = place(D, 4 * WIDTH), place(D, 5 * WIDTH)
    at_g, at_h = place(D, 6 * WIDTH), place(D, 7 * WIDTH)
    sum_a, sum_b, sum_c, sum_d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    sum_e, sum_f, sum_g, sum_h = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
    for begin in range(first, last, SHORT_SUM):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        e, f, g, h = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(begin, min(last, begin + SHORT_SUM)):
            bag = np.int64(bags[i])
            at = gradient + FLOAT_BYTES * bag * D
            scale = scales[bag] if scaled else ONE
            a, b = a + load(at + at_a) * scale, b + load(at + at_b) * scale
            c, d = c + load(at + at_c) * scale, d + load(at + at_d) * scale
            e, f = e + load(at + at_e) * scale, f + load(at + at_f) * scale
            g, h = g + load(at + at_g) * scale, h + load(at + at_h) * scale
        sum_a, sum_b, sum_c, sum_d = sum_a + a, sum_b + b, sum_c + c, sum_d + d
        sum_e, sum_f, sum_g, sum_h = sum_e + e, sum_f + f, sum_g + g, sum_h + h
    mean_square = ZERO
    if rule["uses_mean_square"]:
        new = lanes.ctypes.data
        vector = FLOAT_BYTES * WIDTH
        square = sum_a * sum_a + sum_b * sum_b * load(new + vector)
        square = square + sum_c * sum_c * load(new + 2 * vector) + sum_d * sum_d * load(new + 3 * vector)
        square = square + sum_e * sum_e * load(new + 4 * vector) + sum_f * sum_f * load(new + 5 * vector)
        square = square + sum_g * sum_g * load(new + 6 * vector) + sum_h * sum_h * load(new + 7 * vector)
        mean_square = sum_of(square) / np.float32(D)
    step = row_numbers(rule, mean_square, per_row, row)[0]
    at = table + FLOAT_BYTES * row * D
    # All loads before the first store: the last vectors may overlap.
    a, b, c, d = load(at + at_a), load(at + at_b), load(at + at_c), load(at + at_d)
    e, f, g, h = load(at + at_e), load(at + at_f), load(at + at_g), load(at + at_h)
    store(a - sum_a * step, at + at_a)
    store(b - sum_b * step, at + at_b)
    store(c - sum_c * step, at + at_c)
    store(d - sum_d * step, at + at_d)
    store(e - sum_e * step, at + at_e)
    store(f - sum_f * step, at + at_f)
    store(g - sum_g * step, at + at_g)
    store(h - sum_h * step, at + at_h)


update_from_bags = Kernel(_update_from_bags, beside_torch=True)

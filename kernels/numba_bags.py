"""Bags of table rows on a CPU: gather and sum, gradients by unique row, and row-sparse optimizer steps.

A batch of B bags is a sparse matrix, given as ids (total,) and starts (B + 1,). Forward, its product with the table
(V, D); backward, the product of its transpose with the gradient of the bags (B, D). Both are `sum_rows`: over the
ids of every bag, or over the bags of every id, which sorting the ids (`group_ids`) brings together. Every row that the
batch touches is summed in the order of positions, whatever the number of threads, and updated once. Rows that it does
not touch cost nothing. An id of NONE stands for no row.

Addresses are of float32, contiguous.
"""

from __future__ import annotations

import numba
import numpy as np

from .numba_jit import Kernel, helper, pointer_to_float32
from .numba_simd import FLOAT_BYTES, WIDTH, load, prefetch, splat, store, sum_of
from .row_rules import ADAGRAD, ADAM, NONE, SGD

# A row's gradient may have a thousand terms. Short sums, added up, lose less to rounding than one long sum.
SHORT_SUM = 16
DIGIT_BITS = 11
AHEAD, BAGS_AHEAD = 4, 16  # rows and bags that are asked for before they are needed
LINE_BYTES = 64
ZERO, ONE = np.float32(0), np.float32(1)
HASH, LOW_HALF = np.uint64(2_654_435_769), np.uint64(0xFFFFFFFF)  # 2^32 over the golden ratio


# --- sums of rows ----------------------------------------------------------------------------------------


@helper
def sum_rows(source, D, rows, first, last, scales, target):
    """target (D,) = the sum over i in [first, last) of scales[rows[i]] * source[rows[i]]; no scales: of 1 each."""
    if D < WIDTH:
        _sum_narrow_rows(source, D, rows, first, last, scales, target)
        return
    column = 0
    while column < D:
        if D - column > 4 * WIDTH:
            _sum_eight_vectors(source, D, column, rows, first, last, scales, target)
            column += 8 * WIDTH
        elif D - column > WIDTH:
            _sum_four_vectors(source, D, column, rows, first, last, scales, target)
            column += 4 * WIDTH
        else:
            _sum_vector(source, D, D - WIDTH, rows, first, last, scales, target)
            column += WIDTH


@helper
def _place(D, column):
    """The byte offset of a vector of columns. Behind the end the last vector is meant: it comes out the same again."""
    return FLOAT_BYTES * min(column, D - WIDTH)


@helper
def _sum_eight_vectors(source, D, column, rows, first, last, scales, target):
    """sum_rows of 8 vectors from `column` on, held in registers."""
    scaled = len(scales) > 0
    at_a, at_b = _place(D, column), _place(D, column + WIDTH)
    at_c, at_d = _place(D, column + 2 * WIDTH), _place(D, column + 3 * WIDTH)
    at_e, at_f = _place(D, column + 4 * WIDTH), _place(D, column + 5 * WIDTH)
    at_g, at_h = _place(D, column + 6 * WIDTH), _place(D, column + 7 * WIDTH)
    for begin in range(first, max(last, first + 1), SHORT_SUM):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        e, f, g, h = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(begin, min(last, begin + SHORT_SUM)):
            row = np.int64(rows[i])
            if row != NONE:
                at = source + FLOAT_BYTES * row * D
                scale = scales[row] if scaled else ONE
                a, b = a + load(at + at_a) * scale, b + load(at + at_b) * scale
                c, d = c + load(at + at_c) * scale, d + load(at + at_d) * scale
                e, f = e + load(at + at_e) * scale, f + load(at + at_f) * scale
                g, h = g + load(at + at_g) * scale, h + load(at + at_h) * scale
        if begin > first:
            # All loads before the first store: the last vectors may lie over one another.
            a, b = a + load(target + at_a), b + load(target + at_b)
            c, d = c + load(target + at_c), d + load(target + at_d)
            e, f = e + load(target + at_e), f + load(target + at_f)
            g, h = g + load(target + at_g), h + load(target + at_h)
        store(a, target + at_a)
        store(b, target + at_b)
        store(c, target + at_c)
        store(d, target + at_d)
        store(e, target + at_e)
        store(f, target + at_f)
        store(g, target + at_g)
        store(h, target + at_h)


@helper
def _sum_four_vectors(source, D, column, rows, first, last, scales, target):
    """sum_rows of 4 vectors from `column` on, held in registers."""
    scaled = len(scales) > 0
    at_a, at_b = _place(D, column), _place(D, column + WIDTH)
    at_c, at_d = _place(D, column + 2 * WIDTH), _place(D, column + 3 * WIDTH)
    for begin in range(first, max(last, first + 1), SHORT_SUM):
        a, b, c, d = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for i in range(begin, min(last, begin + SHORT_SUM)):
            row = np.int64(rows[i])
            if row != NONE:
                at = source + FLOAT_BYTES * row * D
                scale = scales[row] if scaled else ONE
                a, b = a + load(at + at_a) * scale, b + load(at + at_b) * scale
                c, d = c + load(at + at_c) * scale, d + load(at + at_d) * scale
        if begin > first:
            a, b = a + load(target + at_a), b + load(target + at_b)
            c, d = c + load(target + at_c), d + load(target + at_d)
        store(a, target + at_a)
        store(b, target + at_b)
        store(c, target + at_c)
        store(d, target + at_d)


@helper
def _sum_vector(source, D, column, rows, first, last, scales, target):
    """sum_rows of the vector at `column`."""
    scaled = len(scales) > 0
    to = target + FLOAT_BYTES * column
    for begin in range(first, max(last, first + 1), SHORT_SUM):
        total = splat(ZERO)
        for i in range(begin, min(last, begin + SHORT_SUM)):
            row = np.int64(rows[i])
            if row != NONE:
                scale = scales[row] if scaled else ONE
                total = total + load(source + FLOAT_BYTES * (row * D + column)) * scale
        if begin > first:
            total = total + load(to)
        store(total, to)


@helper
def _sum_narrow_rows(source, D, rows, first, last, scales, target):
    """sum_rows of rows that do not fill a vector."""
    sums = np.zeros(D)
    for i in range(first, last):
        row = np.int64(rows[i])
        if row != NONE:
            values = numba.carray(pointer_to_float32(source + FLOAT_BYTES * row * D), (D,))
            scale = scales[row] if len(scales) else ONE
            for d in range(D):
                sums[d] += np.float64(values[d] * scale)
    total = numba.carray(pointer_to_float32(target), (D,))
    total[:] = sums


@helper
def _scale(target, D, factor):
    values = numba.carray(pointer_to_float32(target), (D,))
    for d in range(D):
        values[d] *= factor


@helper
def share(starts, p, n_splits):
    """The bags (first, last) of split p: about the same number of ids in each."""
    ids = starts[-1]
    first = np.searchsorted(starts, p * ids // n_splits) if p else 0
    last = np.searchsorted(starts, (p + 1) * ids // n_splits) if p + 1 < n_splits else len(starts) - 1
    return first, last


def _sum_bags(source, D, ids, starts, scales, bag_scales, target, n_splits):  # type: ignore[no-untyped-def]
    """target (B, D): sum_rows of every bag, times bag_scales (B,) if there are any."""
    for p in numba.prange(n_splits):
        first, last = share(starts, p, n_splits)
        for bag in range(first, last):
            to = target + FLOAT_BYTES * bag * D
            sum_rows(source, D, ids, starts[bag], starts[bag + 1], scales, to)
            if len(bag_scales):
                _scale(to, D, bag_scales[bag])


sum_bags = Kernel(_sum_bags)


# --- ids -------------------------------------------------------------------------------------------------


@helper
def first_outside(ids, V):
    """The position of the first id that is neither NONE nor in [0, V), or -1."""
    outside = 0
    for i in range(len(ids)):
        outside += np.int64(ids[i] >= V or ids[i] < NONE)
    if outside:
        for i in range(len(ids)):
            if ids[i] >= V or ids[i] < NONE:
                return i
    return -1


@helper
def is_ascending(rows):
    """Whether every row is larger than the one before."""
    steps = 0
    for i in range(1, len(rows)):
        steps += np.int64(rows[i] > rows[i - 1])
    return steps >= len(rows) - 1


@helper
def mean_scales(ids, starts):
    """(B,) 1 over the ids of every bag that are not NONE; 0 for a bag without any."""
    scales = np.zeros(len(starts) - 1, np.float32)
    for bag in range(len(scales)):
        count = 0
        for i in range(starts[bag], starts[bag + 1]):
            count += np.int64(ids[i] != NONE)
        if count:
            scales[bag] = ONE / np.float32(count)
    return scales


@helper
def take_bags(ids, bounds, bags):
    """(ids (total,), starts (len(bags) + 1,)) of some bags; bag b is ids[bounds[b]:bounds[b + 1]]."""
    starts = np.zeros(len(bags) + 1, np.int64)
    for i in range(len(bags)):
        starts[i + 1] = starts[i] + bounds[bags[i] + 1] - bounds[bags[i]]
    taken = np.empty(starts[-1], np.int32)
    source = ids.ctypes.data
    for i in range(len(bags)):
        if i + BAGS_AHEAD < len(bags):
            next_bag = bags[i + BAGS_AHEAD]
            for position in range(bounds[next_bag], bounds[next_bag + 1], LINE_BYTES // ids.itemsize):
                prefetch(source + ids.itemsize * position)
        taken[starts[i] : starts[i + 1]] = ids[bounds[bags[i]] : bounds[bags[i] + 1]]
    return taken, starts


@helper
def _part_of(row, parts):
    """Which of the parts an id belongs to: a hash by multiplication, as a remainder takes longer than a sort's pass."""
    return np.int64(((np.uint64(row) * HASH & LOW_HALF) * np.uint64(parts)) >> np.uint64(32))


@helper
def group_ids(ids, largest, part, parts):
    """(order, unique, starts): positions of the ids by id, ids ascending, positions ascending within one.

    unique (U,) are the ids, NONE left out; order[starts[u] : starts[u + 1]] the positions of unique[u]. With
    parts > 1 only the ids of one part. A radix sort: no array as long as the table.
    """
    return group_bags(ids, np.arange(len(ids) + 1), largest, part, parts)


@helper
def group_bags(ids, bounds, largest, part, parts):
    """group_ids with the bag of a position in place of the position; bounds (B + 1,) are of the bags."""
    keys = np.empty(len(ids) + 1, np.uint64)
    n = 0
    for bag in range(len(bounds) - 1):
        for i in range(bounds[bag], bounds[bag + 1]):
            row = np.int64(ids[i])
            # Written in any case and kept or not: which it is could not be predicted.
            keys[n] = (np.uint64(row) << np.uint64(32)) | np.uint64(bag)
            n += np.int64((row != NONE) & (_part_of(row, parts) == part))
    keys = _sorted(keys[:n], largest)
    bags, unique, starts = np.empty(n, np.int32), np.empty(n + 1, np.int32), np.empty(n + 1, np.int64)
    U, before = 0, np.int32(NONE)
    for i in range(n):
        row = np.int32(keys[i] >> np.uint64(32))
        bags[i] = np.int32(keys[i] & LOW_HALF)
        # Written in any case, and over again unless the row is a new one.
        starts[U] = i
        unique[U] = row
        U += np.int64(row != before)
        before = row
    starts[U] = n
    return bags, unique[:U], starts[: U + 1]


@helper
def _sorted(keys, largest):
    """Keys by their upper halves, stable, by digits from the lowest on."""
    bits = 1
    while (largest >> bits) > 0:
        bits += 1
    passes = -(-bits // DIGIT_BITS)
    digit = -(-bits // passes)
    buckets = 1 << digit
    other = np.empty_like(keys)
    for k in range(passes):
        shift, mask = np.uint64(32 + k * digit), np.uint64(buckets - 1)
        ends = np.zeros(buckets + 1, np.int64)
        for i in range(len(keys)):
            ends[np.int64((keys[i] >> shift) & mask) + 1] += 1
        for b in range(buckets):
            ends[b + 1] += ends[b]
        for i in range(len(keys)):
            b = np.int64((keys[i] >> shift) & mask)
            other[ends[b]] = keys[i]
            ends[b] += 1
        keys, other = other, keys
    return keys


@helper
def unique_and_inverse(ids, largest):
    """(unique (U,), inverse (total,)): unique[inverse] are the ids; NONE stays NONE."""
    order, unique, starts = group_ids(ids, largest, 0, 1)
    inverse = np.full(len(ids), np.int32(NONE))
    for u in range(len(unique)):
        for i in range(starts[u], starts[u + 1]):
            inverse[order[i]] = u
    return unique, inverse


# --- the rows' optimizers --------------------------------------------------------------------------------


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


@helper
def _adam(row, gradient, D, first, second, steps, lr, beta1, beta2, eps):
    """Adam of one row, its bias corrections by the steps of that row: a rare row's first step is a first step."""
    # As in torch: the powers in float64, or beta2^n of a young row would lose its digits.
    correction1 = 1.0 - beta1 ** np.float64(steps)
    correction2 = np.sqrt(1.0 - beta2 ** np.float64(steps))
    step, inverse = np.float32(np.float64(lr) / correction1), np.float32(1.0 / correction2)
    values = numba.carray(pointer_to_float32(row), (D,))
    g = numba.carray(pointer_to_float32(gradient), (D,))
    m, v = numba.carray(pointer_to_float32(first), (D,)), numba.carray(pointer_to_float32(second), (D,))
    # In memory, or (new2 * g) * g and new2 * (g * g) are the compiler's to choose between: it chose otherwise where the
    # kernel was loaded from Numba's cache, and a resumed run ended with other bits.
    squares = np.empty(D, np.float32)
    for d in range(D):
        squares[d] = g[d] * g[d]
    old1, new1 = np.float32(beta1), np.float32(1.0 - beta1)
    old2, new2 = np.float32(beta2), np.float32(1.0 - beta2)
    for d in range(D):
        m[d] = old1 * m[d] + new1 * g[d]
        v[d] = old2 * v[d] + new2 * squares[d]
        values[d] -= step * m[d] / (np.sqrt(v[d]) * inverse + eps)


@helper
def update_row(rule, table, row, gradient, D, per_row, first, second):
    """One step of a row of the table (V, D) by its gradient (D,); rule is a record of row_rules.RULE_RECORD.

    per_row (V,) are Adagrad's sums or Adam's steps, first and second (V, D) the addresses of Adam's moments.
    """
    kind, lr, eps = rule["kind"], rule["lr"], rule["eps"]
    offset = FLOAT_BYTES * row * D
    if kind == SGD:
        _move(table + offset, gradient, D, lr)
    elif kind == ADAGRAD:
        per_row[row] += _mean_square(gradient, D)
        _move(table + offset, gradient, D, lr / (np.sqrt(per_row[row]) + eps))
    else:
        per_row[row] += ONE
        _adam(
            table + offset, gradient, D, first + offset, second + offset, per_row[row], lr, rule["beta1"],
            rule["beta2"], eps,
        )  # fmt: skip


def _update_rows(rule, table, rows, gradient, D, per_row, first, second, n_splits):  # type: ignore[no-untyped-def]
    """A step of the rows (U,), each there once, by their gradients (U, D); rule (1,)."""
    for p in numba.prange(n_splits):
        for u in range(p * len(rows) // n_splits, (p + 1) * len(rows) // n_splits):
            at = gradient + FLOAT_BYTES * u * D
            update_row(rule[0], table, np.int64(rows[u]), at, D, per_row, first, second)


update_rows = Kernel(_update_rows)


def _update_from_bags(rule, table, V, ids, starts, scales, gradient, D, per_row, first, second, n_splits):  # type: ignore[no-untyped-def]
    """A step of all rows in the bags by the gradient of the bags (B, D), which is never spread over the rows.

    scales (B,) are of the bags, or empty. Every split has rows of its own, so none waits for another.
    """
    for p in numba.prange(n_splits):
        update_part(rule[0], table, V, ids, starts, scales, gradient, D, per_row, first, second, p, n_splits)


@helper
def update_part(rule, table, V, ids, starts, scales, gradient, D, per_row, first, second, part, parts):
    """A step of the rows that are of this part."""
    bags, unique, begins = group_bags(ids, starts, V - 1, part, parts)
    if WIDTH <= D <= 8 * WIDTH and rule["kind"] != ADAM:
        lanes = _new_lanes(D)
        for u in range(len(unique)):
            _ask_for(table, unique, u + AHEAD, D)
            _update_in_registers(
                rule, table, np.int64(unique[u]), bags, begins[u], begins[u + 1], scales, gradient, D,
                per_row, lanes,
            )  # fmt: skip
        return
    sums = np.empty((1, D + WIDTH), np.float32)
    for u in range(len(unique)):
        _update_by_sum(
            rule, table, np.int64(unique[u]), bags, begins[u], begins[u + 1], scales, gradient, D,
            per_row, first, second, sums,
        )  # fmt: skip


@helper
def _ask_for(table, rows, u, D):
    """Have row rows[u], if there is one, on its way into cache."""
    if u < len(rows):
        row = table + FLOAT_BYTES * np.int64(rows[u]) * D
        for line in range(0, FLOAT_BYTES * D, LINE_BYTES):
            prefetch(row + line)


@helper
def _new_lanes(D):
    """(8 * WIDTH,) 1 where 8 vectors that end with column D hold a column for the first time, else 0."""
    lanes = np.zeros(8 * WIDTH, np.float32)
    for v in range(8):
        for lane in range(WIDTH):
            if v * WIDTH <= min(v * WIDTH, D - WIDTH) + lane < D and v * WIDTH < D:
                lanes[v * WIDTH + lane] = ONE
    return lanes


@helper
def _update_in_registers(rule, table, row, bags, first, last, scales, gradient, D, per_row, lanes):
    """_update_by_sum for SGD and Adagrad of rows that 8 vectors hold: their sum is never written down."""
    scaled = len(scales) > 0
    at_a, at_b, at_c, at_d = _place(D, 0), _place(D, WIDTH), _place(D, 2 * WIDTH), _place(D, 3 * WIDTH)
    at_e, at_f = _place(D, 4 * WIDTH), _place(D, 5 * WIDTH)
    at_g, at_h = _place(D, 6 * WIDTH), _place(D, 7 * WIDTH)
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
    step = rule["lr"]
    if rule["kind"] == ADAGRAD:
        new = lanes.ctypes.data
        vector = FLOAT_BYTES * WIDTH
        square = sum_a * sum_a + sum_b * sum_b * load(new + vector)
        square = square + sum_c * sum_c * load(new + 2 * vector) + sum_d * sum_d * load(new + 3 * vector)
        square = square + sum_e * sum_e * load(new + 4 * vector) + sum_f * sum_f * load(new + 5 * vector)
        square = square + sum_g * sum_g * load(new + 6 * vector) + sum_h * sum_h * load(new + 7 * vector)
        per_row[row] += sum_of(square) / np.float32(D)
        step = step / (np.sqrt(per_row[row]) + rule["eps"])
    at = table + FLOAT_BYTES * row * D
    # All loads before the first store: the last vectors may lie over one another.
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


@helper
def _update_by_sum(
    rule, table, row, bags, first_bag, last_bag, scales, gradient, D, per_row, first, second, sums
):
    # The address is taken where `sums` is an argument: it outlives the call.
    total = sums.ctypes.data
    sum_rows(gradient, D, bags, first_bag, last_bag, scales, total)
    update_row(rule, table, row, total, D, per_row, first, second)


update_from_bags = Kernel(_update_from_bags)

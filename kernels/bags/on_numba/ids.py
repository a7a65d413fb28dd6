"""Ids of bags on a CPU: check them against a table, select some bags, and group ids by row.

Grouping is a radix sort of the batch, so its cost depends on the batch, not on the length of the table.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import entry, helper
from ...machine.simd import prefetch
from ...machine.team import Kernel, in_parallel
from ..batch import NONE

DIGIT_BITS = 11
BAGS_AHEAD = 16  # bags that are prefetched
LINE_BYTES = 64
BLOCK, SHARED_OUT = 16, 64
ONE = np.float32(1)
HASH, LOW_HALF = np.uint64(2_654_435_769), np.uint64(0xFFFFFFFF)  # 2^32 over the golden ratio


@entry
def first_outside(ids, V):
    """Return the position of the first id that is neither NONE nor in [0, V), or -1."""
    outside = 0
    for i in range(len(ids)):
        outside += np.int64(ids[i] >= V or ids[i] < NONE)
    if outside:
        for i in range(len(ids)):
            if ids[i] >= V or ids[i] < NONE:
                return i
    return -1


@entry
def is_ascending(rows):
    """Whether every row is larger than the one before."""
    steps = 0
    for i in range(1, len(rows)):
        steps += np.int64(rows[i] > rows[i - 1])
    return steps >= len(rows) - 1


@entry
def mean_scales(ids, starts):
    """Return 1 over the number of ids of every bag that are not NONE, (B,); 0 for a bag without any."""
    scales = np.zeros(len(starts) - 1, np.float32)
    for bag in range(len(scales)):
        count = 0
        for i in range(starts[bag], starts[bag + 1]):
            count += np.int64(ids[i] != NONE)
        if count:
            scales[bag] = ONE / np.float32(count)
    return scales


@entry
def take_bags(ids, bounds, bags):
    """Gather some bags: (ids (total,), starts (len(bags) + 1,)); bag b is ids[bounds[b]:bounds[b + 1]]."""
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
        # Not by slices: an array assignment also compiles Numba's message about shapes, which takes seconds.
        begin, shift = starts[i], bounds[bags[i]] - starts[i]
        for position in range(begin, starts[i + 1]):
            taken[position] = ids[position + shift]
    return taken, starts


@helper
def part_of(row, parts):
    """Return the part of an id, by a multiplicative hash: a remainder would take longer than a pass of the sort.

    Ids of a block stay together, or two threads would write to the same cache lines: BLOCK rows of float32 fill whole
    lines whatever their length, and so do BLOCK numbers of state. The first ids are hashed one by one: they are the
    most frequent ones, and a few of them may be half of a batch.
    """
    block = row // BLOCK if row >= SHARED_OUT else -1 - row
    return np.int64(((np.uint64(block) * HASH & LOW_HALF) * np.uint64(parts)) >> np.uint64(32))


@entry
def group_bags(ids, bounds, largest, part, parts):
    """Group bags by the ids in them: (bags, unique, starts), with ids ascending, and bags ascending within an id.

    bounds (B + 1,) delimit the bags. unique (U,): the ids without NONE. bags[starts[u] : starts[u + 1]]: the bags of
    unique[u], one for each time that it is in them. With parts > 1, only the ids of one part. A radix sort: no array
    is as long as the table.
    """
    keys = np.empty(bounds[-1] - bounds[0] + 1, np.uint64)
    n = 0
    for bag in range(len(bounds) - 1):
        for i in range(bounds[bag], bounds[bag + 1]):
            row = np.int64(ids[i])
            # Branch-free: always written, then kept or not, as the branch would be unpredictable.
            keys[n] = (np.uint64(row) << np.uint64(32)) | np.uint64(bag)
            n += np.int64((row != NONE) & (part_of(row, parts) == part))
    keys = sort_keys(keys[:n], largest)
    bags, unique, starts = np.empty(n, np.int32), np.empty(n + 1, np.int32), np.empty(n + 1, np.int64)
    U, before = 0, np.int32(NONE)
    for i in range(n):
        row = np.int32(keys[i] >> np.uint64(32))
        bags[i] = np.int32(keys[i] & LOW_HALF)
        # Always written, and overwritten unless the row is a new one.
        starts[U] = i
        unique[U] = row
        U += np.int64(row != before)
        before = row
    starts[U] = n
    return bags, unique[:U], starts[: U + 1]


@helper
def sort_keys(keys, largest):
    """Sort keys by their upper halves, stably, digit by digit from the lowest one."""
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


@entry
def unique_and_inverse(ids, largest):
    """Return (unique (U,), inverse (total,)): unique[inverse] are the ids; NONE stays NONE."""
    order, unique, starts = group_bags(ids, np.arange(len(ids) + 1), largest, 0, 1)
    inverse = np.full(len(ids), np.int32(NONE))
    for u in range(len(unique)):
        for i in range(starts[u], starts[u + 1]):
            inverse[order[i]] = u
    return unique, inverse


# --- a batch by part and by row --------------------------------------------------------------------------


@helper
def _count_part(p, ids, ends):
    ends[p + 1] = _count_of_part(ids, p, len(ends) - 1)


@helper
def _fill_part(p, ids, starts, ends, of_parts, starts_of_parts):
    part_ids, part_starts = _ids_of_part(ids, starts, p, len(ends) - 1, ends[p + 1] - ends[p])
    of_parts[ends[p] : ends[p + 1]] = part_ids
    starts_of_parts[p] = part_starts + ends[p]


def _split_by_part(team, ids, starts, n_parts):  # type: ignore[no-untyped-def]
    """Split the bags by part: (ids (total,), starts (n_parts, B + 1)), for every part all bags with only its ids."""
    B = len(starts) - 1
    ends = np.zeros(n_parts + 1, np.int64)
    in_parallel(team, n_parts, _count_part, (ids, ends))
    for p in range(n_parts):
        ends[p + 1] += ends[p]
    of_parts, starts_of_parts = np.empty(ends[-1], np.int32), np.empty((n_parts, B + 1), np.int64)
    in_parallel(team, n_parts, _fill_part, (ids, starts, ends, of_parts, starts_of_parts))
    return of_parts, starts_of_parts


split_by_part = Kernel(_split_by_part)


@helper
def _ids_of_part(ids, starts, part, n_parts, n):
    """Return (ids (n,), starts (B + 1,)): every bag's ids that belong to the part."""
    # One extra element: ids of other parts are written too, then overwritten by the next id.
    kept, kept_starts = np.empty(n + 1, np.int32), np.empty(len(starts), np.int64)
    n = 0
    for bag in range(len(starts) - 1):
        kept_starts[bag] = n
        for i in range(starts[bag], starts[bag + 1]):
            kept[n] = ids[i]
            n += np.int64((ids[i] != NONE) & (part_of(np.int64(ids[i]), n_parts) == part))
    kept_starts[-1] = n
    return kept[:n], kept_starts


@helper
def _count_of_part(ids, part, n_parts):
    n = 0
    for i in range(len(ids)):
        n += np.int64((ids[i] != NONE) & (part_of(np.int64(ids[i]), n_parts) == part))
    return n


@helper
def _transpose_part(p, ids, starts, largest, bags, sparse_rows, sparse_begins, counts):
    first = starts[p, 0]
    of_part, unique, begins = group_bags(ids, starts[p], largest, 0, 1)
    counts[p] = len(unique)
    bags[first : first + len(of_part)] = of_part
    sparse_rows[first : first + counts[p]] = unique
    sparse_begins[first + p : first + p + counts[p] + 1] = begins + first


def _transposed(team, ids, starts, largest):  # type: ignore[no-untyped-def]
    """Transpose to (rows (U,), begins (U + 1,), bags (total,), parts (n_parts + 1,)).

    rows[u] is in the bags bags[begins[u] : begins[u + 1]].

    ids and starts (n_parts, B + 1) are of parts with disjoint rows, as made by `split_by_part`, or of a single part
    whose ids may be NONE. Part p has the rows parts[p] to parts[p + 1], ascending.
    """
    n_parts, n = len(starts), starts[-1, -1]
    # Op for as many rows per part as it has ids: the number of distinct ones is not known yet.
    bags, sparse_rows, sparse_begins = (
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(n + n_parts, np.int64),
    )
    counts = np.zeros(n_parts, np.int64)
    in_parallel(
        team, n_parts, _transpose_part, (ids, starts, largest, bags, sparse_rows, sparse_begins, counts)
    )
    parts = np.zeros(n_parts + 1, np.int64)
    parts[1:] = np.cumsum(counts)
    rows, begins = np.empty(parts[-1], np.int32), np.empty(parts[-1] + 1, np.int64)
    for p in range(n_parts):
        first = starts[p, 0]
        rows[parts[p] : parts[p + 1]] = sparse_rows[first : first + counts[p]]
        begins[parts[p] : parts[p + 1] + 1] = sparse_begins[first + p : first + p + counts[p] + 1]
    return rows, begins, bags[: begins[-1]], parts


transposed = Kernel(_transposed)

"""Local numbering of the words of a batch of context prediction."""

from __future__ import annotations

import numpy as np

from ...machine.jit import entry, helper

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
NONE = -1


@helper
def _number(values, keys, numbers, types, n_types, ids):
    """ids[i] = the number of values[i]; append new values to types. Returns the number of types so far."""
    mask = len(keys) - 1
    for i in range(len(values)):
        at = np.int64((np.uint64(values[i]) * _GOLDEN) >> _HALF) & mask
        while keys[at] != NONE and keys[at] != values[i]:
            at = (at + 1) & mask
        if keys[at] == NONE:
            keys[at] = values[i]
            numbers[at] = n_types
            types[n_types] = values[i]
            n_types += 1
        ids[i] = numbers[at]
    return n_types


@entry
def number_words(words, drawn, word_ids, drawn_ids):
    """Return (types (U,) int64, n_kept): the distinct words, those of `words` first, in order of appearance.

    word_ids and drawn_ids are set to the numbers of words (N,) and drawn (n,); all are int32, and no word is negative.
    """
    total = len(words) + len(drawn)
    size = 16
    while size < 2 * total:
        size *= 2
    keys, numbers = np.full(size, NONE, np.int32), np.empty(size, np.int32)
    types = np.empty(total, np.int64)
    n_kept = _number(words, keys, numbers, types, 0, word_ids)
    U = _number(drawn, keys, numbers, types, n_kept, drawn_ids)
    return types[:U].copy(), n_kept

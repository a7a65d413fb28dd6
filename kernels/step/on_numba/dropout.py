"""Dropout on a CPU by a generator that counts: what a number is depends on its place alone, not on who draws it.

A place is hashed by the finalizer of SplitMix64 (Steele, Lea and Flood 2014) over the key plus a multiple of the golden
ratio; 64 bits give four numbers of 16. So the same key gives the same bits on any number of threads.
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import entry, helper

GOLDEN, FIRST, SECOND = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
PART_BITS, PARTS = 16, 4
PART = np.uint64((1 << PART_BITS) - 1)
ZERO = np.float32(0)


@helper
def draw_factors(factors, n, key, row, threshold, kept):
    """factors (n,) = 0 with probability threshold / 2^16, else kept: those of a row of n numbers under a key."""
    n_words = -(-n // PARTS)
    begin = np.uint64(row) * np.uint64(n_words)
    # Part b of word q is column b * n_words + q: neighbours are written together.
    for q in range(n_words):
        word = key + (begin + np.uint64(q)) * GOLDEN
        word = (word ^ (word >> np.uint64(30))) * FIRST
        word = (word ^ (word >> np.uint64(27))) * SECOND
        word ^= word >> np.uint64(31)
        for b in range(PARTS):
            column = b * n_words + q
            if column < n:
                part = (word >> np.uint64(PART_BITS * b)) & PART
                factors[column] = kept if part >= threshold else ZERO


@entry
def factors_of(rows, n, key, threshold, kept):
    """(rows, n) float32: all factors of a batch under a key, as a step draws them."""
    factors = np.empty((rows, n), np.float32)
    for row in range(rows):
        draw_factors(factors[row], n, key, row, threshold, kept)
    return factors

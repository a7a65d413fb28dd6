"""Dropout on a CPU with a counter-based generator: numbers depend only on their position, not on the thread.

A position is hashed by the finalizer of SplitMix64 (Steele, Lea and Flood 2014), applied to the key plus a multiple of
the golden ratio; each 64-bit word gives four 16-bit numbers. So the same key gives the same bits on any number of
threads.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ...machine.jit import entry, helper
from ..common import Dropout

GOLDEN, FIRST, SECOND = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
PART_BITS, PARTS = 16, 4
PART = np.uint64((1 << PART_BITS) - 1)
ZERO = np.float32(0)


class Drop(NamedTuple):
    """Dropout in the form that kernels take: see draw_factors. A threshold of 0 drops nothing."""

    key: np.uint64
    threshold: np.uint64
    kept: np.float32


def drop_of(dropout: Dropout) -> Drop:
    """Convert dropout to the form that kernels take."""
    return Drop(np.uint64(dropout.key), *_threshold_and_kept(dropout.probability))


@lru_cache(maxsize=64)
def _threshold_and_kept(probability: float) -> tuple[np.uint64, np.float32]:
    threshold = min(round(probability * (1 << PART_BITS)), 1 << PART_BITS)
    kept = 0.0 if probability >= 1 else 1.0 / (1.0 - probability)
    return np.uint64(threshold), np.float32(kept)


@helper
def words_of(n):
    """Number of words drawn for a row of n numbers."""
    return -(-n // PARTS)


@helper
def draw_factors(factors, n, key, row, threshold, kept, words):
    """factors (n,) = 0 with probability threshold / 2^16, else kept: the factors of one row of n numbers under a key.

    words (words_of(n),) is scratch. Part b of word q is number b * len(words) + q, so that writes are contiguous and
    every loop vectorizes.
    """
    n_words = len(words)
    begin = np.uint64(row) * np.uint64(n_words)
    for q in range(n_words):
        word = key + (begin + np.uint64(q)) * GOLDEN
        word = (word ^ (word >> np.uint64(30))) * FIRST
        word = (word ^ (word >> np.uint64(27))) * SECOND
        words[q] = word ^ (word >> np.uint64(31))
    for b in range(PARTS):
        shift = np.uint64(PART_BITS * b)
        part_of = factors[b * n_words : min(n, (b + 1) * n_words)]
        for q in range(len(part_of)):
            part_of[q] = kept if ((words[q] >> shift) & PART) >= threshold else ZERO


@entry
def factors_of(rows, n, key, threshold, kept):
    """Return all factors (rows, n) float32 of a batch under a key, as a step draws them."""
    factors, words = np.empty((rows, n), np.float32), np.empty(words_of(n), np.uint64)
    for row in range(rows):
        draw_factors(factors[row], n, key, row, threshold, kept, words)
    return factors

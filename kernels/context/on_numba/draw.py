"""What a step of context prediction draws: kept words, windows and negatives, as functions of a key and a position.

There is no generator state: a number is the hash of its position in the stream, so training resumes anywhere, and the
number of threads does not change what is drawn.

    kept with probability  sqrt(t / n) + t / n    for a word seen n times, t = sample * all words (word2vec's)
    window                 uniform in 1..window, or always that wide, over kept words of the same sentence
    negatives              proportional to counts^0.75, by Walker's alias table
"""

from __future__ import annotations

import numpy as np

from ...machine.jit import entry, exact_entry

_U64 = np.uint64
_GOLDEN, _MULTIPLY_1, _MULTIPLY_2 = (
    _U64(0x9E3779B97F4A7C15),
    _U64(0xBF58476D1CE4E5B9),
    _U64(0x94D049BB133111EB),
)
_30, _27, _31, _32 = _U64(30), _U64(27), _U64(31), _U64(32)
_LOW = _U64(0xFFFFFFFF)


@exact_entry
def hashed(key, place):
    """64 random bits (splitmix64) for a position in the stream of a key, both uint64."""
    z = key + _GOLDEN * (place + _U64(1))
    z = (z ^ (z >> _30)) * _MULTIPLY_1
    z = (z ^ (z >> _27)) * _MULTIPLY_2
    return z ^ (z >> _31)


@entry
def draw_positions(tokens, bounds, first, last, keep, key, reach, words, low, high):
    """Draw the kept words of tokens[first:last] and their windows; return how many are kept.

    tokens: int32 (T,), negative = not in the vocabulary; sentence u is tokens[bounds[u]:bounds[u + 1]].
    keep: uint32 (V,); times 2^-32 it is the probability to keep a word. reach: (window, whether it shrinks).
    Kept word i is stored in words[i]; its window is low[i] to high[i], itself included.
    """
    n = 0
    sentence = np.searchsorted(bounds, first, side="right") - 1
    at = first
    window, shrink = reach
    span = _U64(window)
    while at < last:
        end = min(bounds[sentence + 1], last)
        start = n
        for t in range(at, end):
            word = tokens[t]
            if word < 0:
                continue
            bits = hashed(key, _U64(t))
            if (bits & _LOW) > _U64(keep[word]):
                continue
            around = 1 + np.int64(((bits >> _32) * span) >> _32) if shrink else window
            words[n] = word
            low[n] = max(start, n - around)
            high[n] = n + around + 1
            n += 1
        for i in range(max(start, n - window), n):
            high[i] = min(high[i], n)
        at = end
        sentence += 1
    return n


@entry
def draw_negatives(key, first, accept, alias, drawn, n):
    """Draw n words into drawn (n,) for the shard that begins at token `first`: accept uint32 (V,), alias int32 (V,)."""
    own_key = hashed(key, _U64(first) ^ _U64(1 << 63))
    V = _U64(len(accept))
    for k in range(n):
        bits = hashed(own_key, _U64(k))
        word = np.int64(((bits >> _32) * V) >> _32)
        drawn[k] = alias[word] if (bits & _LOW) > _U64(accept[word]) else word


@exact_entry
def alias_table(shares, accept, alias):
    """Fill Walker's table for shares float64 (V,) that sum to 1 (A. J. Walker, 1977)."""
    V = len(shares)
    scaled = shares * V
    small, large = np.empty(V, np.int64), np.empty(V, np.int64)
    n_small = n_large = 0
    for word in range(V):
        alias[word] = word
        accept[word] = 0xFFFFFFFF
        if scaled[word] < 1.0:
            small[n_small] = word
            n_small += 1
        else:
            large[n_large] = word
            n_large += 1
    while n_small and n_large:
        less, more = small[n_small - 1], large[n_large - 1]
        n_small -= 1
        accept[less] = np.uint32(scaled[less] * 4294967295.0)
        alias[less] = more
        scaled[more] -= 1.0 - scaled[less]
        if scaled[more] < 1.0:
            n_large -= 1
            small[n_small] = more
            n_small += 1

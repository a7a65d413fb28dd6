"""What walkers over a text draw on a GPU: kept words, the windows around them, and negatives.

As in on_numba/draw.py, but from a counter-based generator (Philox) whose counters are the positions of words in the
text: the same draws in every run and with any number of walkers.

    context_keep_kernel   the kept words of every stretch of STRETCH raw words, compacted, with sentence and reach
    context_rows_kernel   the rows that every kept word is scored against, and the weight of each
"""

from __future__ import annotations

import triton
import triton.language as tl

KEEP_DRAWS: tl.constexpr = tl.constexpr(0)  # streams of one key
NEGATIVE_DRAWS: tl.constexpr = tl.constexpr(1)
NO_ROW: tl.constexpr = tl.constexpr(-1)
REACHES: tl.constexpr = tl.constexpr(256)  # a place is REACHES * its sentence in the stretch + the reach


@triton.jit
def _random(key_low, key_high, o_place, stretch, stream: tl.constexpr):
    """Return two sets of 32 random bits for every position of a stretch of the text."""
    seed = (key_high.to(tl.uint64) << 32) | key_low.to(tl.uint64)
    b_zero = tl.zeros_like(o_place)
    b_first, b_second, _, _ = tl.philox(seed, o_place, b_zero + stretch, b_zero + stream, b_zero)
    return b_first, b_second


@triton.jit
def _below(b_bits, n):
    """Map 32 random bits to a uniform integer in 0..n - 1."""
    return ((b_bits.to(tl.uint64) * n.to(tl.uint64)) >> 32).to(tl.int32)


@triton.jit(do_not_specialize=["n_tokens", "first_stretch", "window", "key_low", "key_high"])
def context_keep_kernel(
    p_tokens,  # (n_tokens,) int32, negative = not in the vocabulary
    p_starts,  # (n_tokens,) int8, 1 where a sentence starts
    p_keep,  # (V,) int32, the bits of a uint32: probability to keep a word times 2^32
    p_words,  # (stretches STRETCH,) int32: the kept words of a stretch, at its beginning
    p_places,  # (stretches STRETCH,) int32
    p_counts,  # (stretches,) int32
    n_tokens,
    first_stretch,  # index of the launch's first stretch in the text
    window,
    key_low,
    key_high,
    STRETCH: tl.constexpr,
):
    """One program: one stretch."""
    i_s = tl.program_id(0)
    o_t = tl.arange(0, STRETCH)
    begin = i_s.to(tl.int64) * STRETCH
    o_token = begin + o_t
    m_token = o_token < n_tokens
    b_word = tl.load(p_tokens + o_token, mask=m_token, other=-1)
    b_sentence = tl.cumsum(tl.load(p_starts + o_token, mask=m_token, other=0).to(tl.int32), axis=0)
    b_first, b_second = _random(key_low, key_high, o_t, first_stretch + i_s, KEEP_DRAWS)
    b_keep = tl.load(p_keep + b_word, mask=b_word >= 0, other=0).to(tl.uint32, bitcast=True)
    m_kept = (b_word >= 0) & (b_first <= b_keep)
    b_reach = 1 + _below(b_second, window)
    b_kept = m_kept.to(tl.int32)
    o_kept = begin + tl.cumsum(b_kept, axis=0) - 1
    tl.store(p_words + o_kept, b_word, mask=m_kept)
    tl.store(p_places + o_kept, b_sentence * REACHES + b_reach, mask=m_kept)
    tl.store(p_counts + i_s, tl.sum(b_kept, axis=0))


@triton.jit
def _around(p_words, p_places, o_i, m_i, b_place, o_u, begin, n, WINDOW: tl.constexpr):
    """Return the words around positions o_i of the n kept ones from `begin` on; NO_ROW outside windows.

    The result is (positions, lanes). b_place are the positions' places; lane u is o_i - WINDOW + u, without o_i itself.
    """
    o_shift = o_u - WINDOW
    o_shift = tl.where(o_shift >= 0, o_shift + 1, o_shift)
    o_j = o_i[:, None] + o_shift[None, :]
    m_j = m_i[:, None] & (o_u < 2 * WINDOW)[None, :] & (o_j >= 0) & (o_j < n)
    m_j = m_j & (tl.abs(o_shift)[None, :] <= (b_place % REACHES)[:, None])
    b_other = tl.load(p_places + begin + o_j, mask=m_j, other=-1)
    m_j = m_j & (b_other // REACHES == (b_place // REACHES)[:, None])
    return tl.load(p_words + begin + o_j, mask=m_j, other=NO_ROW)


@triton.jit(do_not_specialize=["first_stretch", "V", "key_low", "key_high"])
def context_rows_kernel(
    p_words,  # (stretches STRETCH,) int32
    p_places,  # (stretches STRETCH,) int32
    p_counts,  # (stretches,) int32
    p_accept,  # (V,) int32, the bits of a uint32, and
    p_alias,  # (V,) int32: Walker's table
    p_rows,  # (stretches STRETCH, R) int32: the output rows of every position, padded with NO_ROW
    p_shares,  # (stretches STRETCH, R) float32: their weights
    p_window,  # (stretches STRETCH, A) int32: CBOW's input rows
    p_pairs,  # (stretches STRETCH,) int32: the number of pairs of every position
    first_stretch,
    V,
    each,  # the weight of a negative for a pair
    key_low,
    key_high,
    STRETCH: tl.constexpr,
    WINDOW: tl.constexpr,
    CBOW: tl.constexpr,
    R: tl.constexpr,
    A: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK positions of one stretch."""
    i_s = tl.program_id(0)
    o_i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    begin = i_s.to(tl.int64) * STRETCH
    n = tl.load(p_counts + i_s)
    m_i = o_i < n
    o_r = tl.arange(0, R)
    b_place = tl.load(p_places + begin + o_i, mask=m_i, other=0)
    o_draw = o_i[:, None] * R + o_r[None, :]
    b_first, b_second = _random(key_low, key_high, o_draw, first_stretch + i_s, NEGATIVE_DRAWS)
    b_drawn = _below(b_first, V)
    b_accept = tl.load(p_accept + b_drawn).to(tl.uint32, bitcast=True)
    b_drawn = tl.where(b_second <= b_accept, b_drawn, tl.load(p_alias + b_drawn))
    if CBOW:
        o_a = tl.arange(0, A)
        b_window = _around(p_words, p_places, o_i, m_i, b_place, o_a, begin, n, WINDOW)
        b_pairs = tl.max((b_window >= 0).to(tl.int32), axis=1)  # the word's own, if it has a window
        tl.store(p_window + (begin + o_i)[:, None] * A + o_a[None, :], b_window, m_i[:, None])
        b_word = tl.load(p_words + begin + o_i, mask=m_i, other=NO_ROW)
        b_words = tl.where((b_pairs > 0)[:, None], b_word[:, None], NO_ROW)
        b_met = (b_word[:, None] == b_drawn).to(tl.int32)
        m_pair = (o_r < 1)[None, :]
    else:
        b_words = _around(p_words, p_places, o_i, m_i, b_place, o_r, begin, n, WINDOW)
        b_pairs = tl.sum((b_words >= 0).to(tl.int32), axis=1)
        b_met = tl.zeros((BLOCK, R), tl.int32)
        for u in range(2 * WINDOW):
            b_word = tl.max(tl.where(o_r[None, :] == u, b_words, NO_ROW), axis=1)
            b_met += (b_word[:, None] == b_drawn).to(tl.int32)
        m_pair = (o_r < 2 * WINDOW)[None, :]
    b_others = tl.maximum(b_pairs[:, None] - b_met, 0)  # CBOW: a word without a window is not a pair
    b_share = tl.where(m_pair, (b_words >= 0).to(tl.float32), each * b_others.to(tl.float32))
    b_row = tl.where(m_pair, b_words, b_drawn)
    b_row = tl.where(b_share > 0, b_row, NO_ROW)
    p_at = (begin + o_i)[:, None] * R + o_r[None, :]
    tl.store(p_pairs + begin + o_i, b_pairs, mask=m_i)
    tl.store(p_rows + p_at, b_row, mask=m_i[:, None])
    tl.store(p_shares + p_at, b_share, mask=m_i[:, None])

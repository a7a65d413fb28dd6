"""fastText's character n-grams: the parts of `<word>` with minn to maxn characters, and their hashes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BEGIN, END = "<", ">"
# 32-bit FNV-1a over signed bytes, as in fastText: an n-gram falls into the same bucket as there.
FNV_BASIS, FNV_PRIME = 2_166_136_261, np.uint32(16_777_619)
CONTINUATION_BITS, CONTINUATION = 0xC0, 0x80  # UTF-8 continuation bytes are 10xxxxxx


def character_ngrams(word: str, minn: int, maxn: int) -> list[str]:
    """Return the n-grams of one word, ordered by their first character, the shorter ones first, without single marks <
    and >.
    """
    marked = f"{BEGIN}{word}{END}"
    return [
        marked[first : first + n]
        for first in range(len(marked))
        for n in range(max(minn, 1), min(maxn, len(marked) - first) + 1)
        if n > 1 or 0 < first < len(marked) - 1
    ]


def ngram_hashes(words: Sequence[str], minn: int, maxn: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (hashes uint32 (total,), bounds int64 (T + 1,)) of the `character_ngrams` of each of T words.

    Hashes of n characters are extended to n + 1 characters, for all words at once.
    """
    text = "".join(f"{BEGIN}{word}{END}" for word in words).encode("utf-8", "surrogatepass")
    values = np.frombuffer(text, np.int8)
    begins = np.flatnonzero((values.view(np.uint8) & CONTINUATION_BITS) != CONTINUATION)
    sizes = np.diff(begins, append=len(values))
    lengths = np.fromiter(map(len, words), np.int64, len(words)) + 2
    ends = np.cumsum(lengths)
    left = np.repeat(ends, lengths) - np.arange(len(begins))

    shortest = np.full(len(begins), max(minn, 1))
    if minn <= 1:
        shortest[ends - lengths] = shortest[ends - 1] = 2
    per_character = np.maximum(np.minimum(maxn, left) - shortest + 1, 0)
    bounds = np.zeros(len(begins) + 1, np.int64)
    np.cumsum(per_character, out=bounds[1:])

    hashes = np.empty(bounds[-1], np.uint32)
    first = np.flatnonzero(per_character)
    running = np.full(len(first), FNV_BASIS, np.uint32)
    for n in range(1, min(maxn, int(lengths.max(initial=0))) + 1):
        inside = left[first] >= n
        first, running = first[inside], running[inside]
        _hash_on(running, values, begins[first + n - 1], sizes[first + n - 1])
        whole = shortest[first] <= n
        hashes[bounds[first[whole]] + n - shortest[first[whole]]] = running[whole]
    return hashes, bounds[np.concatenate(([0], ends))]


def ngram_hash(ngram: str) -> int:
    """Return the hash of one n-gram, as `ngram_hashes` computes it."""
    hashed = FNV_BASIS
    for byte in np.frombuffer(ngram.encode("utf-8", "surrogatepass"), np.int8).tolist():
        hashed = ((hashed ^ (byte & 0xFFFFFFFF)) * int(FNV_PRIME)) & 0xFFFFFFFF
    return hashed


def subword_ids(
    words: Sequence[str], own: np.ndarray, first_bucket: int, buckets: int, minn: int, maxn: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids int32 (total,), bounds int64 (T + 1,)): for each of T words its own id, and those of its n-grams.

    own: (T,), -1 for none. n-grams have the ids from `first_bucket` on; there are none while `maxn` is 0.
    """
    known = own >= 0
    known_bounds = np.concatenate(([0], np.cumsum(known)))
    if not maxn:
        return own[known].astype(np.int32), known_bounds
    hashes, bounds = ngram_hashes(words, minn, maxn)
    ids = (first_bucket + (hashes % np.uint32(buckets)).astype(np.int64)).astype(np.int32)
    return np.insert(ids, bounds[:-1][known], own[known]), bounds + known_bounds


def _hash_on(hashes: np.ndarray, values: np.ndarray, begins: np.ndarray, sizes: np.ndarray) -> None:
    """Extend each hash by one more character, in place: bytes begins[i] to begins[i] + sizes[i] of values int8."""
    for byte in range(int(sizes.max(initial=0))):
        longer = np.flatnonzero(sizes > byte)
        signed = values[begins[longer] + byte].astype(np.uint32)
        hashes[longer] = (hashes[longer] ^ signed) * FNV_PRIME

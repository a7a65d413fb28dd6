"""gensim's KeyedVectors over the tables of a Word2Vec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import kept_shares
from mt2st_fast.kernels.context.hierarchy import tree_paths
from mt2st_fast.kernels.context.training import NO_LOCKS


def fill_keyed(
    keyed: Any, vocabulary: Vocabulary, vectors: np.ndarray, *, sample: float, has_tree: bool
) -> None:
    """Fill KeyedVectors with words, their vectors (V, D), which are shared, and gensim's attributes of words.

    These are count, sample_int (by the option `sample`) and, with has_tree, code and point: a word's path in the tree.
    """
    words, counts = list(vocabulary.words), vocabulary.counts
    keyed.index_to_key, keyed.key_to_index = words, {word: t for t, word in enumerate(words)}
    keyed.vectors, keyed.norms, keyed.vector_size = vectors, None, vectors.shape[1]
    shares = np.minimum(kept_shares(counts, sample), 1) if counts.any() else np.ones(len(words))
    keyed.expandos = {"count": counts.copy(), "sample_int": (shares * (2.0**32 - 1)).astype(np.uint32)}
    if has_tree:
        keyed.expandos |= _codes(counts)


def _codes(counts: np.ndarray) -> dict[str, np.ndarray]:
    paths = tree_paths(counts)
    codes, points = np.empty(len(counts), object), np.empty(len(counts), object)
    turns, nodes = (paths.signs < 0).astype(np.uint8), paths.nodes.astype(np.uint32)
    for word in range(len(counts)):
        of_word = slice(paths.bounds[word], paths.bounds[word + 1])
        codes[word], points[word] = turns[of_word], nodes[of_word]
    return {"code": codes, "point": points}


def lock_factors(given: Any, words: Sequence[str]) -> np.ndarray:
    """Return float32 (V,) from one number or V numbers; (0,) where all are 1. Raises InputError for anything else."""
    try:
        locks = np.asarray(given, np.float32).reshape(-1)
    except (TypeError, ValueError):
        raise InputError(f"wv.vectors_lockf must be numbers, not {given!r}") from None
    if len(locks) not in (1, len(words)):
        raise InputError(
            f"wv.vectors_lockf has {len(locks)} numbers for {len(words)} words; set one number per word, or a single "
            "one"
        )
    if not np.isfinite(locks).all():
        raise InputError("wv.vectors_lockf is not finite everywhere; 0 locks a vector, 1 lets it learn")
    return NO_LOCKS if (locks == 1).all() else np.array(np.broadcast_to(locks, len(words)))

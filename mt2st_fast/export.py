"""Word vectors for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mt2st_fast.files import write_atomically


def write_word2vec_text(path: Path, words: Sequence[str], vectors_td: np.ndarray) -> int:
    """Write vectors (T, D) in the text format of word2vec and return how many were written.

    A word that is empty or holds white space cannot stand in this format and is left out.
    """
    writable = [t for t, word in enumerate(words) if word and not any(c.isspace() for c in word)]
    lines = [f"{len(writable)} {vectors_td.shape[1]}"]
    lines += [f"{words[t]} {' '.join(f'{value:.6g}' for value in vectors_td[t])}" for t in writable]
    write_atomically(path, ("\n".join(lines) + "\n").encode("utf-8", "replace"))
    return len(writable)


def nearest_neighbours(
    words: Sequence[str], counts: np.ndarray, vectors_td: np.ndarray, *, queries: int = 5, neighbours: int = 5
) -> dict[str, list[str]]:
    """For some frequent words, the words whose vectors have the highest cosine; words of letters only.

    Looks at the 5,000 most frequent: a rare word's vector says little.
    """
    known = [t for t in np.argsort(-counts, kind="stable") if counts[t] > 0 and words[t].isalpha()][:5000]
    if not known:
        return {}
    unit_td = vectors_td[known] / np.maximum(np.linalg.norm(vectors_td[known], axis=1, keepdims=True), 1e-12)
    # The very first are function words, whose neighbours tell little: take longer ones.
    chosen = [i for i, t in enumerate(known) if len(words[t]) > 3][:queries]
    result = {}
    for i in chosen:
        order = np.argsort(-(unit_td @ unit_td[i]), kind="stable")
        result[words[known[i]]] = [words[known[j]] for j in order if j != i][:neighbours]
    return result

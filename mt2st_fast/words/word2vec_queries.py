"""Queries that need the output vectors of a Word2Vec: the word in a context, and the likelihood of sentences."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.data.vocabulary import Vocabulary
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.hierarchy import TreePaths, tree_paths
from mt2st_fast.numbers import check_count
from mt2st_fast.words.gensim_errors import NoWordsError
from mt2st_fast.words.word2vec_options import LearningOptions
from mt2st_fast.words.word_tables import WordTables

log = logging.getLogger("mt2st_fast")
PAIRS_AT_ONCE = 1 << 15  # windows whose path nodes are gathered in one block


def words_in(
    context: Sequence[str | int],
    topn: int | None,
    vocabulary: Vocabulary,
    vectors: np.ndarray,
    outputs: np.ndarray | None,
    *,
    mean: bool,
) -> list[tuple[str, float]] | None:
    """Return the topn (None: all) likeliest words in `context`, which has words or their rows; None if none is known.

    vectors, outputs: the words' vectors and output vectors, both (V, D). mean: whether a context is the mean of its
    vectors, not their sum. Probabilities are softmax over all words. Raises NoWordsError without output vectors, and
    InputError for a context that is one string and for topn below 1.
    """
    if isinstance(context, str):
        raise InputError(f"a context must be a list of words, not one string; pass {context.split()}")
    if topn is not None:
        check_count(topn=topn)
    if outputs is None:
        raise NoWordsError(
            "predict_output_word needs the output vectors of words; train with negative=5, hs=0"
        )
    rows = [word if isinstance(word, int | np.integer) else vocabulary.get(word, -1) for word in context]
    rows = [row for row in rows if 0 <= row < len(vocabulary)]
    if not rows:
        log.warning("none of the %d words of the context is in the vocabulary", len(context))
        return None
    h = vectors[rows].sum(0) / (len(rows) if mean else 1)
    scores = (outputs @ h).astype(np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = np.argsort(-shares, kind="stable")[: len(shares) if topn is None else topn]
    return [(vocabulary.words[i], float(shares[i])) for i in best]


def sentence_scores(
    sentences: Iterable[Sequence[str]],
    most: int,
    tables: WordTables,
    options: LearningOptions,
) -> np.ndarray:
    """Return the log probability of each sentence by hierarchical softmax, float32 (sentences,), for at most `most`
    sentences.

    Every known word is predicted from whole windows of `window` known words. Raises NoWordsError for tables without
    node vectors.
    """
    vocabulary, vectors, nodes = tables.vocabulary, tables.vectors, tables.node_vectors
    if nodes is None:
        raise NoWordsError("score needs hierarchical softmax; train with hs=1, negative=0")
    text = Tokens.of(_first(sentences, most), vocabulary)
    of_sentence = np.repeat(np.arange(text.n_units), np.diff(text.bounds))[text.ids >= 0]
    ids = text.ids[text.ids >= 0]
    paths, scores = tree_paths(vocabulary.counts), np.zeros(text.n_units)
    for begin in range(0, len(ids), PAIRS_AT_ONCE):
        some = np.arange(begin, min(begin + PAIRS_AT_ONCE, len(ids)))
        if options.sg:
            for at, others in _neighbours(some, of_sentence, options.window):
                h = vectors[ids[others]]
                _add(scores, of_sentence[at], _log_likelihoods(h, ids[at], paths, nodes))
        else:
            sums, sizes = np.zeros((len(some), vectors.shape[1]), np.float32), np.zeros(len(some), np.int64)
            for at, others in _neighbours(some, of_sentence, options.window):
                sums[at - begin] += vectors[ids[others]]
                sizes[at - begin] += 1
            at = some[sizes > 0]
            h = sums[at - begin] / (sizes[at - begin, None] if options.cbow_mean else 1)
            _add(scores, of_sentence[at], _log_likelihoods(h, ids[at], paths, nodes))
    return scores.astype(np.float32)


def _first(sentences: Iterable[Sequence[str]], most: int) -> Iterable[Sequence[str]]:
    for number, sentence in enumerate(sentences):
        if number == most:
            log.warning("score stops after total_sentences=%d sentences; increase it to score the rest", most)
            return
        yield sentence


def _neighbours(
    some: np.ndarray, of_sentence: np.ndarray, window: int
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """For each distance within the window, yield the places that have a neighbour there in their sentence, and that
    neighbour.
    """
    for distance in (*range(-window, 0), *range(1, window + 1)):
        others = some + distance
        there = (others >= 0) & (others < len(of_sentence))
        there[there] = of_sentence[others[there]] == of_sentence[some[there]]
        yield some[there], others[there]


def _log_likelihoods(h: np.ndarray, words: np.ndarray, paths: TreePaths, nodes: np.ndarray) -> np.ndarray:
    """Return (B,): the log likelihood of word b given h (B, D), summed over the turns of its path."""
    lengths = paths.bounds[words + 1] - paths.bounds[words]
    found = np.zeros(len(words))
    for k in range(int(lengths.max(initial=0))):
        on = np.flatnonzero(lengths > k)
        turn = paths.bounds[words[on]] + k
        score = paths.signs[turn] * np.einsum("bd,bd->b", h[on], nodes[paths.nodes[turn]])
        found[on] -= np.logaddexp(0, -score.astype(np.float64))
    return found


def _add(scores: np.ndarray, of_sentence: np.ndarray, values: np.ndarray) -> None:
    scores += np.bincount(of_sentence, values, len(scores))

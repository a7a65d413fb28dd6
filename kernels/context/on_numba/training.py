"""Rounds of training: shards side by side, then their changes in the order of shards; see rounds.py."""

from __future__ import annotations

from ...machine.barrier import wait
from ...machine.jit import Kernel, helper
from .rounds import go_over_shard, merge, rate_of, shard_words_of
from .subword_rounds import go_over_subword_shard, merge_subwords


# Numba drops the branch that the type of `parts` rules out, so each kind of training compiles its own alone.
@helper
def _go_over(stream, first, last, sampler, steps, rate, tables, parts, w, p):
    if parts is None:
        return go_over_shard(stream, first, last, sampler, steps, rate, tables, w, p)
    return go_over_subword_shard(stream, first, last, sampler, steps, rate, tables, parts, w, p)


@helper
def _merge(tables, parts, w, rate, pull, p):
    if parts is None:
        merge(tables, w, rate, pull, p)
    else:
        merge_subwords(tables, parts, w, rate, pull, p)


def _train_rounds(stream, sampler, steps, rates, rounds, tables, parts, w, place, found):
    """Rounds [first, last) of an epoch, as one of the threads which all call this: shards thread, thread + n_threads...

    w is a Workspace, parts are SubwordParts or None: then word v is a row of its own. found (P, 2) += the loss and the
    positive pairs of some tiles of each shard.
    """
    P, n_words = len(w.words), len(stream.tokens)
    for r in range(rounds[0], rounds[1]):
        rate = rate_of(rates, r * steps.shard_words * P)
        for p in range(place.thread, P, place.n_threads):
            first, last = shard_words_of(n_words, p, P, steps.shard_words, r)
            loss, pairs = _go_over(stream, first, last, sampler, steps, rate, tables, parts, w, p)
            found[p, 0] += loss
            found[p, 1] += pairs
        if not wait(place.barrier, place.n_threads):
            return
        for p in range(place.thread, P, place.n_threads):
            _merge(tables, parts, w, rate, steps.pull, p)
        if not wait(place.barrier, place.n_threads):
            return


train_rounds = Kernel(_train_rounds)

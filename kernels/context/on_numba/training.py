"""Rounds of training: shards in parallel, then their changes in the order of shards; see rounds.py."""

from __future__ import annotations

from ...machine.jit import borrower, helper
from ...machine.team import Kernel, in_parallel
from .rounds import go_over_shard, merge, rate_of, shard_words_of
from .subword_rounds import go_over_subword_shard, merge_subwords


# Numba drops the branch that the type of `parts` rules out, so each kind of training compiles only its own.
@borrower
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


@borrower
def _train_shard(p, stream, sampler, steps, rate, tables, parts, w, r, found):
    """Process shard p's part of round r."""
    first, last = shard_words_of(len(stream.tokens), p, len(w.words), steps.shard_words, r)
    loss, pairs = _go_over(stream, first, last, sampler, steps, rate, tables, parts, w, p)
    found[p, 0] += loss
    found[p, 1] += pairs


@helper
def _merge_part(p, tables, parts, w, rate, pull):
    _merge(tables, parts, w, rate, pull, p)


def _train_rounds(team, stream, sampler, steps, rates, rounds, tables, parts, w, found):
    """Train rounds [first, last) of an epoch.

    w is a Workspace; parts are SubwordParts, or None: then word v is row v. found (P, 2) += the loss and the positive
    pairs of some tiles of each shard.
    """
    P = len(w.words)
    for r in range(rounds[0], rounds[1]):
        rate = rate_of(rates, r * steps.shard_words * P)
        in_parallel(team, P, _train_shard, (stream, sampler, steps, rate, tables, parts, w, r, found))
        in_parallel(team, P, _merge_part, (tables, parts, w, rate, steps.pull))


train_rounds = Kernel(_train_rounds)

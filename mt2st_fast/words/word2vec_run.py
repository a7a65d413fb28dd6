"""Set up a training run of a Word2Vec on a text."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import torch

from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import word_sampler
from mt2st_fast.kernels.context.both import BothTraining
from mt2st_fast.kernels.context.hierarchy import HierarchyTraining, tree_paths
from mt2st_fast.kernels.context.training import ContextTraining, TextTraining
from mt2st_fast.words.context_run import context_options
from mt2st_fast.words.word2vec_device import walkers_over
from mt2st_fast.words.word2vec_options import LearningOptions
from mt2st_fast.words.word_tables import WordTables

log = logging.getLogger("mt2st_fast")
# Every pair visits the root: even with two shards it would move twice too far.
TREE_PULL = 1.0


def training_over(
    tables: WordTables, locks: np.ndarray, options: LearningOptions, n_words: int, device: torch.device
) -> TextTraining:
    """Return the training of tables on a text of n_words.

    locks: factors for the changes of the words' vectors, (V,), or (0,) where nothing is locked. Raises InputError for
    locks that it cannot keep.
    """
    sampler = word_sampler(tables.counts, options.sample, options.ns_exponent)
    if device.type != "cpu":
        return walkers_over(tables, options, sampler, n_words, device)
    inputs, subwords = tables.input_rows, tables.subwords
    if len(locks) and options.max_n:
        raise InputError(
            "wv.vectors_lockf is not supported with n-grams (max_n), whose rows are shared by many words; leave it "
            "at 1"
        )
    context = context_options(
        options.mode,
        n_words,
        window=options.window,
        negatives=options.negative or 1,  # unused with hs alone
        shards=options.workers,
        subwords=subwords is not None,
    )
    context = replace(context, mean=bool(options.cbow_mean), shrink=options.shrink_windows)
    negatives = None
    if options.negative:
        assert tables.output_vectors is not None
        negatives = ContextTraining(inputs, tables.output_vectors, sampler, context, subwords, locks)
    if not options.hs:
        assert negatives is not None
        return negatives
    assert tables.node_vectors is not None
    paths, pulled = tree_paths(tables.counts), replace(context, pull=TREE_PULL)
    tree = HierarchyTraining(inputs, tables.node_vectors, sampler, paths, pulled, locks)
    return tree if negatives is None else BothTraining(tree, negatives)


def tell_of_training(options: LearningOptions, rate: float, rate_before: float) -> None:
    """Warn about settings that are probably unintended, one log message for each.

    rate, rate_before: the rate that training begins with, and the one that the last training ended with.
    """
    if options.hs and options.negative:
        log.warning(
            "Both hierarchical softmax and negative sampling are activated. Words are predicted in both ways, which "
            "takes the time of both; set hs=0 or negative=0 to use only one"
        )
    if rate > rate_before:
        log.warning(
            "Effective 'alpha' higher than previous training cycles: %g after %g; set it with start_alpha",
            rate,
            rate_before,
        )


def tell_of_epoch(epochs_done: int, loss: float, n_words: int, seconds: float) -> None:
    """Log that an epoch over n_words is done, with its mean loss and the seconds since training began."""
    log.info(
        "EPOCH %d: %s words, mean loss %.4f, %.1f s since training began",
        epochs_done,
        f"{n_words:,}",
        loss,
        seconds,
    )

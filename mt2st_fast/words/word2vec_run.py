"""Set up a training run of a Word2Vec on a text."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.errors import InputError
from mt2st_fast.kernels.context.batch import word_sampler
from mt2st_fast.kernels.context.both import BothTraining
from mt2st_fast.kernels.context.hierarchy import HierarchyTraining, tree_paths
from mt2st_fast.kernels.context.training import ContextTraining
from mt2st_fast.kernels.context.walkers import WalkTraining
from mt2st_fast.training.context_run import ContextPlan, ContextRun, context_options
from mt2st_fast.training.table_tasks import TableTasks
from mt2st_fast.words.word2vec_device import mode_of, training_device, walkers_over

log = logging.getLogger("mt2st_fast")
# Every pair visits the root: even with two shards it would move twice too far.
TREE_PULL = 1.0


def begin_run(model: Any, text: Tokens, plan: ContextPlan) -> ContextRun:
    """Return a run over the model's tables; the text is in ids of its words. Raises InputError if its device cannot
    train it.
    """
    seed = model.seed + model.epochs_done
    tasks = TableTasks(model.tasks, model.vocabulary, model.input_rows, model._subwords, seed)
    return ContextRun(_training(model, text), text, tasks, model.schedule, plan)


def _training(model: Any, text: Tokens) -> ContextTraining | HierarchyTraining | BothTraining | WalkTraining:
    device = training_device(model)
    sampler = word_sampler(model.counts, model.sample, model.ns_exponent)
    if device.type != "cpu":
        return walkers_over(model, text, sampler, device)
    locks = model.lock_factors()
    if len(locks) and model.max_n:
        raise InputError(
            "wv.vectors_lockf is not supported with n-grams (max_n), whose rows are shared by many words; leave it "
            "at 1"
        )
    options = context_options(
        mode_of(model),
        len(text.ids),
        window=model.window,
        negatives=model.negative or 1,  # unused with hs alone
        shards=model.workers,
        subwords=model._subwords is not None,
    )
    options = replace(options, mean=bool(model.cbow_mean), shrink=model.shrink_windows)
    tables = model.input_rows, model.output_vectors
    negatives = ContextTraining(*tables, sampler, options, model._subwords, locks) if model.negative else None
    if not model.hs:
        assert negatives is not None
        return negatives
    pulled = replace(options, pull=TREE_PULL)
    tree = HierarchyTraining(
        model.input_rows, model.node_vectors, sampler, tree_paths(model.counts), pulled, locks
    )
    return tree if negatives is None else BothTraining(tree, negatives)


def tell_of_training(model: Any, rate: float) -> None:
    """Warn about settings that are probably unintended, one log message for each."""
    if model.hs and model.negative:
        log.warning(
            "Both hierarchical softmax and negative sampling are activated. Words are predicted in both ways, which "
            "takes the time of both; set hs=0 or negative=0 to use only one"
        )
    if rate > model.min_alpha_yet_reached:
        log.warning(
            "Effective 'alpha' higher than previous training cycles: %g after %g; set it with start_alpha",
            rate,
            model.min_alpha_yet_reached,
        )


def tell_of_epoch(model: Any, n_words: int, seconds: float) -> None:
    """Log that an epoch over n_words is done, with the seconds since training began."""
    log.info(
        "EPOCH %d: %s words, mean loss %.4f, %.1f s since training began",
        model.epochs_done,
        f"{n_words:,}",
        model.losses[-1],
        seconds,
    )

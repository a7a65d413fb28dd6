"""A run of a Word2Vec over a text, ready for its first step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mt2st_fast.data.tokens import Tokens
from mt2st_fast.kernels.context.batch import word_sampler
from mt2st_fast.kernels.context.hierarchy import HierarchyTraining, tree_paths
from mt2st_fast.kernels.context.training import ContextTraining
from mt2st_fast.kernels.context.walkers import WalkTraining
from mt2st_fast.training.context_run import ContextPlan, ContextRun, context_options
from mt2st_fast.training.table_tasks import TableTasks
from mt2st_fast.words.word2vec_device import mode_of, training_device, walkers_over

# The root is visited by every pair: even two shards would move it twice too far.
TREE_PULL = 1.0


def begin_run(model: Any, text: Tokens, plan: ContextPlan) -> ContextRun:
    """Over the model's tables; the text is in ids of its words. Raises InputError where its device cannot train it."""
    seed = model.seed + model.epochs_done
    tasks = TableTasks(model.tasks, model.vocabulary, model.input_rows, model._subwords, seed)
    return ContextRun(_training(model, text), text, tasks, model.schedule, plan)


def _training(model: Any, text: Tokens) -> ContextTraining | HierarchyTraining | WalkTraining:
    device = training_device(model)
    sampler = word_sampler(model.counts, model.sample, model.ns_exponent)
    if device.type != "cpu":
        return walkers_over(model, text, sampler, device)
    options = context_options(
        mode_of(model),
        len(text.ids),
        window=model.window,
        negatives=model.negative or 1,  # with hs there are none, whatever this says
        shards=model.workers,
        subwords=model._subwords is not None,
    )
    if not model.hs:
        return ContextTraining(model.input_rows, model.output_vectors, sampler, options, model._subwords)
    paths = tree_paths(model.counts)
    return HierarchyTraining(
        model.input_rows, model.output_vectors, sampler, paths, replace(options, pull=TREE_PULL)
    )

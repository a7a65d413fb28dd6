"""`--predict-context`: predicting neighbouring words in all training text, as one more auxiliary task."""

from __future__ import annotations

from mt2st_fast.data import Splits
from mt2st_fast.data.word_batches import ContextBatches
from mt2st_fast.errors import InputError
from mt2st_fast.model.word_tasks import ContextPrediction
from mt2st_fast.runs.config import Config

CONTEXT = "context"
LEAST_WORDS = 256  # least words per batch: with fewer, most of their shared negatives are unused


def context_task(config: Config, splits: Splits) -> dict[str, ContextPrediction]:
    """Return the task by its name, or nothing if it is not requested.

    Raises InputError where the data has a task of that name.
    """
    if not config.predict_context:
        return {}
    if CONTEXT in splits.tasks:
        raise InputError(
            f"--predict-context adds a task named {CONTEXT}, but {splits.name} already has one; leave one of them out"
        )
    return {CONTEXT: ContextPrediction(len(splits.vocabulary), config.dim, backend=config.backend)}


def context_batches(config: Config, splits: Splits) -> ContextBatches:
    """Return batches over the whole training text, each with as many words as a batch of rows has."""
    corpus = splits.train
    assert config.batch_size is not None  # `resolved` fills it in
    words = round(min(config.batch_size, corpus.n_rows) * len(corpus.tokens) / corpus.n_rows)
    return ContextBatches(
        corpus.tokens,
        corpus.bounds,
        splits.vocabulary.counts,
        task=CONTEXT,
        words=max(LEAST_WORDS, words),
        seed=config.seed,
    )

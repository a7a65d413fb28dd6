"""The parts of an experiment, made for a configuration and a corpus: encoder, tasks, batches and trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from mt2st_fast.data import BagBatches, Corpus, Splits, SubwordTable, TokenBatches
from mt2st_fast.errors import InputError
from mt2st_fast.files import at_home
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.plain import PlainHeads, plain_encoder, plain_optimizer
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.judging import SPAN_F1, SpanF1
from mt2st_fast.runs.resumed_data import WORDS
from mt2st_fast.training.callbacks.callback import Callback
from mt2st_fast.training.callbacks.early_stopping import EarlyStopping
from mt2st_fast.training.own_metrics import Metric
from mt2st_fast.training.schedules import find_strategy
from mt2st_fast.training.trainer import Trainer
from mt2st_fast.words.vectors import Coverage, WordVectors, initial_table

# Rows of an evaluation batch. Text repeats its words, and a batch of tokens looks up each distinct word only once; but
# all of its logits may have to be in memory.
EVALUATION_ROWS = {"token": 1 << 14, "document": 1 << 12}
MOST_LOGITS, LEAST_EVALUATION_ROWS = 1 << 26, 1 << 8


def labelled_main(splits: Splits) -> str:
    """Return the main task. Raises InputError for data without labels, and without any for development."""
    if splits.main is None:
        labelled = any(word.startswith("__label__") for word in splits.vocabulary.words)
        hint = "; for __label__ words, use train_supervised in Python" if labelled else ""
        raise InputError(
            f"{splits.name} has no labels to train a main task on; use a reader for labelled data{hint}"
        )
    if not splits.dev.targets[splits.main].labelled().any():
        raise InputError(f"no development row has a label of the main task {splits.main}; label some rows")
    return splits.main


def make_encoder(config: Config, splits: Splits, table: SubwordTable) -> WindowEncoder | BagEncoder:
    """Return a window encoder for labels on tokens, or a bag encoder for labels on documents."""
    options: dict[str, Any] = {
        "rows_of_type": torch.from_numpy(table.rows),
        "num_rows": table.num_rows,
        "padding_row": table.padding_row,
        "dropout": config.dropout,
        "sparse": True,
    }
    types = len(splits.vocabulary)
    if splits.train.level == "token":
        return WindowEncoder(types, config.dim, window=config.window, hidden=config.hidden, **options)
    return BagEncoder(types, config.dim, **options)


def start_from_vectors(
    encoder: WindowEncoder | BagEncoder, config: Config, splits: Splits
) -> Coverage | None:
    """Copy the vectors of `config.init` into the words' own rows; rare words share the row of unknown ones.

    Raises InputError where the file cannot be used or its vectors have another length than `config.dim`.
    """
    if config.init is None:
        return None
    vectors = WordVectors.read(at_home(config.init))
    if vectors.dim != config.dim:
        raise InputError(
            f"--init {config.init} has vectors of {vectors.dim} numbers, but --dim is {config.dim}; "
            f"use --dim {vectors.dim}"
        )
    own = np.flatnonzero(splits.vocabulary.counts >= config.min_count)
    table_td, coverage = initial_table(vectors, [splits.vocabulary.words[t] for t in own], seed=config.seed)
    assert encoder.rows_of_type is not None  # set by make_encoder
    with torch.no_grad():
        encoder.table[encoder.rows_of_type[own, 0]] = torch.from_numpy(table_td)
    return coverage


def make_batches(config: Config, splits: Splits) -> TokenBatches | BagBatches:
    """Return training batches of the kind that the encoder reads."""
    assert splits.main is not None
    assert config.batch_size is not None  # `resolved` fills it in
    options: dict[str, Any] = {
        "main": splits.main,
        "share": config.main_share,
        "seed": config.seed,
        "tasks": splits.tasks,
        "self_training": bool(config.self_training),
    }
    of_tokens = splits.train.level == "token"
    batches = (
        TokenBatches(splits.train, config.batch_size, config.window, **options)
        if of_tokens
        else BagBatches(splits.train, config.batch_size, **options)
    )
    batches.data_settings[WORDS] = splits.vocabulary.digest  # batches have numbers in place of words
    return batches


def evaluation_rows(corpus: Corpus, tasks: Sequence[str]) -> int:
    """Return the number of rows of an evaluation batch."""
    widest = max(corpus.column(name).size for name in tasks)
    return max(LEAST_EVALUATION_ROWS, min(EVALUATION_ROWS[corpus.level], MOST_LOGITS // widest))


def own_metrics(metric: str | None, splits: Splits, corpus: Corpus) -> dict[str, Metric]:
    """Return what judges the main task on a corpus, if that is no metric of its kind."""
    main = str(splits.main)
    return {main: SpanF1(corpus.column(main).class_names, main, corpus)} if metric == SPAN_F1 else {}


def make_trainer(
    config: Config,
    splits: Splits,
    encoder: WindowEncoder | BagEncoder,
    heads: MultiTaskHeads,
    callbacks: Sequence[Callback],
) -> Trainer:
    """Return the trainer of encoder and heads on the configuration's engine, with its strategy."""
    trained = _on_engine(config, encoder, heads)
    strategy = find_strategy(config.strategy)
    patience = config.patience
    stopping = [] if patience is None else [EarlyStopping(patience, config.min_delta)]
    return Trainer(
        strategy.encoder_of(trained.encoder, splits.tasks, config.strategy_options),
        trained.heads,
        schedule=config.schedule(),
        lr=config.lr,
        lr_decay=config.lr_decay,  # type: ignore[arg-type]
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        precision=config.precision,  # type: ignore[arg-type]
        device=config.device,
        callbacks=[*callbacks, *stopping],
        metrics=own_metrics(config.metric, splits, splits.dev),
        **trained.options,
    )


class _OnEngine(NamedTuple):
    """Encoder and heads as an engine trains them, and the options by which a Trainer does so."""

    encoder: nn.Module
    heads: MultiTaskHeads
    options: dict[str, Any]


def _on_engine(config: Config, encoder: WindowEncoder | BagEncoder, heads: MultiTaskHeads) -> _OnEngine:
    if config.engine == "torch":
        optimizer = plain_optimizer(encoder.table, config.lr, config.weight_decay)
        options = {"optimizer": optimizer, "graph": False, "backward": "autograd"}
        return _OnEngine(plain_encoder(encoder), PlainHeads.of(heads), options)
    graph = "auto" if config.graph is None else config.graph
    options = {"weight_decay": config.weight_decay, "graph": graph, "backward": config.backward}
    return _OnEngine(encoder, heads, options)

"""One training run from a configuration and a corpus, used once by `train` and many times by `compare`."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mt2st_fast.data import (
    READERS,
    BagBatches,
    Corpus,
    Splits,
    SubwordTable,
    TargetColumn,
    TokenBatches,
    evaluation_batches,
    subword_rows,
)
from mt2st_fast.data.readers.same_data import located
from mt2st_fast.data.record import never_seen
from mt2st_fast.data.scaling import Scale, scaled, scales_of
from mt2st_fast.errors import InputError
from mt2st_fast.files import at_home
from mt2st_fast.kernels import Choice, choose_backend
from mt2st_fast.model.description import describe, rebuild
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.plain import PlainHeads, plain_encoder, plain_optimizer
from mt2st_fast.model.subword_vectors import SubwordVectors
from mt2st_fast.model.task_adapted import TaskAdaptedEncoder
from mt2st_fast.model.tasks import Task, task_of_column
from mt2st_fast.model.word_tasks import WordTask
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.judging import SPAN_F1, SpanF1, is_by_spans, judged_by
from mt2st_fast.runs.options import in_flags, options_of
from mt2st_fast.runs.resumed_data import WORDS, has_other_data
from mt2st_fast.runs.word_context import CONTEXT, context_batches, context_task
from mt2st_fast.serving.text_model import Labels, TextModel
from mt2st_fast.training.callbacks import Callback
from mt2st_fast.training.divergence import NonFiniteLossError
from mt2st_fast.training.early_stopping import EarlyStopping
from mt2st_fast.training.history import History
from mt2st_fast.training.own_metrics import Metric, metric_name
from mt2st_fast.training.schedules import find_strategy
from mt2st_fast.training.schedules.abilities import Shortening
from mt2st_fast.training.trained_heads import heads_without, untrained
from mt2st_fast.training.trainer import Trainer
from mt2st_fast.words.vectors import Coverage, WordVectors, initial_table

WARMING_STEPS = 5
# Rows of an evaluation batch. Text repeats its words, and a batch of tokens looks up each distinct word only once; but
# all of its logits may have to be in memory.
EVALUATION_ROWS = {"token": 1 << 14, "document": 1 << 12}
MOST_LOGITS, LEAST_EVALUATION_ROWS = 1 << 26, 1 << 8


@contextmanager
def _options_as_input() -> Iterator[None]:
    """Report values that the library refuses during setup as user errors: one line, no traceback."""
    try:
        yield
    except InputError as error:
        _name_flags(error)
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(in_flags(" ".join(str(error).split()), options_of(Config))) from error


def _name_flags(error: InputError) -> None:
    """Have an error of the library name flags instead of arguments."""
    error.args = (in_flags(str(error), options_of(Config)),)


def _labelled_main(splits: Splits) -> str:
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


def _make_trainer(
    config: Config,
    splits: Splits,
    encoder: WindowEncoder | BagEncoder,
    heads: MultiTaskHeads,
    callbacks: Sequence[Callback],
) -> Trainer:
    trained, trained_heads, engine = _on_engine(config, encoder, heads)
    strategy = find_strategy(config.strategy)
    patience = config.patience
    stopping = [] if patience is None else [EarlyStopping(patience, config.min_delta)]
    return Trainer(
        strategy.encoder_of(trained, splits.tasks, config.strategy_options),
        trained_heads,
        schedule=config.schedule(),
        lr=config.lr,
        lr_decay=config.lr_decay,  # type: ignore[arg-type]
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        precision=config.precision,  # type: ignore[arg-type]
        device=config.device,
        callbacks=[*callbacks, *stopping],
        metrics=_own_metrics(config.metric, splits, splits.dev),
        **engine,
    )


@dataclass
class Experiment:
    """A run that is ready to start: `run` trains, `test` measures the result, `vectors` gives vectors of any word.

    `scales`: by task on numbers, in what the trainer measures them; `splits` and `text_model` have them as they are.
    `coverage` says how many words the vectors of `config.init` cover, if those are given.
    """

    config: Config
    splits: Splits
    vectors: SubwordVectors
    trainer: Trainer
    train: TokenBatches | BagBatches
    backend: Choice
    scales: Mapping[str, Scale]
    coverage: Coverage | None = None

    @classmethod
    def prepare(cls, config: Config, splits: Splits, callbacks: Sequence[Callback] = ()) -> Experiment:
        """Make encoder, heads, batches and trainer for a corpus. Raises InputError for a value that cannot be used."""
        config.check_strategy_options((find_strategy(config.strategy).name,))
        main = _labelled_main(splits)
        config = config.resolved(splits)
        torch.manual_seed(config.seed)
        with _options_as_input():
            table = subword_rows(
                splits.vocabulary.words,
                splits.vocabulary.counts,
                min_count=config.min_count,
                buckets=config.buckets,
            )
            encoder = make_encoder(config, splits, table)
            vectors = SubwordVectors(splits.vocabulary, table, encoder)
            coverage = start_from_vectors(encoder, config, splits)
            of_columns = {name: make_task(splits.train.targets[name]) for name in splits.tasks}
            of_columns[main] = judged_by(config.metric, splits, of_columns[main])
            tasks: dict[str, Task | WordTask] = {**of_columns, **context_task(config, splits)}
            heads = MultiTaskHeads(encoder.out_features, tasks, main, backend=config.backend)
            trainer = _make_trainer(config, splits, encoder, heads, callbacks)
            dtype = trainer.options.autocast_dtype or torch.float32
            backend = choose_backend(trainer.device, dtype, config.backend)
            scales = scales_of(splits.train)
            train = make_batches(config, replace(splits, train=scaled(splits.train, scales)))
        return cls(config, splits, vectors, trainer, train, backend, scales, coverage)

    @property
    def loaders(self) -> Any:
        """What the trainer reads: batches of rows, and with --predict-context also batches of the text."""
        if not self.config.predict_context:
            return self.train
        return {str(self.splits.main): self.train, CONTEXT: context_batches(self.config, self.splits)}

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        assert self.config.epochs is not None
        return math.ceil(self.config.epochs * self._steps_per_epoch)

    @property
    def _steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.config.accumulate)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train: all steps are done, or the run has reached its plateau."""
        return self.trainer.step == self.total_steps or self.trainer.history.stopped is not None

    def run(
        self,
        checkpoint: Path | None = None,
        resume: bool = False,
        checkpoint_seconds: float | None = 600.0,
    ) -> History:
        """Train to the end, or until a callback asks to stop. Raises InputError for a checkpoint of other data."""
        held_out = self._held_out(self.splits.dev)
        try:
            return self.trainer.fit(
                self.loaders,
                val=held_out,
                epochs=self.config.epochs,  # type: ignore[arg-type]
                evaluate_every=self._evaluate_every(),
                checkpoint=checkpoint,
                checkpoint_seconds=checkpoint_seconds,
                resume=resume,
            )
        except InputError as error:  # of many that changed data may cause: steps an epoch, words, batches
            if resume and checkpoint and has_other_data(checkpoint, self.train, held_out):
                raise InputError(
                    f"{self.config.data} has changed since the run began; restore the data, or train again without "
                    "--resume"
                ) from error
            _name_flags(error)
            raise

    def warm_up(self) -> None:
        """Take WARMING_STEPS steps, divided into phases by the schedule, and discard their result.

        This is for costs that occur once per process. A run that counts is prepared anew, and reports it if it
        diverges.
        """
        if isinstance(schedule := self.trainer.schedule, Shortening):
            # Some schedules need more epochs than that to pass all phases.
            self.trainer.schedule = schedule.in_small()
        run = self.trainer.begin(
            self.loaders, val=self._held_out(self.splits.dev), epochs=WARMING_STEPS / self._steps_per_epoch
        )
        with closing(run), suppress(NonFiniteLossError):
            while run.steps_done < run.total_steps:
                run.step()
            run.record()

    def _evaluate_every(self) -> int:
        """Steps between evaluations: where possible at a record of the history, or else records would cover only a few
        steps.
        """
        every = max(1, self.total_steps // self.config.evaluations)
        log_every = self.trainer.log_every
        return every if every < log_every else round(every / log_every) * log_every

    def rows_read(self, step: int) -> int:
        """Return how many examples the steps up to and including `step` have learned from, by their batches."""
        phases = self.trainer.history.phases
        ends = [phase.first_step for phase in phases[1:]] + [step]
        return sum(
            self.train.rows_a_batch(phase.active)
            * (
                self._batches_read(max(phase.first_step, min(end, step)))
                - self._batches_read(phase.first_step)
            )
            for phase, end in zip(phases, ends, strict=True)
        )

    def _batches_read(self, steps: int) -> int:
        """Return the number of batches of so many steps: the last step of an epoch takes what is left of it."""
        epochs, steps_of_last = divmod(steps, self._steps_per_epoch)
        return epochs * len(self.train) + min(steps_of_last * self.config.accumulate, len(self.train))

    def test(self) -> dict[str, float]:
        """Return the test metric of every task with the current weights."""
        return self._tested(self.config.metric, self.splits.tasks)

    def test_span_f1(self) -> float | None:
        """Return F1 by spans of the main task on test rows, with the current weights; None if its classes are no tags
        of spans.
        """
        main = str(self.splits.main)
        return self._tested(SPAN_F1, (main,))[main] if is_by_spans(self.splits) else None

    def _tested(self, metric: str | None, tasks: Sequence[str]) -> dict[str, float]:
        """Return the metrics of tasks on test rows; metric: what the main task is judged by."""
        test, judges = self.splits.test, self.trainer.metrics
        self.trainer.metrics = _own_metrics(metric, self.splits, test)
        try:
            return self.trainer.evaluate(self._held_out(test), tasks)
        finally:
            self.trainer.metrics = judges

    @property
    def metric(self) -> str:
        """The name of what the main task is judged by."""
        heads = self.trainer.heads
        own = self.trainer.metrics.get(heads.main)
        return heads.tasks[heads.main].metric if own is None else metric_name(own)

    def _held_out(self, corpus: Any) -> Any:
        window = self.config.window if corpus.level == "token" else None
        return evaluation_batches(
            scaled(corpus, self.scales), evaluation_rows(corpus, self.splits.tasks), window, self.splits.tasks
        )


def _own_metrics(metric: str | None, splits: Splits, corpus: Corpus) -> dict[str, Metric]:
    """Return what judges the main task on a corpus, if that is no metric of its kind."""
    main = str(splits.main)
    return {main: SpanF1(corpus.column(main).class_names, main, corpus)} if metric == SPAN_F1 else {}


def evaluation_rows(corpus: Corpus, tasks: Sequence[str]) -> int:
    """Return the number of rows of an evaluation batch."""
    widest = max(corpus.column(name).size for name in tasks)
    return max(LEAST_EVALUATION_ROWS, min(EVALUATION_ROWS[corpus.level], MOST_LOGITS // widest))


def text_model(experiment: Experiment) -> TextModel:
    """Return the trained model for saving and predicting: on a CPU, with the current weights, in units of the data."""
    trainer, splits = experiment.trainer, experiment.splits
    left_out = untrained(trainer.heads, trainer.history)
    configuration, tensors = describe(*_modules_to_keep(trainer.encoder, trainer.heads, left_out))
    encoder, heads = rebuild(configuration, {name: t.detach().cpu() for name, t in tensors.items()})
    assert isinstance(encoder, WindowEncoder | BagEncoder)
    for name in heads.names:
        if name in experiment.scales:
            experiment.scales[name].undo_in(heads.linear(name))
    labels = {
        name: Labels(column.kind, column.class_names, never_seen(column))
        for name, column in splits.train.targets.items()
        if name in heads.names
    }
    reader = READERS[experiment.config.data.partition(":")[0]]
    vectors = experiment.vectors
    return TextModel(
        encoder,
        heads,
        vectors.vocabulary,
        vectors.table,
        labels,
        reader.tokenizer,
        located(splits.name),
        experiment.config.text_column,
    )


def _modules_to_keep(
    encoder: nn.Module, heads: MultiTaskHeads, left_out: Collection[str]
) -> tuple[nn.Module, MultiTaskHeads]:
    """Return encoder and heads of the tasks that can be predicted for text; with one encoder per task, the main task's
    only.
    """
    if not isinstance(encoder, TaskAdaptedEncoder):
        return encoder, heads_without(heads, left_out)
    main = heads.main
    alone = MultiTaskHeads.from_modules(
        {main: heads.linear(main)}, {main: heads.tasks[main]}, main, backend=heads.backend, plan=heads.plan
    )
    return encoder.folded(main), alone


def _on_engine(
    config: Config, encoder: WindowEncoder | BagEncoder, heads: MultiTaskHeads
) -> tuple[nn.Module, MultiTaskHeads, dict[str, Any]]:
    """Return (encoder, heads, options of the Trainer) for training on the chosen engine."""
    if config.engine == "torch":
        optimizer = plain_optimizer(encoder.table, config.lr, config.weight_decay)
        options = {"optimizer": optimizer, "graph": False, "backward": "autograd"}
        return plain_encoder(encoder), PlainHeads.of(heads), options
    graph = "auto" if config.graph is None else config.graph
    return encoder, heads, {
        "weight_decay": config.weight_decay, "graph": graph, "backward": config.backward,
    }  # fmt: skip


def make_task(column: TargetColumn) -> Task:
    """Return the task for a target column."""
    task: Task = task_of_column(column.kind, column.size)
    return task


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
    }
    of_tokens = splits.train.level == "token"
    batches = (
        TokenBatches(splits.train, config.batch_size, config.window, **options)
        if of_tokens
        else BagBatches(splits.train, config.batch_size, **options)
    )
    batches.data_settings[WORDS] = splits.vocabulary.digest  # batches have numbers in place of words
    return batches

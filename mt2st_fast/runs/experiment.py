"""One training run from a configuration and a corpus, used once by `train` and many times by `compare`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mt2st_fast.data import (
    BagBatches,
    Splits,
    TokenBatches,
    evaluation_batches,
    subword_rows,
)
from mt2st_fast.data.scaling import Scale, scaled, scales_of
from mt2st_fast.errors import InputError
from mt2st_fast.kernels import Choice, choose_backend
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.subword_vectors import SubwordVectors
from mt2st_fast.model.tasks import Task, task_of_column
from mt2st_fast.model.word_tasks import WordTask
from mt2st_fast.runs.config import Config
from mt2st_fast.runs.experiment_parts import (
    evaluation_rows,
    labelled_main,
    make_batches,
    make_encoder,
    make_trainer,
    own_metrics,
    start_from_vectors,
)
from mt2st_fast.runs.judging import SPAN_F1, is_by_spans, judged_by
from mt2st_fast.runs.options import in_flags, options_of
from mt2st_fast.runs.resumed_data import has_other_data
from mt2st_fast.runs.word_context import CONTEXT, context_batches, context_task
from mt2st_fast.training.callbacks.callback import Callback
from mt2st_fast.training.divergence import NonFiniteLossError
from mt2st_fast.training.history import History
from mt2st_fast.training.own_metrics import metric_name
from mt2st_fast.training.phases.turns import part_at
from mt2st_fast.training.schedules import find_strategy, strategy_options
from mt2st_fast.training.schedules.abilities import Shortening
from mt2st_fast.training.trainer import Trainer
from mt2st_fast.words.vectors import Coverage

WARMING_STEPS = 5


@contextmanager
def _options_as_input() -> Iterator[None]:
    """Report values that the library refuses during setup as user errors: one line, no traceback."""
    try:
        yield
    except InputError as error:
        _name_flags(error)
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise InputError(_in_flags(" ".join(str(error).split()))) from error


def _name_flags(error: InputError) -> None:
    """Have an error of the library name flags instead of arguments."""
    error.args = (_in_flags(str(error)),)


def _in_flags(message: str) -> str:
    of_strategies = {name: option for name, (option, _) in strategy_options().items()}
    return in_flags(message, {**options_of(Config), **of_strategies})


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
        main = labelled_main(splits)
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
            columns = {name: splits.train.targets[name] for name in splits.tasks}
            of_columns = {name: task_of_column(column.kind, column.size) for name, column in columns.items()}
            of_columns[main] = judged_by(config.metric, splits, of_columns[main])
            tasks: dict[str, Task | WordTask] = {**of_columns, **context_task(config, splits)}
            heads = MultiTaskHeads(encoder.out_features, tasks, main, backend=config.backend)
            trainer = make_trainer(config, splits, encoder, heads, callbacks)
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

    def check(self) -> None:
        """Raise InputError for a run that could not begin, such as a strategy beside options that it rules out.

        For callers that would otherwise have removed earlier files, or trained other runs, when `run` refuses.
        """
        with _options_as_input():
            held_out = self._held_out(self.splits.dev)
            run = self.trainer.begin(self.loaders, val=held_out, epochs=self.config.epochs)
            with closing(run):
                part_at(self.trainer.schedule, run.moment)  # turns may not fit into the run

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
            self.train.rows_a_batch(phase.active, own_labels=phase.own_labels > 0)
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
        self.trainer.metrics = own_metrics(metric, self.splits, test)
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

"""The Trainer: its options, `fit`, and the loop over the steps of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mt2st_fast.environment import device_named
from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.modes import check_records
from mt2st_fast.model.module_state import state_of
from mt2st_fast.model.sharded import is_divided_among_all
from mt2st_fast.numbers import check_count, check_positive, given
from mt2st_fast.training.begin_together import begin_together
from mt2st_fast.training.callbacks.callback import Callback
from mt2st_fast.training.callbacks.early_stopping import EarlyStopping
from mt2st_fast.training.checkpoints.checkpoint import Checkpoint, check_replaceable
from mt2st_fast.training.checkpoints.loading import LoadedWeights, load_weights
from mt2st_fast.training.checkpoints.saving import Saving
from mt2st_fast.training.engines.graphs.capturer import Capturer, CudaCapturer
from mt2st_fast.training.evaluation import evaluate
from mt2st_fast.training.given_parts import check_parts
from mt2st_fast.training.history import History
from mt2st_fast.training.inputs.batch import Batch
from mt2st_fast.training.inputs.digest import held_out_digest
from mt2st_fast.training.inputs.shapes import Paired, length_of
from mt2st_fast.training.inputs.sources import Source
from mt2st_fast.training.optimizers.learning_rate import Decay, SchedulerFactory
from mt2st_fast.training.optimizers.upkeep import row_sparse_tables
from mt2st_fast.training.own_metrics import Metric, check_metrics
from mt2st_fast.training.phases.runs_on_heads import goes_on
from mt2st_fast.training.phases.selection import no_held_out
from mt2st_fast.training.processes.checks import check_modules, check_options, check_schedule, check_sharded
from mt2st_fast.training.processes.data import add_up_sums, divide, in_step, own_batches
from mt2st_fast.training.processes.group import BEGIN, Processes, own_device, the_processes
from mt2st_fast.training.run import Run
from mt2st_fast.training.run_options import (
    DEFAULT_LR,
    Backward,
    Distributed,
    OptimizerFactory,
    Precision,
    RunOptions,
    steps_of,
)
from mt2st_fast.training.schedules import Schedule, Switch
from mt2st_fast.training.schedules.abilities import ObservingHeldOut, Selecting, check_resumable
from mt2st_fast.training.trained_heads import without_labels

EVALUATE = "Trainer.evaluate"
# Options that the loop over the steps reads; a run keeps the others as they were when it began.
AT_ONCE = ("log_every", "metrics")

logger = logging.getLogger(__name__)


def _option(name: str) -> Any:
    """Return an attribute of a Trainer that reads and replaces one of its options."""

    def get(trainer: Trainer) -> Any:
        return getattr(trainer.options, name)

    def put(trainer: Trainer, value: Any) -> None:
        if trainer._trains and name not in AT_ONCE:
            logger.warning(
                "%s is set within a run, which keeps the one that it began with: the new one counts from the next on",
                name,
            )
        trainer.options = replace(trainer.options, **{name: value})

    return property(get, put)


def _part(name: str) -> Any:
    """Return an attribute of a Trainer for its encoder or heads, which a run keeps to its end."""

    def get(trainer: Trainer) -> Any:
        return getattr(trainer, f"_{name}")

    def put(trainer: Trainer, value: Any) -> None:
        if trainer._trains:
            raise InputError(
                f"{name} cannot be replaced within a run, whose optimizer holds the parameters of the one it began "
                "with: change the modules within it, or set another one between runs (close() ends one)"
            )
        check_parts(**({"encoder": trainer.encoder, "heads": trainer.heads} | {name: value}))
        setattr(trainer, f"_{name}", value.to(trainer.device))

    return property(get, put)


class Trainer:
    """Trains an encoder and its heads on all active tasks, and retires tasks as the schedule says.

    Args:
        encoder: any module whose output is (N, D) or (N, T, D) features.
        heads: one head per task over the D features.
        schedule: the weight of each task at each step; `Switch()` by default.
        lr: the learning rate of the default optimizer.
        optimizer: a function from parameters to a torch optimizer of all of them. By default AdamW, or `LazyAdam` if
            the encoder has a row-sparse table (`sparse=True`).
        weight_decay: for the default optimizer alone; acts on dense parameters (the log says so if there are others).
        lr_decay: "linear" lowers the learning rate to 0 over the run, "none" keeps it.
        lr_scheduler: a function from the optimizer, or from the optimizer and the number of steps of the run, to a
            torch scheduler. The scheduler is stepped after every step and saved in checkpoints.
        clip_norm: the largest 2-norm of all gradients together.
        accumulate: the number of batches per step.
        precision: "float32", or the autocast dtype: "bfloat16", or "float16" with loss scaling. Within an autocast of
            another dtype, training is refused.
        device: "auto" uses CUDA if it is available.
        log_every: steps between records; the loop waits for the device there and nowhere else.
        callbacks: notified of steps, records, evaluations and phases.
        metrics: {task: metric} to replace the metric of the task's kind: a torchmetrics object, or a function of
            predictions (probabilities, except for a regression) and targets of the labelled rows. Higher is better.
        graph: capture the step of each phase as a CUDA graph and replay it. "auto": on CUDA, if a step can be
            captured; otherwise it runs eagerly. A replay does not run the encoder's Python code again.
        backward: how gradients are made. "auto": by the fastest engine that gives the same step (docs/kernels.md).
            "autograd": PyTorch's autograd makes all of them, and the optimizer steps. "fused": those of row-sparse
            tables, each of which a step may read only once, are never stored: the kernel call that is the whole step,
            or the backward pass, updates their rows.
        distributed: "auto" trains one model together with the other processes of torch's process group, if there is one
            (docs/processes.md); "none" lets each process train its own.

    `history.phases` says which engine took the steps of each phase, and why the others did not.

    Raises:
        ValueError: for an option out of range, for graph=True without a CUDA device, and for backward="fused" if
            something needs the gradient (clip_norm, accumulate, float16) or nothing is row-sparse.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: MultiTaskHeads,
        *,
        schedule: Schedule | None = None,
        lr: float = DEFAULT_LR,
        optimizer: OptimizerFactory | None = None,
        weight_decay: float = 0.0,
        lr_decay: Decay = "none",
        lr_scheduler: SchedulerFactory | None = None,
        clip_norm: float | None = None,
        accumulate: int = 1,
        precision: Precision = "float32",
        device: str | torch.device = "auto",
        log_every: int = 20,
        callbacks: Sequence[Callback] = (),
        metrics: Mapping[str, Metric] | None = None,
        graph: bool | Literal["auto"] = "auto",
        backward: Backward = "auto",
        distributed: Distributed = "auto",
    ) -> None:
        check_parts(encoder, heads, optimizer, callbacks)
        if backward == "fused" and not row_sparse_tables(encoder):
            raise ValueError('backward="fused" needs a row-sparse table; set sparse=True in the encoder')
        words = [name for name in heads.names if heads.is_word_task(name)]
        if words and not hasattr(encoder, "pool"):
            raise ValueError(
                f"task {words[0]} is on words: it needs an encoder with pool(types), such as BagEncoder"
            )
        check_metrics(metrics or {}, heads)
        self.options = RunOptions(
            schedule=Switch() if schedule is None else schedule,
            lr=lr,
            optimizer=optimizer,
            weight_decay=weight_decay,
            lr_decay=lr_decay,
            lr_scheduler=lr_scheduler,
            clip_norm=clip_norm,
            accumulate=accumulate,
            precision=precision,
            device=own_device() if device == "auto" else device_named(device),
            log_every=log_every,
            metrics=dict(metrics or {}),
            graph=graph,
            backward=backward,
            distributed=distributed,
        )
        self._encoder, self._heads = encoder.to(self.device), heads.to(self.device)
        self.callbacks = list(callbacks)
        self._run: Run | None = None
        self.stop_requested = False

    encoder: nn.Module = _part("encoder")
    heads: MultiTaskHeads = _part("heads")

    # The options under their own names. One that is set anew is checked like the argument.
    schedule: Schedule = _option("schedule")
    lr: float = _option("lr")
    lr_decay: Decay = _option("lr_decay")
    lr_scheduler: SchedulerFactory | None = _option("lr_scheduler")
    clip_norm: float | None = _option("clip_norm")
    accumulate: int = _option("accumulate")
    precision: Precision = _option("precision")
    log_every: int = _option("log_every")
    metrics: Mapping[str, Metric] = _option("metrics")
    graph: bool | Literal["auto"] = _option("graph")
    backward: Backward = _option("backward")
    distributed: Distributed = _option("distributed")

    @property
    def _trains(self) -> bool:
        """Whether a run has begun and is not over."""
        return goes_on(self._run)

    @property
    def device(self) -> torch.device:
        """Where encoder and heads are, and train."""
        return self.options.device

    # --- what a user calls ------------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        *,
        val: Iterable[Batch] | None = None,
        epochs: float | None = None,
        steps: int | None = None,
        evaluate_every: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float | None = 600.0,
        resume: bool = False,
    ) -> History:
        """Train for `epochs` passes over `train` (10 by default), or for `steps` steps, and return the history.

        train: a loader of (inputs, {task: target}) batches, each with a target of the main task or of another active
        one; or {task: loader}. A batch may also be a dictionary, with targets under the names of the tasks (or in a
        dictionary under "labels") beside the inputs. A stream without a length needs `steps`, which then count as one
        pass.
        val: one loader of such batches, evaluated every `evaluate_every` steps (every epoch by default) and at the end.
        Parameters that a callback unfreezes train from the next record on.
        checkpoint: a file, written at the end of every epoch, within a long epoch every `checkpoint_seconds` (None: not
        within epochs), and when `stop_requested` ends the run. With `resume` the run continues from it; on a CPU, the
        result is bit for bit that of a run that never stopped. `epochs` may then be larger than before: the schedule
        and lr_decay follow the new end, and the log says so. Data, options and heads must be the same as before.

        Raises NonFiniteLossError, naming task, step, epoch and learning rate, if a loss or a parameter is no longer
        finite, and InputError for a checkpoint that does not fit, naming the difference and the fix.
        """
        if isinstance(val, Mapping):
            raise TypeError("val must be one loader of (inputs, {task: target}) batches, not a mapping")
        if isinstance(val, Iterator):
            raise TypeError(
                "val is an iterator, which is exhausted after one evaluation; pass a list or a loader"
            )
        if val is not None and length_of(val) == 0:
            raise ValueError("val has no batches; leave it out to train without evaluations")
        if val is None and isinstance(self.schedule, ObservingHeldOut):
            raise ValueError(no_held_out(self.schedule))
        if val is None and any(isinstance(callback, EarlyStopping) for callback in self.callbacks):
            raise InputError("EarlyStopping needs evaluations, but there are none; pass val=")
        if checkpoint is not None and not resume:
            check_replaceable(Path(checkpoint))
        check_count(**given(evaluate_every=evaluate_every))
        check_positive(**given(checkpoint_seconds=checkpoint_seconds))
        run = self.begin(train, val=val, epochs=epochs, steps=steps, checkpoint=checkpoint, resume=resume)
        save = None if checkpoint is None else partial(run.save, checkpoint)
        try:
            with run.processes.telling_errors(), run.processes.doing("Trainer.fit"):
                self._train(run, val, evaluate_every or run.steps_per_epoch, Saving(save, checkpoint_seconds))
        finally:
            run.close()
        return run.history

    def begin(
        self,
        train: Any,
        *,
        val: Iterable[Batch] | None = None,
        epochs: float | None = None,
        steps: int | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> Run:
        """Return a run that is ready for its first step; arguments and errors are those of `fit`.

        val: held-out batches, for a schedule that uses them to choose which parts train.

        For your own training loops: call `step()`, `record()` whenever you want losses, and `close()` at the end.
        """
        check_records()
        if resume and checkpoint is None:
            raise ValueError("resume needs the checkpoint to continue from; pass checkpoint=")
        if val is None and isinstance(self.schedule, Selecting):
            raise ValueError(no_held_out(self.schedule))
        if checkpoint is not None:
            check_resumable(self.schedule)
        self._run, self.stop_requested = None, False
        processes = the_processes(self.distributed)
        with processes.joining(), processes.doing(BEGIN):
            stored = Checkpoint(Path(checkpoint)) if resume and checkpoint is not None else None
            self._run = self._begin(
                train, val, epochs, steps, processes, stored, watched=checkpoint is not None
            )
        if not self.encoder.training:  # parts set to evaluation mode within a training encoder stay so
            self.encoder.train()
        return self._run

    def _begin(
        self, train: Any, held_out: Iterable[Batch] | None, epochs: float | None, steps: int | None,
        processes: Processes, stored: Checkpoint | None, *, watched: bool,
    ) -> Run:  # fmt: skip
        options = self.options
        check_options(
            processes, graph=options.graph is True, backward=options.backward, metrics=options.metrics
        )
        check_schedule(processes, options.schedule)
        check_modules(processes, {"encoder": self.encoder, "heads": self.heads})
        check_sharded(processes, options.schedule, self.encoder, self.heads, options.precision)
        train, taken = divide(train, processes)
        source = Source(train, self.heads.main, self.heads.names, options.accumulate, steps, taken)
        if watched:
            source.watch()
            # What cannot be saved is refused before any step.
            state_of(self.encoder, "encoder", keep_vars=True)
            state_of(self.heads, "heads", keep_vars=True)
        total_steps = steps_of(epochs, steps, source.steps_per_epoch)
        digest = held_out_digest(held_out) if watched and not processes.are_several else None
        run = Run(
            self.encoder,
            self.heads,
            options,
            source,
            total_steps,
            self._make_capturer,
            self._notify,
            processes,
            resume=stored,
            held_out=None if held_out is None else Paired(held_out, self.heads.names),
            settings={} if digest is None else {"held-out data": digest},
        )
        begin_together(processes, run, options, resumed=stored is not None)
        return run

    def load(self, checkpoint: str | Path, *, partial: bool = False) -> LoadedWeights:
        """Load the weights of a checkpoint, and nothing else: its optimizer, step and data are ignored.

        partial: load what fits in name and shape into this encoder and these heads. The result says what was loaded,
        what was not, and why. Raises InputError, with nothing changed, if the file is not a checkpoint, if something
        does not fit and `partial` is False, or if nothing fits.
        """
        modules: dict[str, nn.Module] = {"encoder": self.encoder, "heads": self.heads}
        return load_weights(modules, Checkpoint(Path(checkpoint)).weights(modules), partial=partial)

    def evaluate(self, batches: Iterable[Batch], tasks: Sequence[str] | None = None) -> dict[str, float]:
        """Return the metric of each task over all batches; by default of all active tasks but those on words.

        With several processes, each evaluates the batches it is given. All of them must call it, with the same number
        of batches, if the encoder is sharded; then raises InputError if one comes alone or has more batches.
        """
        if not is_divided_among_all(self.encoder):
            return self._evaluate(batches, tasks)
        processes = the_processes(call=EVALUATE)
        try:
            with processes.telling_errors(), processes.doing(EVALUATE):
                return self._evaluate(in_step(batches, processes), tasks)
        finally:
            processes.close()

    def _evaluate(
        self, batches: Iterable[Batch], tasks: Sequence[str] | None = None, together: Processes | None = None
    ) -> dict[str, float]:
        """together: the processes that evaluate at the same time, each on its own batches."""
        measured = self._measured(tasks)
        dtype = self.options.autocast_dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            options: dict[str, Any] = {"metrics": self.metrics}
            if self._run is not None and (self._run.encoder, self._run.heads) == (self.encoder, self.heads):
                options["shortcuts"] = self._run.engine
            if together is not None:
                options["add_up"] = partial(add_up_sums, processes=together)
            return evaluate(self.encoder, self.heads, batches, measured, self.device, **options)

    def _measured(self, tasks: Sequence[str] | None) -> Sequence[str]:
        """Return the tasks to measure. Raises ValueError for one that is unknown, or has no metric."""
        if isinstance(tasks, str):
            raise TypeError(f"tasks must be a list of names, not the string {tasks!r}; pass [{tasks!r}]")
        for name in tasks or ():
            self.heads.task(name)  # raises for an unknown one
            if self.heads.is_word_task(name):
                raise ValueError(f"the task {name} is on words and has no metric; leave it out")
        return tasks or [name for name in self.heads.active if not self.heads.is_word_task(name)]

    @property
    def run(self) -> Run:
        """The current run, or the last one. Raises RuntimeError if there was none yet."""
        if self._run is None:
            raise RuntimeError("there is no run yet; start one with fit or begin")
        return self._run

    @property
    def history(self) -> History:
        """What has happened in the current run, or in the last one."""
        return History(self.heads.main) if self._run is None else self._run.history

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.run.processes.writes

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return 0 if self._run is None else self._run.steps_done

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole current run."""
        return 0 if self._run is None else self._run.total_steps

    @property
    def epoch(self) -> float:
        """Passes over the main task's data done so far."""
        return self.step / self.run.steps_per_epoch

    def _train(self, run: Run, val: Iterable[Batch] | None, evaluate_every: int, saving: Saving) -> None:
        run.processes.check_same(
            {
                "log_every": self.log_every,
                "evaluate_every": evaluate_every,
                "val": "given" if val is not None else None,
                "checkpoint": "given" if saving.is_asked else None,
            }
        )
        own_val = own_batches(val, run.processes, self.encoder)
        self._notify("on_fit_start")
        while self._goes_on(run, saving) and run.steps_done < run.total_steps:
            run.step()
            self._notify("on_step")
            ended = run.steps_done == run.total_steps
            epoch_ends = run.steps_done % run.steps_per_epoch == 0 or ended
            due = run.steps_done % evaluate_every == 0 or ended
            records = due or epoch_ends or run.steps_done % self.log_every == 0
            if records:
                run.record()
            if due and val is not None and own_val is not None:
                evaluation = run.note_evaluation(self._evaluate(own_val, together=run.processes), val)
                self._notify("on_evaluation", evaluation)
            saving.after_step(epoch_ends)
            if epoch_ends:
                self._notify("on_epoch_end")
            if records:
                run.admit_unfrozen()
        if self.stop_requested:
            saving.now()
        run.check_finite()
        if unlabelled := without_labels(run.history):
            logger.warning(
                "every loss of %s was 0, as where no row has a label, so no step trained the head; check the targets",
                ", ".join(unlabelled),
            )
        self._notify("on_fit_end")

    def _goes_on(self, run: Run, saving: Saving) -> bool:
        """Return whether the run continues; several processes stop, and save, at the same step."""
        self.stop_requested, saving.due = run.processes.any_of_all(
            self.stop_requested, saving.is_due_by_clock()
        )
        return not self.stop_requested

    def _make_capturer(self) -> Capturer:
        return CudaCapturer(self.device)

    def _notify(self, hook: str, *what: Any) -> None:
        """Call a method of `Callback` of every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *what)

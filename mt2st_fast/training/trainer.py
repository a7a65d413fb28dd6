"""The training loop: fit -> one step -> record, with phases entered where the schedule says so."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mt2st_fast.compiling import compile_seconds
from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads, MultitaskLoss
from mt2st_fast.training.bag_training import BagTraining
from mt2st_fast.training.callbacks import Callback
from mt2st_fast.training.checkpoint import Checkpoint, save_checkpoint
from mt2st_fast.training.evaluation import evaluate
from mt2st_fast.training.graphs import (
    Capturer,
    CudaCapturer,
    GraphedSteps,
    optimizer_constants,
    optimizer_obstacle,
)
from mt2st_fast.training.history import Evaluation, History, PhaseRecord, StepRecord
from mt2st_fast.training.optim import LazyAdam, RowSparseOptimizer, unfuse
from mt2st_fast.training.optimizer_upkeep import (
    FADE_STEPS,
    clip_gradients,
    drop_faded_moments,
    put_on_device,
    rate_as_set,
    row_sparse_tables,
    set_rate,
)
from mt2st_fast.training.phases import enter_phase
from mt2st_fast.training.schedules import Moment, Schedule, Switch
from mt2st_fast.training.sources import Batch, Source, to_device

Precision = Literal["float32", "bfloat16", "float16"]
AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class NonFiniteLossError(InputError):
    """A task's loss became NaN or infinite."""


class Trainer:
    """Trains an encoder and its heads on all active tasks, and lets tasks go as the schedule says.

    encoder: any module whose output is (N, D) or (N, T, D) features. heads: MultiTaskHeads over D.
    optimizer: a function from parameters to a torch optimizer; AdamW(lr) by default, and LazyAdam(lr) where the
    encoder has a row-sparse table (`sparse=True`). weight_decay belongs to that default.
    lr_decay: the learning rate falls linearly to 0 over the run, or stays. clip_norm: the
    largest 2-norm of all gradients together. accumulate: batches a step. precision: the autocast dtype,
    float16 with loss scaling. device: "auto" takes CUDA where there is one. log_every: steps between
    records; the loop waits for the device there and nowhere else. graph: capture the step of each phase as a
    CUDA graph and replay it; a step that cannot be captured runs eagerly and `history.phases` says why. What
    Python does in the encoder, a replay does not do again. fuse_backward: the backward pass itself steps the
    rows of row-sparse tables, whose gradient is never made; on a CPU the whole step of a BagEncoder is one kernel
    call where SGD or RowwiseAdagrad steps it (`BagTraining.obstacle` says what stands against it).

    Raises ValueError for an option out of range, for graph=True without a CUDA device, and for fuse_backward where
    something needs the gradient (clip_norm, accumulate, float16) or nothing is row-sparse.
    """

    # What belongs to one run; `fit` makes it anew.
    _source: Source
    _optimizer: torch.optim.Optimizer
    _steps_per_epoch: int
    _total_steps: int
    _phase_active: tuple[str, ...]  # the tasks that losses and weights (K,) are of
    _weights_k: Tensor
    _weight_values: list[float]
    _unread_losses: list[Tensor]  # (K,) each, on the device until the next record
    _interval_seconds: float  # spent in steps since the last record
    _learning_rate: float  # of the first group
    _graphed_steps: GraphedSteps | None
    _fused_tables: list[nn.Parameter]  # whose rows the backward pass steps
    _bag_training: BagTraining | None  # takes this phase's steps, where they can be one kernel call
    _phase_parameters: list[nn.Parameter]  # all of them; which are trained may change by a callback

    def __init__(
        self,
        encoder: nn.Module,
        heads: MultiTaskHeads,
        *,
        schedule: Schedule | None = None,
        lr: float = 2e-3,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        weight_decay: float = 0.0,
        lr_decay: Literal["linear", "none"] = "none",
        clip_norm: float | None = None,
        accumulate: int = 1,
        precision: Precision = "float32",
        device: str | torch.device = "auto",
        log_every: int = 20,
        callbacks: Sequence[Callback] = (),
        graph: bool = False,
        fuse_backward: bool = False,
    ) -> None:
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr must be positive, not {lr}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, not {clip_norm}")
        if accumulate < 1 or log_every < 1:
            raise ValueError("accumulate and log_every must be at least 1")
        if precision not in ("float32", *AUTOCAST):
            raise ValueError(f"precision {precision} is unknown; there are float32, {', '.join(AUTOCAST)}")
        if lr_decay not in ("linear", "none"):
            raise ValueError(f"lr_decay {lr_decay} is unknown; there are linear, none")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {device} is not available: torch sees no CUDA device here")
        if graph and self.device.type != "cuda":
            raise ValueError(
                f"graph=True needs a CUDA device to capture graphs on; this trainer's is {self.device}"
            )
        words = [name for name in heads.names if heads.is_word_task(name)]
        if words and not hasattr(encoder, "pool"):
            raise ValueError(
                f"task {words[0]} is on words: it needs an encoder with pool(types), such as BagEncoder"
            )
        if fuse_backward:
            self._check_fusible(encoder, clip_norm, accumulate, precision)
        self.graph = graph
        self.fuse_backward = fuse_backward
        self.encoder, self.heads = encoder.to(self.device), heads.to(self.device)
        self.schedule: Schedule = Switch() if schedule is None else schedule
        self.lr, self.lr_decay = lr, lr_decay
        self.clip_norm, self.accumulate, self.precision = clip_norm, accumulate, precision
        self.log_every = log_every
        self.callbacks = list(callbacks)
        self._own_optimizer = optimizer is None
        adam = LazyAdam if row_sparse_tables(encoder) or row_sparse_tables(heads) else torch.optim.AdamW
        self._make_optimizer = optimizer or (
            lambda parameters: adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")
        self.history = History(heads.main)
        self.step = 0  # optimizer steps done
        self.stop_requested = False

    @staticmethod
    def _check_fusible(encoder: nn.Module, clip_norm: float | None, accumulate: int, precision: str) -> None:
        if not row_sparse_tables(encoder):
            raise ValueError("fuse_backward needs a row-sparse table: give the encoder sparse=True")
        for option, needs in (
            ("clip_norm", clip_norm is not None),
            ("accumulate", accumulate > 1),
            ("precision float16", precision == "float16"),
        ):
            if needs:
                raise ValueError(
                    f"fuse_backward makes no gradient, which {option} needs; leave one of them out"
                )

    # --- what a user calls ------------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        *,
        val: Iterable[Batch] | None = None,
        epochs: float = 10,
        evaluate_every: int | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
    ) -> History:
        """Train for `epochs` passes over `train` and return what happened.

        train: a loader of (inputs, {task: target}) batches, each with a target of the main task or of another
        active one, or {task: loader}. val: one loader of such batches, evaluated every `evaluate_every` steps
        (an epoch by default) and at the end. checkpoint: a file, written at the end of every epoch and where
        `stop_requested` ends the run; with `resume` the run goes on from it, on a CPU bit for bit as if it
        had never stopped.

        Raises NonFiniteLossError naming task and step, and InputError for a checkpoint that does not fit.
        """
        if not epochs > 0:
            raise ValueError(f"epochs must be positive, not {epochs}")
        if resume and checkpoint is None:
            raise ValueError("resume needs the checkpoint to go on from")
        if isinstance(val, Mapping):
            raise TypeError("val must be one loader of (inputs, {task: target}) batches, not a mapping")
        source = Source(train, self.heads.main, self.heads.names, self.accumulate)
        steps_per_epoch = source.steps_per_epoch
        total_steps = math.ceil(epochs * steps_per_epoch)
        path = Path(checkpoint) if checkpoint is not None else None

        self._begin(source, steps_per_epoch, total_steps, path if resume else None)
        try:
            self._run(source, val, evaluate_every or steps_per_epoch, path)
        finally:
            unfuse(self._fused_tables)
        return self.history

    def evaluate(self, batches: Iterable[Batch], tasks: Sequence[str] | None = None) -> dict[str, float]:
        """The metric of each task (of the active ones that have a head by default) over all batches."""
        measured = tasks or [name for name in self.heads.active if not self.heads.is_word_task(name)]
        with self._autocast():
            return evaluate(self.encoder, self.heads, batches, measured, self.device)

    @property
    def epoch(self) -> float:
        """Passes over the main task's data done so far."""
        return self.step / self._steps_per_epoch

    def _run(
        self, source: Source, val: Iterable[Batch] | None, evaluate_every: int, path: Path | None
    ) -> None:
        steps_per_epoch, total_steps = self._steps_per_epoch, self._total_steps
        self.encoder.train()
        self._each(lambda callback: callback.on_fit_start(self))
        while self.step < total_steps and not self.stop_requested:
            self._enter_phase_if_due(self._moment())
            self._timed_step(source)
            self._each(lambda callback: callback.on_step(self))
            epoch_ends = self.step % steps_per_epoch == 0 or self.step == total_steps
            due = self.step % evaluate_every == 0 or self.step == total_steps
            if due or epoch_ends or self.step % self.log_every == 0:
                self._record()
            if due and val is not None:
                self._evaluate(val)
            if path is not None and epoch_ends:
                self._save(path, source)
            if epoch_ends:
                self._each(lambda callback: callback.on_epoch_end(self))
        if path is not None and self.stop_requested:
            self._save(path, source)
        self._each(lambda callback: callback.on_fit_end(self))

    # --- one step ---------------------------------------------------------------------------------------

    def _timed_step(self, source: Source) -> None:
        # What a first call compiles is no part of a step.
        started, compiled = time.perf_counter(), compile_seconds()
        self._train_step(source.next_step())
        self._interval_seconds += time.perf_counter() - started - (compile_seconds() - compiled)

    def _train_step(self, micro_steps: list[list[Batch]]) -> None:
        wanted = [[self._with_active_targets(batch) for batch in batches] for batches in micro_steps]
        if self._bag_training is not None and self._bag_training.fits(wanted):
            losses = self._bag_training(*wanted[0][0], self._weights_k)
        elif self._graphed_steps is None:
            losses = self._eager_step(wanted)
        else:
            losses = self._graphed_steps(wanted)
            self._note_graph(self._graphed_steps.verdict)
        self._unread_losses.append(losses)
        self.step += 1
        if self.device.type == "cpu" and self.step % FADE_STEPS == 0:
            drop_faded_moments(self._optimizer)

    def _eager_step(self, micro_steps: list[list[Batch]]) -> Tensor:
        """Forward, backward and the optimizer's step; the losses (K,). What a CUDA graph captures."""
        losses = None
        for batches in micro_steps:
            total, micro_losses = self._forward(batches)
            self._scaler.scale(total / len(micro_steps) if len(micro_steps) > 1 else total).backward()
            losses = micro_losses if losses is None else losses + micro_losses
        assert losses is not None
        if self.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            clip_gradients(self._trainable(), self.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return losses / len(micro_steps) if len(micro_steps) > 1 else losses

    def _with_active_targets(self, batch: Batch) -> Batch:
        """A batch without the labels of retired tasks."""
        inputs, targets = batch
        wanted = {name: targets[name] for name in self.heads.active if name in targets}
        if not wanted:
            raise InputError(
                f"a batch at step {self.step} has no target of an active task "
                f"({', '.join(self.heads.active)}); it has {', '.join(targets) or 'none'}"
            )
        return inputs, wanted

    def _forward(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """Total () and losses (K,) of one batch a loader; their tasks are disjoint, so losses add up."""
        totals, losses = [], []
        for inputs, targets in batches:
            with self._autocast():
                out = self._losses(to_device(inputs, self.device), to_device(targets, self.device))
            totals.append(out.total)
            losses.append(out.losses)
        return (totals[0], losses[0]) if len(totals) == 1 else (torch.stack(totals).sum(), sum(losses))  # type: ignore[return-value]

    def _losses(self, inputs: Any, targets: dict[str, Tensor]) -> MultitaskLoss:
        """Of one batch, through the encoder's features or, for a task on words, through its table."""
        name = next(iter(targets))
        if self.heads.is_word_task(name):
            return self.heads.word_loss(name, self.encoder.pool, inputs, targets[name], self._weights_k)  # type: ignore[arg-type]
        return self.heads(self.encoder(inputs), targets, self._weights_k)  # type: ignore[no-any-return]

    def _autocast(self) -> Any:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST[self.precision])

    def _trainable(self) -> list[nn.Parameter]:
        parameters = [p for module in (self.encoder, self.heads) for p in module.parameters()]
        # An encoder may hold the heads as well: they are trained once.
        return [p for p in dict.fromkeys(parameters) if p.requires_grad]

    # --- CUDA graphs ------------------------------------------------------------------------------------

    def _make_capturer(self) -> Capturer:
        return CudaCapturer(self.device)

    def _begin_graphs(self) -> None:
        """Decide, at the start of a run or a phase, whether its steps can be captured."""
        self._phase_parameters = [
            *dict.fromkeys(p for module in (self.encoder, self.heads) for p in module.parameters())
        ]
        if self._graphed_steps is not None:
            obstacle = optimizer_obstacle(
                self._optimizer,
                lr_changes=self.lr_decay != "none",
                loss_scaling=self._scaler.is_enabled(),
            )
            if row_sparse_tables(self.encoder):
                obstacle = "a row-sparse gradient has a length of its own in every batch: give the encoder sparse=False"
            self._graphed_steps.enter_phase(obstacle)

    def _graph_fingerprint(self) -> Hashable:
        """What a captured step has frozen, beside the shapes of its inputs."""
        return (
            self.encoder.training,
            tuple([p.requires_grad for p in self._phase_parameters]),
            optimizer_constants(self._optimizer),
        )

    def _after_failed_capture(self) -> None:
        """Forget what the broken-off step has left: gradients that were never computed, a scaler half-way."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._scaler.is_enabled():
            self._scaler._per_optimizer_states.clear()

    def _note_graph(self, verdict: str) -> None:
        if self.history.phases[-1].graph != verdict:
            self.history.phases[-1] = replace(self.history.phases[-1], graph=verdict)

    # --- phases -----------------------------------------------------------------------------------------

    def _moment(self) -> Moment:
        return Moment(self.step, self._steps_per_epoch, self._total_steps)

    def _enter_phase_if_due(self, moment: Moment) -> None:
        main, *auxiliary = self.heads.names
        weights = self.schedule.task_weights(moment, main, auxiliary)
        active = tuple(name for name in self.heads.active if name in weights)
        if active != self._phase_active:
            enter_phase(active, self.heads, self._optimizer, self._source)
            self._record()
            self._phase_active = active
            self._begin_graphs()
            self._begin_bag_training()
            verdict = None if self._graphed_steps is None else self._graphed_steps.verdict
            self.history.phases.append(PhaseRecord(self.step, active, verdict))
            self._each(lambda callback: callback.on_phase(self, self.history.phases[-1]))
        self._set_weights([weights[name] for name in active])
        self._set_learning_rate(moment)

    def _set_weights(self, values: list[float]) -> None:
        if values == self._weight_values:
            return
        fresh = torch.tensor(values, dtype=torch.float32)
        if len(values) == len(self._weight_values):
            self._weights_k.copy_(fresh, non_blocking=True)
        else:
            self._weights_k = fresh.to(self.device)
        self._weight_values = values

    def _set_learning_rate(self, moment: Moment) -> None:
        if self.lr_decay == "none":
            return
        remaining = 1.0 - moment.step / moment.total_steps
        for group in self._optimizer.param_groups:
            set_rate(group, group["initial_lr"] * remaining)
        self._learning_rate = self._optimizer.param_groups[0]["initial_lr"] * remaining

    # --- begin, record, save ----------------------------------------------------------------------------

    def _begin(self, source: Source, steps_per_epoch: int, total_steps: int, resume: Path | None) -> None:
        self._source = source
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        self._weights_k, self._weight_values = torch.empty(0, dtype=torch.float32, device=self.device), []
        self._phase_active = ()
        self._unread_losses = []
        self._interval_seconds = 0.0
        self.stop_requested = False
        self.step, self.history = 0, History(self.heads.main)
        stored = Checkpoint(resume) if resume is not None else None
        self.heads.set_active(self.heads.names if stored is None else self._stored_active(stored))
        self._optimizer = self._make_optimizer(self._trainable())
        for group in self._optimizer.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        self._graphed_steps = None
        if self.graph:
            self._graphed_steps = GraphedSteps(
                self._eager_step,
                self.device,
                self._make_capturer(),
                self._graph_fingerprint,
                self._after_failed_capture,
            )
        if stored is not None:
            self._restore(stored)
        if self.graph and self._own_optimizer:
            put_on_device(self._optimizer, self.device)
        # After restoring, which puts other tensors into the optimizer's state.
        self._fused_tables = row_sparse_tables(self.encoder) if self.fuse_backward else []
        if self._fused_tables:
            self._fuse()
        self._learning_rate = self._optimizer.param_groups[0]["initial_lr"]
        self._begin_graphs()
        self._begin_bag_training()

    def _begin_bag_training(self) -> None:
        """Decide, at the start of a run or a phase, whether its steps are one kernel call each."""
        parts = self.encoder, self.heads, self._optimizer
        # The kernel knows no autocast.
        wanted = self.fuse_backward and self.precision == "float32"
        self._bag_training = None
        if wanted and BagTraining.obstacle(*parts) is None:
            self._bag_training = BagTraining(*parts, fixed_batches=self._source.fixed_batches)

    def _fuse(self) -> None:
        if not isinstance(self._optimizer, RowSparseOptimizer):
            raise ValueError(
                "fuse_backward needs LazyAdam, RowwiseAdagrad or SGD of mt2st_fast, not "
                f"{type(self._optimizer).__name__}"
            )
        self._optimizer.fuse(table for table in self._fused_tables if table.requires_grad)

    def _stored_active(self, stored: Checkpoint) -> tuple[str, ...]:
        run = self._run_description()
        for key, value in stored.state["run"].items():
            if run[key] != value:
                raise InputError(f"the checkpoint was made with {key} {value}, this run has {run[key]}")
        return tuple(stored.state["active"])

    def _restore(self, stored: Checkpoint) -> None:
        stored.restore_modules({"encoder": self.encoder, "heads": self.heads})
        stored.restore_optimizer(self._optimizer)
        self._scaler.load_state_dict(stored.state["scaler"])
        self.step = stored.state["step"]
        self.history = History.from_json(stored.state["history"])
        self._phase_active = tuple(stored.state["phase_active"])
        # A run that is stopped between two records goes on to the very record it would have made.
        self._unread_losses = [
            torch.tensor(k, dtype=torch.float32, device=self.device) for k in stored.state["unread_losses"]
        ]
        self._interval_seconds = stored.state["interval_seconds"]
        self._weight_values = stored.state["weights"]
        self._weights_k = torch.tensor(self._weight_values, dtype=torch.float32, device=self.device)
        if self._phase_active:
            self._source.enter_phase(self._phase_active)
        self._source.restore(stored.state["source"])
        stored.restore_random_states()

    def _save(self, path: Path, source: Source) -> None:
        if self._unread_losses:
            self._check_finite(torch.stack(self._unread_losses))
        state = {
            "run": self._run_description(),
            "step": self.step,
            "active": self.heads.active,
            "phase_active": self._phase_active,
            "scaler": self._scaler.state_dict(),
            "history": self.history.to_json(),
            "source": source.state(),
            "weights": self._weight_values,
            "unread_losses": [losses_k.tolist() for losses_k in self._unread_losses],
            "interval_seconds": self._interval_seconds,
        }
        save_checkpoint(path, {"encoder": self.encoder, "heads": self.heads}, self._optimizer, state)

    def _run_description(self) -> dict[str, Any]:
        """What must not change between a checkpoint and its resumption."""
        return {
            "tasks": ", ".join(self.heads.names),
            "schedule": _description(self.schedule),
            "steps": self._total_steps,
            "steps an epoch": self._steps_per_epoch,
            "accumulate": self.accumulate,
            "precision": self.precision,
        }

    def _record(self) -> None:
        """Read the losses since the last record: the one place where the loop waits for the device."""
        if not self._unread_losses:
            return
        started = time.perf_counter()
        losses_mk = torch.stack(self._unread_losses).double().cpu()
        self._interval_seconds += time.perf_counter() - started
        steps = len(losses_mk)
        self._check_finite(losses_mk)
        means = dict(zip(self._phase_active, losses_mk.mean(0).tolist(), strict=True))
        weights = dict(zip(self._phase_active, self._weight_values, strict=True))
        record = StepRecord(
            step=self.step,
            epoch=self.epoch,
            total=sum(weights[name] * means[name] for name in means),
            losses=means,
            weights=weights,
            learning_rate=rate_as_set(self._optimizer.param_groups[0], self._learning_rate),
            step_ms=1e3 * self._interval_seconds / steps,
            train_seconds=self.history.train_seconds + self._interval_seconds,
        )
        self._unread_losses, self._interval_seconds = [], 0.0
        self.history.steps.append(record)
        self._each(lambda callback: callback.on_record(self, record))

    def _check_finite(self, losses_mk: Tensor) -> None:
        """Raises NonFiniteLossError if one of the last M steps' losses is not a number to go on with."""
        if torch.isfinite(losses_mk).all():
            return
        first_step = self.step - len(losses_mk)
        m, k = (~torch.isfinite(losses_mk)).nonzero()[0].tolist()
        raise NonFiniteLossError(
            f"the loss of {self._phase_active[k]} is {losses_mk[m, k].item()} at step {first_step + m}: "
            f"lower lr ({self.lr}), set clip_norm, or look for bad values in its inputs and targets"
        )

    def _evaluate(self, val: Iterable[Batch]) -> None:
        evaluation = Evaluation(self.step, self.epoch, self.evaluate(val), self.history.train_seconds)
        self.history.evaluations.append(evaluation)
        self._each(lambda callback: callback.on_evaluation(self, evaluation))

    def _each(self, call: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            call(callback)


def _description(schedule: Schedule) -> str:
    """The schedule as text that is the same in every process: the default repr holds an address."""
    return type(schedule).__name__ if type(schedule).__repr__ is object.__repr__ else repr(schedule)

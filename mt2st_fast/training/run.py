"""One training run: its source, optimizer, phase, weights and history, and the step that advances them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mt2st_fast.compiling import compile_seconds
from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.modes import check_autocast, check_records
from mt2st_fast.training.checkpoints.checkpoint import Checkpoint, save_checkpoint
from mt2st_fast.training.checkpoints.resuming import (
    check_end,
    check_optimizer,
    check_settings,
    freeze_as_then,
    group_names,
    hold_groups,
    named_parameters,
    optimizer_options,
    trained,
)
from mt2st_fast.training.divergence import Rates, check_finite, check_finite_parameters
from mt2st_fast.training.engines import make_engines
from mt2st_fast.training.engines.choice import ChosenEngine
from mt2st_fast.training.engines.fusing import fuse
from mt2st_fast.training.engines.graphs.capturer import Capturer
from mt2st_fast.training.history import Evaluation, History, PhaseRecord, StepRecord
from mt2st_fast.training.inputs.batch import Batch, tasks_of, with_tasks
from mt2st_fast.training.inputs.shapes import Paired
from mt2st_fast.training.inputs.sources import Source
from mt2st_fast.training.interval import Interval
from mt2st_fast.training.learnt_weights import learnt_schedule
from mt2st_fast.training.optimizers.faded_moments import FADE_STEPS, drop_faded_moments
from mt2st_fast.training.optimizers.learning_rate import LearningRate, put_on_device
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer, unfuse
from mt2st_fast.training.optimizers.upkeep import admit, step_mixed_groups_singly
from mt2st_fast.training.phases.entering import enter_phase, set_active
from mt2st_fast.training.phases.observations import look_at_held_out, look_at_losses
from mt2st_fast.training.phases.runs_on_heads import begin_on_heads, check_alone
from mt2st_fast.training.phases.selection import PartSelection
from mt2st_fast.training.phases.self_training import SelfTraining
from mt2st_fast.training.phases.turns import part_at, steps_by_part, take_turn, turns_of
from mt2st_fast.training.processes.data import OWN
from mt2st_fast.training.processes.decisions import agreed_weights, must_agree
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.processes.resuming import own_source, restore_random_states, states_of_all
from mt2st_fast.training.run_options import RunOptions, fixed_settings
from mt2st_fast.training.run_parts import make_parts, modules_of
from mt2st_fast.training.schedules import Moment, Schedule, checked_weights
from mt2st_fast.training.schedules.abilities import (
    Ability,
    Stateful,
    abilities_of,
    check_resumable,
    reasons_of,
)


class Run:
    """Training of an encoder and its heads on one source of batches, a step at a time.

    Made by `Trainer.begin`. steps_done: optimizer steps so far. history: what happened; it contains losses once
    `record` has read them. processes: those that take these steps together; all of them call the same methods.
    notify: calls a hook of every callback, by its name. settings: of the data, which must not change between a
    checkpoint and its resumption.
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: MultiTaskHeads,
        options: RunOptions,
        source: Source,
        total_steps: int,
        make_capturer: Callable[[], Capturer],
        notify: Callable[..., None],
        processes: Processes,
        *,
        resume: Checkpoint | None,
        held_out: Iterable[Batch] | None,
        settings: Mapping[str, str],
    ) -> None:
        self.encoder, self.heads, self.source = encoder, heads, source
        self.steps_per_epoch, self.total_steps = source.steps_per_epoch, total_steps
        self.steps_done, self.history, self.is_closed = 0, History(heads.main), False
        self._options, self._notify, self.processes = options, notify, processes
        self._phase_active: tuple[str, ...] = ()  # the tasks of losses and weights (K,)
        self._weight_values: list[float] = []
        self._given_weights: dict[str, float] | None = None  # by the schedule for the last step
        self._interval = Interval()
        self._last_tasks: tuple[str, ...] = ()  # of the last batch that passed the checks
        self._last_step: list[list[Batch]] | None = None  # kept for a schedule that wants gradients
        self._learnt = learnt_schedule(options.schedule, heads, options.device)
        abilities = abilities_of(options.schedule)
        self._wants_gradients = Ability.SEES_GRADIENTS in abilities
        self._takes_turns = Ability.TAKES_TURNS in abilities
        self._keeps_step = self._wants_gradients or Ability.OBSERVES_HELD_OUT in abilities
        begin_on_heads(self)
        set_active(heads.names, encoder, heads)
        self._trained_at_start = trained(self._named())
        # As given: a callback may change anything later.
        steps = None if source.is_stream else self.steps_per_epoch
        self._settings = {**source.settings, **fixed_settings(options, encoder, heads, steps), **settings}
        if resume is not None:
            set_active(self._stored_active(resume), encoder, heads)
        parts = make_parts(
            encoder, heads, options, self._learnt, processes, fixed_batches=source.fixed_batches
        )
        self._optimizer, self._scaler, self._state = parts.optimizer, parts.scaler, parts.state
        # A callback may change them later.
        self._optimizer_options = optimizer_options(
            self.optimizer, group_names(self.optimizer, self._named())
        )
        if options.device.type == "cuda":
            source.reside_on(options.device)
        self._rate = LearningRate(options.lr_decay, options.lr_scheduler, total_steps)
        if resume is None:
            self._rate.begin(self.optimizer)
        else:
            self._restore(resume)
        own = options.optimizer is None or isinstance(self.optimizer, RowSparseOptimizer)
        if options.captures and own:
            put_on_device(self.optimizer, options.device)
        self._parts = replace(
            parts,
            # After restoring, which puts other tensors into the optimizer's state.
            fused_tables=fuse(parts, len(source.loaders), self._wants_gradients),
            momentum_changes=self._rate.cycles_momentum,
            own_data=OWN in source.taken.values(),
        )
        self._selection = PartSelection(options.schedule, self._parts, held_out)
        self._selection.restore(self.history.selections, self._named())
        self.engine = ChosenEngine(make_engines(self._parts, make_capturer))
        self._self_training = SelfTraining(self._parts, source, self.engine)
        if self._phase_active:
            self.engine.choose(self.history.phases)

    # --- steps, records, evaluations --------------------------------------------------------------------

    @property
    def moment(self) -> Moment:
        """The current step, counted from 0."""
        return self._moment(self.steps_done)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that steps the parameters."""
        return self._optimizer

    @property
    def scheduler(self) -> str | None:
        """The class name of the learning rate scheduler; None without one."""
        return self._rate.scheduler

    def step(self) -> Tensor:
        """Take one optimizer step on the source's next batches, entering a phase first if one is due.

        Returns the losses (K,) of the active tasks, on the device: nothing here waits for it.
        """
        check_records()
        check_autocast(self._options.device, self._options.autocast_dtype)
        with self.processes.doing("Run.step"):
            return self._step()

    def _step(self) -> Tensor:
        self._enter_phase_if_due()
        # A `stopwatch`, without its calls: this is every step.
        started, compiled = time.perf_counter(), compile_seconds()
        losses = self._take_step(self.source.next_step(self.steps_done))
        self._interval.step_seconds += time.perf_counter() - started - (compile_seconds() - compiled)
        return losses

    def record(self, *, after_step: bool = True) -> None:
        """Read the losses since the last record: the one place that waits for the device.

        Raises NonFiniteLossError, naming task and step.
        """
        interval = self._interval
        if not interval.losses:
            return
        losses_mk = interval.read()
        done = range(self.steps_done - len(losses_mk), self.steps_done)
        self._check_finite(losses_mk)
        self._read_learnt_weights()
        means = dict(zip(self._phase_active, losses_mk.mean(0).tolist(), strict=True))
        weights = self._weight_of_task()
        record = StepRecord(
            step=self.steps_done,
            epoch=self.steps_done / self.steps_per_epoch,
            total=sum(weights[name] * means[name] for name in means),
            losses=means,
            weights=weights,
            learning_rate=self._rate.as_set(),
            step_ms=1e3 * interval.step_seconds / len(done),
            train_seconds=self.history.train_seconds + interval.step_seconds + interval.choosing_seconds,
            trained=steps_by_part(self._options.schedule, map(self._moment, done)),
        )
        self._interval = Interval(weighted=self._weighted_now())
        self.history.steps.append(record)
        self._note_trained(means, interval.weighted)
        last_step = self._batches_of_last_step() if after_step and self._wants_gradients else []
        with self.processes.doing("Run.record"):
            look_at_losses(
                self._options.schedule, self._parts, self.steps_done, record.epoch, means, last_step
            )
        self._notify("on_record", record)

    def _note_trained(self, means: Mapping[str, float], weighted: Collection[str]) -> None:
        """Note which tasks the steps since the last record have trained: those with labels (a loss) and a weight.

        A head of one class has a loss of 0 in any case.
        """
        for name, loss in means.items():
            task = self.heads.tasks.get(name)
            one_class = task is not None and task.head.kind.takes_classes and task.head.size == 1
            known = name in self.history.tasks_trained
            counts = self._learnt is not None or name in weighted
            if not known and counts and (loss or one_class):
                self.history.tasks_trained.append(name)

    def _weight_of_task(self) -> dict[str, float]:
        return dict(zip(self._phase_active, self._weight_values, strict=True))

    def _weighted_now(self) -> set[str]:
        return {name for name, weight in self._weight_of_task().items() if weight}

    def admit_unfrozen(self) -> None:
        """Train parameters that were unfrozen or added after the optimizer was made, from their next gradient on."""
        if admit(self._parts.trainable(), self.optimizer) and self._phase_active:
            self.engine.choose(self.history.phases)

    def note_evaluation(self, metrics: dict[str, float], held_out: Iterable[Batch]) -> Evaluation:
        """Add an evaluation on held-out batches to the history, and show it to the schedule."""
        epoch, n_before = self.steps_done / self.steps_per_epoch, len(self.history.evaluations)
        evaluation = Evaluation(self.steps_done, epoch, metrics, self.history.train_seconds)
        last_step, held_out = self._batches_of_last_step(), Paired(held_out, self.heads.names)
        with self.processes.doing("Run.note_evaluation"):
            # What a schedule wants to know is part of its price; the evaluation itself is not.
            self._interval.choosing_seconds += look_at_held_out(
                self._options.schedule, self._parts, evaluation, held_out, n_before, last_step,
                rate_left=self._rate.left(self.steps_done), share_done=self.steps_done / self.total_steps,
                self_training=self.source.self_training, labelled_by=self.source.labelled_by,
                shortcuts=self.engine,
            )  # fmt: skip
        self.history.evaluations.append(evaluation)
        return evaluation

    def close(self) -> None:
        """Restore gradients, unfreeze what the run has frozen, and leave the data and the other processes."""
        self.is_closed = True
        self.source.end()
        unfuse(self._parts.fused_tables)
        self._selection.undo()
        with self.processes.doing("Run.close"):
            self.processes.close()

    # --- one step ---------------------------------------------------------------------------------------

    def _take_step(self, micro_steps: list[list[Batch]]) -> Tensor:
        wanted = [[self._with_active_targets(batch) for batch in batches] for batches in micro_steps]
        for batches in wanted:
            if len(batches) > 1:
                self._check_disjoint(batches)
        try:
            losses = self.engine(wanted)
        except BaseException:  # those of earlier batches of this step would count in the next one
            self.optimizer.zero_grad(set_to_none=True)
            raise
        self._interval.losses.append(losses)
        self._last_step = wanted if self._keeps_step else None
        self.steps_done += 1
        if self._options.device.type == "cpu" and self.steps_done % FADE_STEPS == 0:
            drop_faded_moments(self.optimizer)
        return losses

    def _with_active_targets(self, batch: Batch) -> Batch:
        """Remove the labels of retired tasks from a batch."""
        given = tasks_of(batch)
        if given == self._last_tasks == self.heads.active:  # nearly always: checked before, and all wanted
            return batch
        wanted = tuple([name for name in self.heads.active if name in given])
        if not wanted:
            raise InputError(
                f"a batch at step {self.steps_done} has no target of any active task "
                f"({', '.join(self.heads.active)}); it has {', '.join(given) or 'none'}"
            )
        self.heads.check_together(wanted)
        self._last_tasks = wanted
        return with_tasks(batch, wanted)

    def _check_disjoint(self, batches: list[Batch]) -> None:
        """Raises InputError if two loaders label one task: its loss would be the sum of two means."""
        seen: set[str] = set()
        for name in (name for batch in batches for name in tasks_of(batch)):
            if name in seen:
                raise InputError(
                    f"two loaders have targets of {name} at step {self.steps_done}, which would count twice; leave "
                    "them out of one loader, or combine the rows in one loader"
                )
            seen.add(name)

    # --- phases -----------------------------------------------------------------------------------------

    def _enter_phase_if_due(self) -> None:
        moment = self.moment
        main, *auxiliary = self.heads.names
        weights = self._options.schedule.task_weights(moment, main, auxiliary)
        if (
            weights == self._given_weights
            and self.heads.active == self._phase_active
            and not self._takes_turns
        ):
            self._rate.set_for(moment.step)  # nearly always: nothing else is new
            return
        checked = checked_weights(self._options.schedule, weights, main, auxiliary)
        given, weights = dict(weights), agreed_weights(self.processes, self._options.schedule, checked)
        active = tuple(name for name in self.heads.active if name in weights)
        if active != self._phase_active:
            check_alone(self, self._phase_active, active)
            before = self.heads.active
            if self._selection.due(self._phase_active, active):
                self._select_parts()
            self.record(after_step=False)  # for the previous tasks
            own = self._own_labels() if self._self_training.due(self._phase_active, active) else None
            enter_phase(active, self.encoder, self.heads, self.optimizer, self.source)
            self._check_trains(active)
            self._phase_active = active
            n_own = 0 if own is None else self.source.take_own_labels(own)
            told = reasons_of(self._options.schedule)
            reasons = {name: told[name] for name in before if name not in active and name in told}
            turns, by = turns_of(self._options.schedule), self.source.labelled_by if n_own else ()
            self.history.phases.append(PhaseRecord(self.steps_done, active, reasons, turns, n_own, by))
            self.engine.choose(self.history.phases)
            self._notify("on_phase", self.history.phases[-1])
        if self._takes_turns:
            take_turn(self._parts, part_at(self._options.schedule, moment), moment.step)
        self._set_weights([weights[name] for name in active])
        self.source.resting = {n for n in active if not weights[n] and self.heads.is_word_task(n)}
        self._rate.set_for(moment.step)
        self._given_weights = None if must_agree(self.processes, self._options.schedule) else given

    def _check_trains(self, active: tuple[str, ...]) -> None:
        """Raises InputError for a phase in which nothing would train: what still did has retired."""
        if not self._parts.trainable():
            raise InputError(
                f"from step {self.steps_done} on only {', '.join(active)} would train, but every parameter of the "
                "encoder and of these tasks is frozen; unfreeze some, or end the run there"
            )

    def _select_parts(self) -> None:
        """Select parts while the tasks that are about to retire are still there."""
        selection = self._selection.make(self.steps_done, self._named())
        self.history.selections.append(selection)
        self._interval.choosing_seconds += selection.seconds

    def _own_labels(self) -> str:
        """Label rows with all that the tasks have taught the encoder so far."""
        labels, seconds = self._self_training.label(self.total_steps - self.steps_done)
        self._interval.choosing_seconds += seconds
        return labels

    def _moment(self, step: int) -> Moment:
        return Moment(step, self.steps_per_epoch, self.total_steps)

    def _set_weights(self, values: list[float]) -> None:
        if self._learnt is not None or values == self._weight_values:
            return
        self._state.set_weights(values)
        self._weight_values = values
        self._interval.weighted |= self._weighted_now()

    # --- what the schedule observes ---------------------------------------------------------------------

    def _batches_of_last_step(self) -> list[Batch]:
        return [batch for batches in self._last_step or () for batch in batches]

    def _read_learnt_weights(self) -> None:
        if self._learnt is not None:
            with torch.no_grad():
                self._weight_values = self._parts.weights().tolist()

    # --- begin, save, resume ----------------------------------------------------------------------------

    def modules(self) -> list[nn.Module]:
        """Return everything that has parameters: the encoder, the heads, and a schedule that learns."""
        return list(self._modules().values())

    def _modules(self) -> dict[str, nn.Module]:
        return modules_of(self.encoder, self.heads, self._learnt)

    def _named(self) -> dict[str, nn.Parameter]:
        return named_parameters(self._modules())

    def _stored_active(self, stored: Checkpoint) -> tuple[str, ...]:
        state = stored.state
        check_settings(state["run"], self._settings)
        check_end(
            state["step"], state["total_steps"], self.total_steps, self.steps_per_epoch,
            rate_falls=self._options.lr_decay != "none", is_stream=self.source.is_stream,
        )  # fmt: skip
        return tuple(state["active"])

    def _restore(self, stored: Checkpoint) -> None:
        state = stored.state
        stored.restore_modules(self._modules())
        named = self._named()
        freeze_as_then(named, state["trained"], self._trained_at_start)
        check_optimizer(state["optimizer"], self._optimizer_options)
        hold_groups(self.optimizer, state["groups"], named)
        stored.restore_optimizer(self.optimizer)
        step_mixed_groups_singly(self.optimizer)
        self._rate.resume(self.optimizer, state.get("learning_rate"))
        self._scaler.load_state_dict(state["scaler"])
        self.steps_done = state["step"]
        self.history = History.from_json(state["history"])
        self.history.stopped = None  # it continues; what ended it may end it again
        self._phase_active = tuple(state["phase_active"])
        self._interval = Interval.from_state(state, self._options.device)
        self._weight_values = state["weights"]
        self._state.set_weights(self._weight_values)
        if self._phase_active:
            self.source.enter_phase(self._phase_active)
        self.source.restore(own_source(self.processes, state, self.source.taken))
        if self._remembers(self._options.schedule):
            self._options.schedule.load_state_dict(state["schedule"])  # type: ignore[attr-defined]
        stored.restore_random_states()
        restore_random_states(self.processes, state)

    def save(self, path: str | Path) -> None:
        """Write everything that a resumed run needs; with several processes, all must call it.

        Raises NonFiniteLossError instead of saving a broken state, and ValueError for a schedule that observes but has
        no state to save.
        """
        check_resumable(self._options.schedule)
        self.processes.meet("Run.save")
        with self.processes.doing("Run.save"):
            self._save(Path(path))

    def _save(self, path: Path) -> None:
        schedule, source = self._options.schedule, self.source.state()
        self.check_finite()
        self._read_learnt_weights()
        state = {
            "run": self._settings,
            "total_steps": self.total_steps,
            "optimizer": self._optimizer_options,
            "groups": group_names(self.optimizer, self._named()),
            "trained": {"at_start": self._trained_at_start, "now": trained(self._named())},
            "step": self.steps_done,
            "active": self.heads.active,
            "phase_active": self._phase_active,
            "scaler": self._scaler.state_dict(),
            "learning_rate": self._rate.state(),
            "history": self.history.to_json(),
            "source": source,
            "processes": states_of_all(self.processes, source, self.source.taken),
            "weights": self._weight_values,
            **self._interval.state(),
            "schedule": dict(schedule.state_dict()) if self._remembers(schedule) else None,  # type: ignore[attr-defined]
        }
        save_checkpoint(path, self._modules(), self.optimizer, state, self.processes)

    def _remembers(self, schedule: Schedule) -> bool:
        """Return whether a schedule has state other than tensors: a module's state is saved with the modules."""
        return self._learnt is None and isinstance(schedule, Stateful)

    def check_finite(self) -> None:
        """Raises NonFiniteLossError if a loss that is not read yet, or a trained parameter, is not finite."""
        if self._interval.losses:
            self._check_finite(torch.stack(self._interval.losses))
        # A last step may make parameters non-finite without a loss that shows it.
        found = [(name, p) for name, p in self._named().items() if p.requires_grad]
        check_finite_parameters(found, self._phase_active, self._rates())

    def _check_finite(self, losses_mk: Tensor) -> None:
        first_step = self.steps_done - len(losses_mk)
        check_finite(losses_mk, self._phase_active, first_step, self._rates())

    def _rates(self) -> Rates:
        return Rates(self._rate.at, self._rate.given(), self.steps_done, self.steps_per_epoch)

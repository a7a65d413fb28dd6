"""What a run is made with: a Trainer's options, listeners, the number of steps, and the errors and texts of a run."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.sharded import own_part
from mt2st_fast.model.task_adapted import adapted_in
from mt2st_fast.model.tasks import Task, metric_of
from mt2st_fast.numbers import check_count, check_positive
from mt2st_fast.training.engines import Backward, Precision
from mt2st_fast.training.history import PhaseRecord, StepRecord
from mt2st_fast.training.learning_rate import Decay, SchedulerFactory
from mt2st_fast.training.processes.group import Processes
from mt2st_fast.training.schedules import Schedule
from mt2st_fast.training.schedules.abilities import Stateful


class NonFiniteLossError(InputError):
    """A task's loss became NaN or infinite."""


@dataclass(frozen=True)
class RunOptions:
    """The options of a Trainer, for its runs; see there."""

    schedule: Schedule
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    own_optimizer: bool  # whether the Trainer chose it
    lr: float
    lr_decay: Decay
    clip_norm: float | None
    accumulate: int
    precision: Precision
    device: torch.device
    graph: bool
    backward: Backward
    processes: Processes = field(default_factory=Processes)  # that train together
    lr_scheduler: SchedulerFactory | None = None
    taken: Mapping[str, str] = field(default_factory=dict)  # how loaders are divided, see processes/data.py
    metrics: Mapping[str, str] = field(default_factory=dict)  # names of user-defined metrics, by task
    held_out: str | None = None  # a digest of the held-out data, if one can be computed


class RunListener(Protocol):
    """Notified of what happens in a run."""

    def on_phase(self, phase: PhaseRecord) -> None:
        """Called when the active tasks have changed."""
        ...

    def on_record(self, record: StepRecord) -> None:
        """Called when losses were read."""
        ...


@dataclass(frozen=True)
class Rates:
    """The position of a run and its learning rates, for messages."""

    rate_at: Callable[[int], float]
    given: float  # what the user asked for
    steps_done: int
    steps_per_epoch: int

    def at(self, step: int) -> str:
        """Describe step, epoch and learning rate, and what to do."""
        return (
            f"at step {step}: in epoch {step / self.steps_per_epoch:.2f} at a rate of {self.rate_at(step):g}; "
            f"lower lr ({self.given:g}), clip gradients, or look for bad values in inputs and targets"
        )


MOST_SHOWN = 200  # characters of a setting
EPOCHS = 10  # if the length of a run is not given


def steps_of(epochs: float | None, steps: int | None, steps_per_epoch: int) -> int:
    """Return the optimizer steps of a run, from steps or epochs. Raises InputError for both, or if there is none."""
    if steps is not None:
        if epochs is not None:
            raise InputError(
                "epochs and steps are both given, but each sets the length of the run; pass only one"
            )
        check_count(steps=steps)
        return steps
    epochs = EPOCHS if epochs is None else epochs
    check_positive(epochs=epochs)
    return math.ceil(epochs * steps_per_epoch)


def check_finite(
    losses_mk: Tensor,
    names: Sequence[str],
    first_step: int,
    rates: Rates,
) -> None:
    """Raises NonFiniteLossError if a loss of M steps (M, K), the first of them first_step, is not finite."""
    if torch.isfinite(losses_mk).all():
        return
    m, k = (~torch.isfinite(losses_mk)).nonzero()[0].tolist()
    step = first_step + m
    raise NonFiniteLossError(f"the loss of {names[k]} is {losses_mk[m, k].item()} {rates.at(step)}")


def check_finite_parameters(named: Sequence[tuple[str, Tensor]], tasks: Sequence[str], rates: Rates) -> None:
    """Raises NonFiniteLossError if a parameter of any shape is not finite, naming the tasks that moved it."""
    floats = [(name, own_part(p.detach())) for name, p in named if p.is_floating_point()]
    # All at once, to wait for a device only once. A sum is finite only if every number is, and is computed at the
    # speed of memory. It may overflow, though, so each number is checked before an error is raised.
    if not floats or torch.stack([torch.isfinite(p.sum()) for _, p in floats]).all():
        return
    name = next((name for name, p in floats if not torch.isfinite(p).all()), None)
    if name is None:
        return
    after = f"{rates.at(rates.steps_done - 1)}" if rates.steps_done else "before the first step"
    raise NonFiniteLossError(
        f"{name} is no longer finite, trained on {', '.join(tasks) or 'nothing'} {after}"
    )


def fixed_settings(
    options: RunOptions, encoder: nn.Module, heads: MultiTaskHeads, steps_per_epoch: int | None
) -> dict[str, Any]:
    """Return what must not change between a checkpoint and its resumption; a stream has no steps per epoch."""
    return {
        "layers of tasks' own": "; ".join(each.settings for each in adapted_in(encoder)) or "none",
        "tasks": ", ".join(heads.names),
        **{f"the task {name}": _shown(_without_metric(task)) for name, task in heads.tasks.items()},
        # Options that weights do not show: dropout, a way of pooling.
        **{
            f"the encoder's {name or type(module).__name__}": _shown(module.extra_repr())
            for name, module in encoder.named_modules()
            if module.extra_repr()
        },
        "schedule": description(options.schedule),
        "accumulate": options.accumulate,
        "steps an epoch": steps_per_epoch or "a stream",
        "lr_decay": options.lr_decay,
        "clip_norm": options.clip_norm,
        "precision": options.precision,
        **({} if options.held_out is None else {"held-out data": options.held_out}),
        "metrics": ", ".join(f"{name} of {task}" for task, name in sorted(_metrics(options, heads).items()))
        or "the tasks' own",
    }


def _metrics(options: RunOptions, heads: MultiTaskHeads) -> dict[str, str]:
    """Return the names of the metrics by task, where it is not the default of the task's kind."""
    chosen = {name: metric_of(task).name for name, task in heads.tasks.items()}
    defaults = {name: task.head.kind.metric.name for name, task in heads.tasks.items()}
    return {name: metric for name, metric in chosen.items() if metric != defaults[name]} | dict(
        options.metrics
    )


def _without_metric(task: Task) -> str:
    """Write a task without its metric, which checkpoints from before tasks had a choice do not have."""
    return repr(task).replace(f", metric={task.metric!r}", "")


def description(schedule: Schedule) -> str:
    """Describe the schedule in a text that is the same in every process: the default repr holds an address."""
    name = type(schedule).__name__
    if isinstance(schedule, nn.Module):
        return f"{name}({schedule.extra_repr()})"
    if not isinstance(schedule, Stateful):
        return name if type(schedule).__repr__ is object.__repr__ else _without_types(repr(schedule))
    # A schedule's repr may contain learned or observed state; this package's own state is not an init argument.
    if not (is_dataclass(schedule) and type(schedule).__module__.startswith("mt2st_fast.")):
        return name
    given = {f.name: getattr(schedule, f.name) for f in fields(schedule) if f.init}
    texts = {
        n: description(v) if hasattr(v, "task_weights") else _without_types(repr(v)) for n, v in given.items()
    }
    return f"{name}({', '.join(f'{n}={text}' for n, text in texts.items())})"


def _without_types(text: str) -> str:
    """Write NumPy's numbers as Python's: np.float64(0.5) is the same option as 0.5."""
    return re.sub(r"\bnp\.\w+\(([^()]*)\)", r"\1", text)


def _shown(text: str) -> str:
    """Remove memory addresses, and shorten: a long text ends in its checksum."""
    text = _without_types(re.sub(r" at 0x[0-9a-f]+", "", text))
    if len(text) <= MOST_SHOWN:
        return text
    return f"{text[:MOST_SHOWN]}... ({hashlib.sha256(text.encode()).hexdigest()[:8]})"

"""The options of a Trainer: their limits, and the texts by which a checkpoint knows them again."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.task_adapted import adapted_in
from mt2st_fast.numbers import (
    check_at_most,
    check_count,
    check_not_negative,
    check_positive,
    check_positive_in_float32,
    given,
)
from mt2st_fast.training.optimizers.learning_rate import Decay, SchedulerFactory, check_rates
from mt2st_fast.training.own_metrics import Metric, metric_name
from mt2st_fast.training.schedules import Schedule
from mt2st_fast.training.schedules.abilities import Stateful, check_is_schedule

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Precision = Literal["float32", "bfloat16", "float16"]
Backward = Literal["auto", "autograd", "fused"]  # how gradients are made
Distributed = Literal["auto", "none"]
DEFAULT_LR = 2e-3


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a Trainer, which its runs and their steps read; `Trainer` says what each means.

    Raises ValueError for one that is out of range, and for those that do not go together.
    """

    schedule: Schedule
    lr: float
    optimizer: OptimizerFactory | None
    weight_decay: float
    lr_decay: Decay
    lr_scheduler: SchedulerFactory | None
    clip_norm: float | None
    accumulate: int
    precision: Precision
    device: torch.device
    log_every: int
    metrics: Mapping[str, Metric]
    graph: bool | Literal["auto"]
    backward: Backward
    distributed: Distributed

    def __post_init__(self) -> None:
        check_is_schedule(self.schedule)
        check_positive_in_float32(lr=self.lr, **given(clip_norm=self.clip_norm))
        check_not_negative(weight_decay=self.weight_decay)
        if self.optimizer is not None and self.weight_decay:
            raise InputError(
                f"weight_decay={self.weight_decay} is of the default optimizer, but optimizer is given: pass it there, "
                "lambda parameters: AdamW(parameters, weight_decay=...), and leave it out here"
            )
        check_count(accumulate=self.accumulate, log_every=self.log_every)
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision {self.precision} is unknown; available: {', '.join(get_args(Precision))}"
            )
        check_rates(self.lr_decay, self.lr_scheduler)
        if self.distributed not in get_args(Distributed):
            raise ValueError(f"distributed must be 'auto' or 'none', not {self.distributed!r}")
        if self.graph not in ("auto", True, False):
            raise ValueError(f"graph must be 'auto', True or False, not {self.graph!r}")
        if self.graph is True and self.device.type != "cuda":
            raise ValueError(
                f"graph=True needs a CUDA device to capture graphs on; this trainer's is {self.device}"
            )
        if self.backward not in get_args(Backward):
            raise ValueError(f"backward must be 'auto', 'autograd' or 'fused', not {self.backward!r}")
        if self.backward == "fused":
            self._check_fusible()

    def _check_fusible(self) -> None:
        for option, needs in (
            ("clip_norm", self.clip_norm is not None),
            ("accumulate", self.accumulate > 1),
            ("precision float16", self.precision == "float16"),
        ):
            if needs:
                raise ValueError(
                    f'backward="fused" stores no gradient of a table, which {option} needs; leave one of them out'
                )

    @property
    def captures(self) -> bool:
        """Whether steps are captured as CUDA graphs, where they can be."""
        return self.device.type == "cuda" if self.graph == "auto" else self.graph

    @property
    def lr_changes(self) -> bool:
        """Whether the learning rate changes with every step."""
        return self.lr_decay != "none" or self.lr_scheduler is not None

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype that losses are computed in under autocast; None without it."""
        return None if self.precision == "float32" else getattr(torch, self.precision)


MOST_SHOWN = 200  # characters of a setting
MOST_STEPS = 2**53  # that a float, and every reader of JSON, knows exactly
EPOCHS = 10  # if the length of a run is not given


def steps_of(epochs: float | None, steps: int | None, steps_per_epoch: int) -> int:
    """Return the optimizer steps of a run, from steps or epochs. Raises InputError for both, or if there is none."""
    if steps is not None:
        if epochs is not None:
            raise InputError(
                "epochs and steps are both given, but each sets the length of the run; pass only one"
            )
        check_count(steps=steps)
        check_at_most(MOST_STEPS, steps=steps)
        return steps
    epochs = EPOCHS if epochs is None else epochs
    check_positive(epochs=epochs)
    total = math.ceil(epochs * steps_per_epoch)
    if total > MOST_STEPS:
        raise InputError(f"epochs={epochs:g} would be {total:.1e} steps; a run has at most {MOST_STEPS:,}")
    return total


def fixed_settings(
    options: RunOptions, encoder: nn.Module, heads: MultiTaskHeads, steps_per_epoch: int | None
) -> dict[str, Any]:
    """Return what must not change between a checkpoint and its resumption; a stream has no steps per epoch."""
    return {
        "layers of tasks' own": "; ".join(each.settings for each in adapted_in(encoder)) or "none",
        "tasks": ", ".join(heads.names),
        **{f"the task {name}": _shown(repr(task)) for name, task in heads.tasks.items()},
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
        "metrics": ", ".join(f"{metric_name(own)} of {task}" for task, own in sorted(options.metrics.items()))
        or "the tasks' own",
    }


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

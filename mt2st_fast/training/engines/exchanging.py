"""The step of several processes: each uses its own rows, and together they take the step of one process on all."""

from __future__ import annotations

import math
import zlib
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.model.sharded import (
    has_sharded,
    is_sharded,
    let_go_of_gathered,
    sum_instead_of_mean,
    whole_shape,
)
from mt2st_fast.training.engines.eager import EagerSteps, step_optimizer
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.engines.gradient_calls import GradientCallSteps
from mt2st_fast.training.engines.posted_steps import PostedSteps, Told
from mt2st_fast.training.engines.shares import Shares, label_numbers, shares_of_numbers
from mt2st_fast.training.inputs.batch import Batch, PlainBatch, materialised
from mt2st_fast.training.optimizers.upkeep import row_sparse_tables
from mt2st_fast.training.processes.data import warn_if_alike
from mt2st_fast.training.processes.gradients import Exchange

# What a step may do without, as the phase's record names it.
MEMORY = "messages in shared memory"
ONE_MESSAGE = "one message a step"
ONE_STATE = "one copy of the table's moments"


class ExchangingSteps(EagerSteps):
    """Forward and backward on this process's batches; then the gradients of all are summed, and all take the same step.

    A task's loss is a mean over its labels. Here every batch counts by its share of the labels in the step, over all
    processes (as with `accumulate`, see `shares`), so that sums of gradients are those of one batch, whatever labels
    are missing where. Nothing is exchanged for parameters that no longer train. The gradients of sharded parameters
    are exchanged within the backward pass, which every process must therefore make.
    """

    def __init__(self, parts: StepParts) -> None:
        super().__init__(parts)
        self._exchange: Exchange | None = None
        self._sharded: list[nn.Parameter] = []  # those that train
        self._passes_together = has_sharded(parts.encoder)
        self._told = Told(0)  # what all processes have told of this step
        self.does_without: dict[str, str] = {}
        self._phase = 0  # a checksum of what must be the same in every process

    def enter_phase(self) -> None:
        """Check what trains now."""
        parts = self._parts
        trained = {id(p) for p in parts.trainable()}
        tables = [
            table
            for table in dict.fromkeys([*row_sparse_tables(parts.encoder), *row_sparse_tables(parts.heads)])
            if id(table) in trained and not is_sharded(table)
        ]
        sparse = {id(table) for table in tables}
        dense = {
            name: p for module in parts.modules for name, p in module.named_parameters() if id(p) in trained
        }
        by_id = {id(p): name for name, p in dense.items()}  # a parameter held twice counts once
        self._sharded = [p for p in parts.trainable() if is_sharded(p)]
        named = {by_id[id(p)]: p for p in parts.trainable() if id(p) not in sparse and not is_sharded(p)}
        self._exchange = Exchange(parts.processes, named, tables)
        trains = [(by_id[id(p)], whole_shape(p)) for p in parts.trainable()]
        self._phase = zlib.crc32(repr((parts.heads.active, trains)).encode())
        self.does_without = {}
        if parts.processes.without_memory:
            self.does_without[MEMORY] = parts.processes.without_memory

    def __call__(self, micro_steps: list[list[Batch]]) -> Tensor:
        """Take one step of all processes; returns the losses (K,), the same in every process."""
        plain = [[materialised(batch) for batch in batches] for batches in micro_steps]
        if self._parts.own_data and not self._parts.state.compared:
            self._parts.state.compared = True  # whichever engine takes the next step
            warn_if_alike(plain[0], self._parts.processes)
        # A process may have no row of a small batch.
        if self._passes_together:
            self._check_rows(plain)
        else:
            plain = [kept for batches in plain if (kept := [b for b in batches if _has_rows(b)])]
        shares = self._shares(plain)
        losses_k = self._move(self._own_gradients(plain, shares))
        if self._passes_together:
            # Nothing else does this for a frozen encoder, and callbacks must find its parts.
            let_go_of_gathered(self._parts.encoder)
        return losses_k

    def _move(self, own_losses_k: Tensor) -> Tensor:
        """Sum the gradients of all processes, and step; returns the sums of the losses (K,)."""
        assert self._exchange is not None
        self._parts.processes.take_all_back()  # every process steps all rows here
        sum_instead_of_mean(self._sharded, self._parts.processes.count)
        losses_k = self._exchange(own_losses_k)
        step_optimizer(self._parts)
        return losses_k

    def _tells(self, micro_steps: list[list[PlainBatch]]) -> Told:
        """Return whether this process can take the step by one message (`PostedSteps`), and what it shares."""
        del micro_steps
        return Told(0)

    def _hear(self, told: list[Told]) -> None:
        """Note what every process has told."""
        self._told = reduce(and_, told)

    def _check_rows(self, micro_steps: list[list[PlainBatch]]) -> None:
        """Raises InputError, in every process, for a batch without rows, for which an OpenTask has no loss."""
        own = [name for name in self._parts.heads.active if self._parts.heads.is_open_task(name)]
        if not own:
            return
        has_none = not all(_has_rows(batch) for batches in micro_steps for batch in batches)
        if any(self._parts.processes.any_of_all(has_none)):
            raise InputError(
                "a process has no row of a batch, but must pass through the sharded encoder with the others, so the "
                f"loss of {own[0]} would be undefined; use batches with at least as many rows as processes"
            )

    def _own_gradients(self, micro_steps: list[list[PlainBatch]], shares: Shares) -> Tensor:
        """Put the gradients of this process's batches into every `.grad`; returns the losses (K,)."""
        with self._parts.freezing_idle_heads():
            return self._accumulate(micro_steps, shares)

    def _shares(self, micro_steps: list[list[PlainBatch]]) -> Shares:
        """Return the shares of these micro-steps in the step of all processes.

        Raises InputError if one process trains something else.
        """
        parts = self._parts
        active, n_heads = parts.heads.active, len(parts.heads.names)
        counts = [label_numbers(parts.heads, batches, parts.device) for batches in micro_steps]
        # The same length in every process, whatever it trains: otherwise processes that differ could not report it.
        told = [
            self._checksum(),
            len(micro_steps),
            self._tells(micro_steps),
            *map(math.fsum, zip(*counts, strict=True)),
            *([] if counts else [0.0] * len(active)),
            *[0.0] * (n_heads - len(active)),
        ]
        found = parts.processes.gather(np.array(told, np.float64).tobytes())
        of_all = [np.frombuffer(of_one, np.float64).tolist() for of_one in found]
        if wrong := [rank for rank, of_one in enumerate(of_all) if of_one[0] != of_all[0][0]]:
            raise InputError(
                f"process {wrong[0]} of {len(of_all)} trains other tasks or parameters than process 0, or with another "
                "learning rate: schedules and callbacks must do the same in every process"
            )
        self._hear([Told(int(of_one[2])) for of_one in of_all])
        totals = [sum(of_one[3 + k] for of_one in of_all) for k in range(len(active))]
        # If no process has a label of a task, it is unknown whether another one had its targets.
        tasks = {name for name, total in zip(active, totals, strict=True) if total > 0}
        step = 1 / max(1, int(sum(of_one[1] for of_one in of_all)))
        return shares_of_numbers(parts.heads, counts, totals, tasks, step, parts.device)

    def _checksum(self) -> float:
        """Return what must be the same in every process as one number: otherwise their weights would drift apart."""
        groups = self._parts.optimizer.param_groups
        rates = [value for group in groups for value in group.values() if type(value) in (int, float, tuple)]
        return float(zlib.crc32(repr(rates).encode(), self._phase))


class ExchangingGradientCalls(ExchangingSteps):
    """The same, with this process's gradients from one kernel call per batch; other processes may use another way."""

    name = GradientCallSteps.name

    def __init__(self, parts: StepParts) -> None:
        super().__init__(parts)
        self._calls = GradientCallSteps(parts)
        self._posted = PostedSteps(parts)
        self._obstacle: str | None = None  # of this process, to one message in this step

    def enter_phase(self) -> None:
        """Check what trains now."""
        super().enter_phase()
        self._calls.enter_phase()

    def obstacle(self) -> str | None:
        """Return why it cannot take the steps of this phase, or None."""
        return self._calls.obstacle()

    def declines(self, micro_steps: Any) -> str | None:
        """Return why it cannot take this step, or None."""
        return self._calls.declines(micro_steps)

    def _own_gradients(self, micro_steps: list[list[PlainBatch]], shares: Shares) -> Tensor:
        # It does not support penalties of learned weights.
        if Told.CAN_POST not in self._told:
            return self._calls.make(micro_steps, shares.labels_mk)
        assert self._calls.gradients is not None
        room = self._posted.begin(self._calls.gradients, self._told)
        return self._calls.make(micro_steps, shares.labels_mk, hands_out=False, room=room)

    def _tells(self, micro_steps: list[list[PlainBatch]]) -> Told:
        assert self._calls.gradients is not None
        self._obstacle = self._posted.obstacle(self._calls.gradients, micro_steps)
        return self._posted.told() if self._obstacle is None else Told(0)

    def _hear(self, told: list[Told]) -> None:
        super()._hear(told)
        if Told.SHARES in self._told or MEMORY in self.does_without:
            return
        way, own, what = ONE_MESSAGE, self._obstacle, Told.CAN_POST
        if what in self._told:
            way, own, what = ONE_STATE, self._posted.sharing_obstacle, Told.WOULD_SHARE
        if what not in self._told and way not in self.does_without:
            others = [rank for rank, of_one in enumerate(told) if what not in of_one]
            self.does_without[way] = own or f"process {others[0]} of {len(told)} cannot"

    def _move(self, own_losses_k: Tensor) -> Tensor:
        if Told.CAN_POST not in self._told:
            return super()._move(own_losses_k)
        assert self._calls.gradients is not None
        return self._posted(self._calls.gradients, own_losses_k)


def _has_rows(batch: PlainBatch) -> bool:
    """Return whether a batch has rows; for targets that are not tensors, only their task could know."""
    are_empty = [not t.shape[0] for t in batch[1].values() if isinstance(t, Tensor) and t.dim()]
    return not are_empty or not all(are_empty)

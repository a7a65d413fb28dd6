"""Steps as CUDA graphs: the eager step is captured once for every batch shape, and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mt2st_fast.training.engines.engine import Engine, StepParts
from mt2st_fast.training.engines.graphs.capturer import Capturer
from mt2st_fast.training.engines.graphs.graphed_steps import GraphedSteps
from mt2st_fast.training.optimizers.row_sparse import FROZEN_ROWS, RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import row_sparse_tables

NUMBERS = (int, float, tuple)  # types of group options that a capture would freeze


class ByIdentity:
    """An object as a key that keeps it alive: a graph reads the memory of its tensors, whatever their numbers are."""

    def __init__(self, held: object) -> None:
        self._held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self._held is other._held

    def __hash__(self) -> int:
        return id(self._held)


class CudaGraphSteps(Engine):
    """Replays of the eager step, if a replay gives the same result; `verdict` says which steps run eagerly."""

    name = "cuda graph"

    def __init__(
        self, parts: StepParts, eager_step: Callable[[Any], Tensor], make_capturer: Callable[[], Capturer]
    ) -> None:
        self._parts = parts
        self._parameters: list[nn.Parameter] = []
        self._placed: list[nn.Parameter] = []  # those that have memory
        self._memory: Hashable = None  # of a phase that captures: see _memory_now
        self._obstacle: str | None = None
        self._steps: GraphedSteps | None = None
        if parts.options.captures:
            self._steps = GraphedSteps(
                eager_step, parts.device, make_capturer(), self._fingerprint, self._after_failed_capture
            )

    @property
    def verdict(self) -> str | None:
        """How the phase runs: "captured", "captured, except where ..." or "not captured: ..."; None: not requested."""
        return None if self._steps is None else self._steps.verdict

    def enter_phase(self) -> None:
        """Drop the graphs so far, and check again whether steps can be captured."""
        if self._steps is None:
            return
        parts = self._parts
        self._parameters = [*dict.fromkeys(p for module in parts.modules for p in module.parameters())]
        self._placed = [p for p in self._parameters if not is_lazy(p)]
        self._obstacle = optimizer_obstacle(
            parts.optimizer, lr_changes=parts.options.lr_changes, loss_scaling=parts.scaler.is_enabled()
        )
        if parts.momentum_changes:
            self._obstacle = (
                "the scheduler changes momentum in every step, but a graph holds it as a constant; set "
                "cycle_momentum=False"
            )
        tables = [*row_sparse_tables(parts.encoder), *row_sparse_tables(parts.heads)]
        fused = {id(table) for table in parts.fused_tables}
        if any(table.requires_grad and id(table) not in fused for table in tables):
            self._obstacle = (
                "the length of a row-sparse gradient varies by batch: keep the default of backward= and avoid "
                "what needs gradients (clip_norm, accumulate, float16), or set sparse=False in the encoder"
            )
        heads = parts.heads
        for name in filter(heads.is_word_task, heads.active):
            # Neither the encoder's options nor the optimizer's change that.
            if any(table.requires_grad for table in row_sparse_tables(heads.word_tasks[name])):
                self._obstacle = (
                    f"the task {name} has other words in every batch, and a table of its own whose gradient is as long "
                    "as they are many; steps are captured from the phase on in which it has retired"
                )
        if parts.processes.are_several:
            self._obstacle = "the size of what processes exchange varies by step"
        self._memory = self._memory_now() if self._obstacle is None else None
        self._steps.enter_phase(self._obstacle)

    def obstacle(self) -> str | None:
        """Return why no step of this phase can be captured, or None."""
        return "not asked for (graph=False)" if self._steps is None else self._obstacle

    def __call__(self, micro_steps: Any) -> Tensor:
        """Take one step; returns the losses (K,)."""
        assert self._steps is not None
        if self._obstacle is None and (memory := self._memory_now()) != self._memory:
            # Not part of the fingerprint: nobody returns to memory that is given up, and its graphs would hold it.
            self._memory = memory
            self._steps.forget()
        return self._steps(micro_steps)

    def _memory_now(self) -> Hashable:
        """Return where what a captured step reads and writes is, beside its inputs and what it makes itself."""
        return tuple(map(Tensor.data_ptr, self._placed)), optimizer_memory(self._parts.optimizer)

    def _fingerprint(self) -> Hashable:
        """Return what a captured step has frozen, beside the shapes of its inputs."""
        return (
            self._parts.encoder.training,
            self._parts.state.part,
            tuple([p.requires_grad for p in self._parameters]),
            optimizer_constants(self._parts.optimizer),
            self._frozen_rows(),
        )

    def _frozen_rows(self) -> Hashable:
        optimizer = self._parts.optimizer
        if not self._parts.fused_tables or not isinstance(optimizer, RowSparseOptimizer):
            return ()
        states = [optimizer.state.get(table, {}) for table in self._parts.fused_tables]
        return tuple([ByIdentity(state.get(FROZEN_ROWS)) for state in states])

    def _after_failed_capture(self) -> None:
        """Clean up after a broken-off step: gradients that were never computed, and a half-updated scaler."""
        self._parts.optimizer.zero_grad(set_to_none=True)
        if self._parts.scaler.is_enabled():
            self._parts.scaler._per_optimizer_states.clear()


def optimizer_obstacle(
    optimizer: torch.optim.Optimizer, *, lr_changes: bool, loss_scaling: bool
) -> str | None:
    """Return why a step with this optimizer cannot be captured, or None.

    A graph repeats the numbers that it was captured with, so anything that changes from step to step must be on the
    device. For SGD, and for all row rules except Adam's, that is only the learning rate.
    """
    name, groups = type(optimizer).__name__, optimizer.param_groups
    rates_alone = type(optimizer) is torch.optim.SGD or (
        isinstance(optimizer, RowSparseOptimizer) and not any("capturable" in group for group in groups)
    )
    if not rates_alone and not all(group.get("capturable") for group in groups):
        advice = (
            "build it with capturable=True" if "capturable" in groups[0] else "take AdamW(capturable=True)"
        )
        return f"the optimizer {name} is not capturable: {advice}"
    if lr_changes and not all(isinstance(group["lr"], Tensor) for group in groups):
        return f"the rate changes in every step, but {name} holds it as a constant; pass lr as a tensor on the device"
    if loss_scaling and not getattr(optimizer, "_step_supports_amp_scaling", False):
        return f"float16 loss scaling waits for the device with this {name}: build it with fused=True"
    return None


def optimizer_constants(optimizer: torch.optim.Optimizer) -> Hashable:
    """Return the numbers that a capture of `optimizer.step()` would freeze."""
    return tuple(
        [
            (len(group["params"]), *[value for value in group.values() if isinstance(value, NUMBERS)])
            for group in optimizer.param_groups
        ]
    )


def optimizer_memory(optimizer: torch.optim.Optimizer) -> Hashable:
    """Return what holds the tensors of an optimizer that a captured step reads; `load_state_dict` replaces it."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    return (
        ByIdentity(optimizer.state), tuple([ByIdentity(rate) for rate in rates if isinstance(rate, Tensor)])
    )  # fmt: skip

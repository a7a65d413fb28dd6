"""Lightning: phases as a callback.

    L.Trainer(callbacks=[PhaseCallback(Switch(at=0.6))]).fit(module, loader)

Here `self.heads` of the module are MultiTaskHeads, and its training step returns `self.heads(features, targets).total`:
the heads apply the weights of the current step by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from mt2st_fast.errors import InputError
from mt2st_fast.integrations.together import check_steps
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.phases.controller import PhaseController
from mt2st_fast.training.schedules import Schedule

__all__ = ["PhaseCallback"]


class Progress(NamedTuple):
    """Where a run is: its steps so far, the steps of all of it, and steps for which step / per_epoch is the epoch."""

    step: int
    total: float
    per_epoch: float


def progress_of(trainer: L.Trainer, batch_idx: int) -> Progress:
    """Return where a run is before a batch of the current epoch; its total is infinite if it has no end.

    A step is one of the optimizer; in manual optimization it is a batch, as only the module knows how often it steps.
    The number of batches and how many are accumulated may be other ones in each epoch, so that the steps to come are
    counted anew each time.
    """
    automatic = trainer.lightning_module.automatic_optimization
    step = trainer.global_step if automatic else max(0, trainer.fit_loop.epoch_loop.total_batch_idx)
    batches, epoch = trainer.num_training_batches, trainer.current_epoch
    total, per_epoch = math.inf, math.inf
    if math.isfinite(batches):
        here = _accumulated(trainer, epoch) if automatic else 1
        in_epoch, done = max(1, math.ceil(batches / here)), batch_idx // here
        position = epoch + done / in_epoch
        per_epoch = step / position if step and position else in_epoch
        if trainer.max_epochs not in (None, -1):
            later = [
                _accumulated(trainer, e) if automatic else 1 for e in range(epoch + 1, trainer.max_epochs)
            ]
            total = step + in_epoch - done + sum(math.ceil(batches / each) for each in later)
    if trainer.max_steps != -1:
        # In manual optimization, Lightning stops after this many steps of all optimizers together.
        steps = trainer.global_step
        total = min(total, trainer.max_steps if automatic or not steps else step * trainer.max_steps / steps)
    return Progress(step, total, total if math.isinf(per_epoch) else per_epoch)


def _accumulated(trainer: L.Trainer, epoch: int) -> int:
    """Return over how many batches the gradients of an epoch are accumulated."""
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return int(callback.get_accumulate_grad_batches(epoch))
    return int(trainer.accumulate_grad_batches)


class PhaseCallback(L.Callback):  # type: ignore[misc]
    """Retires tasks as the schedule says, by the optimizer steps of the run; resumed runs continue bit for bit.

    In manual optimization, where a module steps as often as it likes, a step of the schedule is a batch.

    heads: where the module has its MultiTaskHeads, such as "heads" or "model.heads". prune: whether the optimizers drop
    their state of retired parameters; the parameters stay in their groups, for schedulers and stored states.

    Under DDP the model is wrapped again when tasks retire, so find_unused_parameters is not needed. Raises InputError
    where there are no MultiTaskHeads, for a run without an end, for processes whose loaders differ in length, and what
    PhaseController raises.
    """

    def __init__(self, schedule: Schedule, heads: str = "heads", *, prune: bool = True) -> None:
        self.schedule, self.heads, self.prune = schedule, heads, prune
        self.controller: PhaseController | None = None
        self._stored: Mapping[str, Any] | None = None  # state of a checkpoint, until training starts

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the heads, and continue from a checkpoint's state if there is one."""
        progress = progress_of(trainer, 0)
        if trainer.world_size > 1:
            own = torch.tensor(
                [progress.total, progress.per_epoch],
                dtype=torch.float32,
                device=trainer.strategy.root_device,
            )
            check_steps(trainer.strategy.all_gather(own).tolist())
        if math.isinf(progress.total):
            stream = "max_steps, as the batches have no known number"
            what = "max_epochs or max_steps" if math.isfinite(trainer.num_training_batches) else stream
            raise InputError(f"a schedule of phases needs an end; set {what} of the Trainer")
        self.controller = PhaseController(
            self._heads_in(pl_module), self.schedule, list(trainer.optimizers), pl_module, prune=self.prune
        )
        if self._stored is not None:
            self.controller.load_state_dict(self._stored)
            self._stored = None
            self._wrap_anew(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Enter the phase that is due at the next optimizer step."""
        del batch
        assert self.controller is not None
        if batch_idx % trainer.accumulate_grad_batches:
            return  # amid the batches of a step
        step, total, per_epoch = progress_of(trainer, batch_idx)
        if self.controller.step(step, max(1, math.ceil(total)), per_epoch) is not None:
            self._wrap_anew(trainer)

    def _wrap_anew(self, trainer: L.Trainer) -> None:
        """Wrap the model in DDP again: DDP waits for the gradients of all parameters that it was created with."""
        assert self.controller is not None
        heads, strategy = self.controller.heads, trainer.strategy
        if heads.active == heads.names or not isinstance(strategy, DDPStrategy):
            return
        if isinstance(strategy.model, DistributedDataParallel):
            strategy.model = strategy.model.module
            strategy.configure_ddp()

    def _heads_in(self, pl_module: L.LightningModule) -> MultiTaskHeads:
        try:
            found = pl_module.get_submodule(self.heads)
        except AttributeError:
            found = None
        if not isinstance(found, MultiTaskHeads):
            what = "nothing is there" if found is None else f"it is a {type(found).__name__}"
            raise InputError(
                f"{type(pl_module).__name__} has no MultiTaskHeads at {self.heads!r} ({what}); pass their path, as "
                'in PhaseCallback(schedule, heads="model.heads")'
            )
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run continues from."""
        if self.controller is None:
            return dict(self._stored or {})
        return self.controller.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts, as there are no optimizers yet."""
        self._stored = state_dict or None

"""Lightning: phases as a callback.

    L.Trainer(callbacks=[PhaseCallback(Switch(at=0.6))]).fit(module, loader)

Here `self.heads` of the module are MultiTaskHeads, and its training step returns `self.heads(features, targets).total`:
the heads apply the weights of the current step by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from mt2st_fast.errors import InputError
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.training.phase_controller import PhaseController
from mt2st_fast.training.schedules import Schedule

__all__ = ["PhaseCallback"]


class PhaseCallback(L.Callback):  # type: ignore[misc]
    """Retires tasks as the schedule says, by the optimizer steps of the run; resumed runs continue bit for bit.

    heads: where the module has its MultiTaskHeads, such as "heads" or "model.heads". prune: whether the optimizers drop
    their state of retired parameters; the parameters stay in their groups, for schedulers and stored states.

    Under DDP the model is wrapped again when tasks retire, so find_unused_parameters is not needed. Raises InputError
    where there are no MultiTaskHeads and for a run without an end, and what PhaseController raises.
    """

    def __init__(self, schedule: Schedule, heads: str = "heads", *, prune: bool = True) -> None:
        self.schedule, self.heads, self.prune = schedule, heads, prune
        self.controller: PhaseController | None = None
        self._stored: Mapping[str, Any] | None = None  # state of a checkpoint, until training starts
        self._total_steps = self._steps_per_epoch = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find the heads, and continue from a checkpoint's state if there is one."""
        total = trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise InputError("a schedule of phases needs an end; set max_epochs or max_steps of the Trainer")
        self._total_steps = int(total)
        batches = trainer.num_training_batches
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else total
        self._steps_per_epoch = max(1, int(per_epoch))
        optimizers = list(trainer.optimizers)
        self.controller = PhaseController(
            self._heads_in(pl_module), self.schedule, optimizers if self.prune else None, pl_module
        )
        if self._stored is not None:
            self.controller.load_state_dict(self._stored)
            self._stored = None
            self._wrap_anew(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Enter the phase that is due at the next optimizer step."""
        del batch, batch_idx
        assert self.controller is not None
        # Lightning's global_step adds up the steps of all optimizers.
        step = trainer.global_step // max(1, len(trainer.optimizers))
        if self.controller.step(step, self._total_steps, self._steps_per_epoch) is not None:
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

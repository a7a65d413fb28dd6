"""Context prediction beside rows for one kernel call, without autograd: it is computed by one more call.

Autograd would spend several times as long around these kernels as in them.
"""

from __future__ import annotations

from operator import is_
from typing import Any, NamedTuple

from torch import Tensor

from mt2st_fast.kernels import ExtraGradients
from mt2st_fast.kernels.context.batch import LocalBatch
from mt2st_fast.kernels.context.batch_gradients import GradientsOfBatches, gradients_obstacle
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads
from mt2st_fast.model.word_tasks import ContextPrediction
from mt2st_fast.training.engines.kernel_calls.bypassed import hook_obstacle
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import group_of


class _Waiting(NamedTuple):
    """The gradients (U, D) of output vectors that a step has not moved yet."""

    table: Tensor
    types: Tensor  # (U,)
    d_outputs: Tensor


class ContextGradients:
    """Computes `ContextPrediction` tasks; `move` then steps their output vectors as the optimizer would."""

    def __init__(
        self, encoder: WindowEncoder | BagEncoder, heads: MultiTaskHeads, optimizer: RowSparseOptimizer
    ) -> None:
        self._encoder, self._heads, self._optimizer = encoder, heads, optimizer
        self._of_task: dict[str, GradientsOfBatches] = {}  # gradients wait until all batches are done
        self._known: dict[str, tuple[list[Any], bool]] = {}  # by task: what was looked at, and the answer
        self._waiting: list[_Waiting] = []

    def takes(self, name: str) -> bool:
        """Return whether it can compute this task; other tasks on words are autograd's."""
        task = self._heads.word_tasks[name]
        if type(task) is not ContextPrediction:
            return False
        outputs, table = task.table, self._encoder.table
        # The encoder's own memory is looked at by `TextTraining`.
        looked_at: list[Any] = [outputs, outputs.dtype, outputs.is_contiguous(), table, task.backend]
        before, can = self._known.get(name, ([None], False))
        if not all(map(is_, before, looked_at)):
            can = self._can_read(name, task)
            self._known[name] = looked_at, can
        return can and hook_obstacle([], [task.table], self._optimizer) is None

    def _can_read(self, name: str, task: ContextPrediction) -> bool:
        if task.backend not in ("auto", "numba") or id(task.table) not in group_of(self._optimizer):
            return False
        if any(p is task.table for p in self._of_others(name)):
            return False
        return gradients_obstacle(self._encoder.table, task.table, task.backend) is None

    def _of_others(self, name: str) -> list[Tensor]:
        """Return the parameters of the encoder and of all other tasks on words."""
        others = [task for other, task in self._heads.word_tasks.items() if other != name]
        return [p for module in (self._encoder, *others) for p in module.parameters()]

    def begin(self) -> None:
        """Forget gradients of a step that was not taken."""
        self._waiting = []

    def __call__(self, name: str, batch: LocalBatch, weight: float) -> tuple[float, ExtraGradients | None]:
        """Return the loss of a task, and the gradients of its words' vectors if the table trains.

        Raises ValueError for a word type that there is not.
        """
        task: ContextPrediction = self._heads.word_tasks[name]  # type: ignore[assignment]
        gradients = self._of_task.setdefault(name, GradientsOfBatches())
        found = gradients(batch, weight, self._encoder.table, self._encoder.rows_of_type, task.table)
        if task.table.requires_grad:
            self._waiting.append(_Waiting(task.table, batch.types, found.d_outputs))
        if not self._encoder.table.requires_grad:
            return found.loss, None
        return found.loss, ExtraGradients(batch.types[: batch.n_kept], found.d_inputs)

    def move(self) -> None:
        """Take the step of the output vectors."""
        for each in self._waiting:
            self._optimizer.step_rows(*each)
        self._waiting = []

"""Tasks with an arbitrary loss on the features, not a mean over rows (a CRF, a ranking, a contrast): no fused head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class OpenTask(nn.Module, ABC):
    """A task with its own loss and parameters, on the features that the fused heads share.

        class Contrast(OpenTask):
            def loss(self, features, targets, mask):
                ...
        heads = MultiTaskHeads(64, {"tag": Classification(17), "contrast": Contrast()}, main="tag")

    It trains beside the heads on the batches that have targets for it, is weighted, retires and is saved as they are,
    and may be the main task. After it has retired, none of its methods is called.
    """

    metric = "negative loss"

    @abstractmethod
    def loss(self, features: Tensor, targets: Any, mask: Tensor | None) -> Tensor:
        """Return the mean loss of a batch, () float32.

        features: (N, D) or (N, T, D) from the encoder. targets: what the batch holds under the task's name. mask: (N,)
        or (N, T), True for what is real, if the encoder returned (features, mask); else None.
        """

    def count(self, targets: Any) -> float | Tensor:
        """Return how many labels the loss of a batch is a mean over, a number or ().

        `Trainer(accumulate=)` weights the batches of a step by it: a loss that is a mean over labels then equals that
        of one large batch. 1 by default: all batches count the same.
        """
        del targets
        return 1.0

    def sums(self, features: Tensor, targets: Any, mask: Tensor | None) -> Tensor:
        """Return (n,) numbers that are summed over held-out batches; by default the negative loss, and 1."""
        loss = self.loss(features, targets, mask)
        return torch.stack([-loss.double(), torch.ones_like(loss, dtype=torch.float64)])

    def value(self, sums: Tensor) -> float:
        """Return the metric, where higher is better, from the sums; by default the first over the second."""
        return float(sums[0] / sums[1])


def checked_loss(name: str, loss: Any) -> Tensor:
    """Return what `loss` of a task returned. Raises TypeError or ValueError, naming the task, for no number ()."""
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"the loss of {name} must be a tensor (), with its gradient, not a {type(loss).__name__}"
        )
    if loss.dim() != 0:
        raise ValueError(f"the loss of {name} must be a number (), not {tuple(loss.shape)}")
    return loss

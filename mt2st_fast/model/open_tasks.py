"""Tasks of any loss on the features: no mean over rows (a CRF, a ranking, a contrast), and so no fused head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class OpenTask(nn.Module, ABC):
    """A task with a loss, and parameters, of its own, on the features that the fused heads share.

        class Contrast(OpenTask):
            def loss(self, features, targets, mask):
                ...
        heads = MultiTaskHeads(64, {"tag": Classification(17), "contrast": Contrast()}, main="tag")

    It trains beside the heads on the batches that have targets of it, is weighted, retires and is saved as they are,
    and may be the main task. After it has retired nothing of it is called.
    """

    metric = "negative loss"

    @abstractmethod
    def loss(self, features: Tensor, targets: Any, mask: Tensor | None) -> Tensor:
        """() float32, the mean loss of a batch.

        features (N, D) or (N, T, D) as the encoder made them; targets what the batch holds under the task's name; mask
        (N,) or (N, T), True for what is real, if the encoder returned (features, mask), else None.
        """

    def count(self, targets: Any) -> float | Tensor:
        """How many labels the loss of a batch is a mean of, a number or ().

        By it `Trainer(accumulate=)` weights the batches of a step: a loss that is a mean over labels is then that of
        one large batch. By default 1: the batches count alike.
        """
        del targets
        return 1.0

    def sums(self, features: Tensor, targets: Any, mask: Tensor | None) -> Tensor:
        """(n,) numbers that are added up over held-out batches; by default the negative loss, and 1."""
        loss = self.loss(features, targets, mask)
        return torch.stack([-loss.double(), torch.ones_like(loss, dtype=torch.float64)])

    def value(self, sums: Tensor) -> float:
        """The metric, where more is better, from the added sums; by default the first over the second."""
        return float(sums[0] / sums[1])

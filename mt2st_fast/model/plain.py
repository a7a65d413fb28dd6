"""The same models as written in plain torch: the reference for this package's engines.

A separate nn.Linear and one loss of torch.nn.functional for every task, nn.EmbeddingBag or nn.Embedding with a dense
gradient, torch.optim.AdamW. They start from the values of the models that they are made from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt2st_fast.model.encoders import NO_ROW, BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads, MultitaskLoss
from mt2st_fast.model.tasks import Classification, MultiLabel, Regression, Task


class PlainHeads(MultiTaskHeads):
    """Heads whose losses torch computes one by one; `correct` stays 0, as training does not need it."""

    @classmethod
    def of(cls, heads: MultiTaskHeads) -> MultiTaskHeads:
        """Build them with copies of the layers of these heads, which have no task with its own loss."""
        layers = {name: copy.deepcopy(heads.linear(name)) for name in heads.names}
        return cls.from_modules(layers, heads.tasks, heads.main)

    def _fused_loss(
        self, features: Tensor, targets: Mapping[str, Tensor], weights: Tensor | Mapping[str, float] | None
    ) -> MultitaskLoss:
        """Weighted loss of the active tasks that have a target here."""
        batch = self.batch(targets, features.shape[:-1], weights, features.device)
        flat = features.flatten(0, -2) if features.dim() > 2 else features
        losses = torch.stack(
            [
                plain_loss(self.tasks[name], self.linear(name)(flat), target)
                for name, target in zip(batch.layout.names, batch.targets, strict=True)
            ]
        )
        total = (batch.weights * losses).sum()
        none_counted = torch.zeros(len(self.active), dtype=torch.int64, device=total.device)
        return MultitaskLoss(total, self.over_active(losses.detach(), batch), none_counted)


def plain_loss(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """() the mean of a task's loss over labelled rows or values, 0 if there are none; logits are (N, C)."""
    if isinstance(task, Classification):
        weight = task.class_weights
        if weight is not None:
            return task.head.kind.loss(logits, target, task.head)
        loss = F.cross_entropy(
            logits, target, ignore_index=task.ignore_index, label_smoothing=task.label_smoothing, reduction="sum"
        )  # fmt: skip
        return loss / task.head.is_labelled(target).sum().clamp(min=1)
    labelled = ~target.isnan()
    if isinstance(task, MultiLabel) and task.pos_weight is None:
        loss = F.binary_cross_entropy_with_logits(
            logits, target.nan_to_num(), weight=labelled.to(logits.dtype), reduction="sum"
        )
    elif isinstance(task, Regression):
        target = torch.where(labelled, target, logits.detach())  # an error of zero
        if task.huber_delta is None:
            loss = F.mse_loss(logits, target, reduction="sum")
        else:
            loss = F.huber_loss(logits, target, delta=task.huber_delta, reduction="sum")
    else:
        return task.head.kind.loss(logits, target, task.head)
    return loss / labelled.sum().clamp(min=1)


class _Words(nn.Module):
    """Vectors (..., D) of word types (...), -1 = none: the mean of the rows of each type."""

    rows: Tensor

    def __init__(self, encoder: WindowEncoder | BagEncoder) -> None:
        super().__init__()
        rows = encoder.rows_of_type
        if rows is None:
            raise ValueError("an encoder that uses types as rows has no padding row; pass rows_of_type")
        # The last entry, which -1 indexes, is all padding.
        self.register_buffer("rows", rows.long().masked_fill(rows == NO_ROW, encoder.padding_row))
        V, D = encoder.table.shape
        self.table: nn.EmbeddingBag | nn.Embedding
        if rows.shape[1] == 1:
            self.table = nn.Embedding(V, D, padding_idx=encoder.padding_row, _weight=encoder.table.detach())
        else:
            self.table = nn.EmbeddingBag(
                V, D, mode="mean", padding_idx=encoder.padding_row, _weight=encoder.table.detach()
            )
        self.table.weight = encoder.table

    def forward(self, types: Tensor) -> Tensor:
        rows = self.rows[types.long()]
        if isinstance(self.table, nn.Embedding):
            return self.table(rows.squeeze(-1))  # type: ignore[no-any-return]
        return self.table(rows.flatten(0, -2)).view(*types.shape, -1)  # type: ignore[no-any-return]


class PlainWindows(nn.Module):
    """A WindowEncoder in plain torch, sharing its parameters."""

    def __init__(self, encoder: WindowEncoder) -> None:
        super().__init__()
        self.words, self.dropout, self.hidden = _Words(encoder), encoder.dropout, encoder.hidden
        self.out_features = encoder.out_features

    def forward(self, types: Tensor) -> Tensor:
        """(N, out_features) features of windows (N, W)."""
        return self.adapted_part(self.shared_part(types))

    def shared_part(self, types: Tensor) -> Tensor:
        """As in a WindowEncoder."""
        return self.dropout(self.words(types).flatten(1))  # type: ignore[no-any-return]

    def adapted_part(self, window: Tensor) -> Tensor:
        """As in a WindowEncoder."""
        return window if self.hidden is None else F.relu(self.hidden(window))


class PlainBags(nn.Module):
    """A BagEncoder in plain torch, sharing its parameters."""

    def __init__(self, encoder: BagEncoder) -> None:
        super().__init__()
        self.words, self.dropout, self.mode = _Words(encoder), encoder.dropout, encoder.mode
        self.out_features = encoder.out_features

    def forward(self, bags: tuple[Tensor, Tensor]) -> Tensor:
        """(N, D) features of N bags: types (total,) and offsets (N + 1,)."""
        types, offsets = bags
        if isinstance(self.words.table, nn.Embedding):
            ids, vectors = self.words.rows[types.long()].squeeze(-1), self.words.table.weight
        else:
            ids, vectors = torch.arange(len(types), device=types.device), self.words(types)
        pooled = F.embedding_bag(ids, vectors, offsets, mode=self.mode, include_last_offset=True)
        return self.dropout(pooled)  # type: ignore[no-any-return]


def plain_encoder(encoder: WindowEncoder | BagEncoder) -> PlainWindows | PlainBags:
    """Return the encoder in plain torch, sharing its parameters."""
    return PlainWindows(encoder) if isinstance(encoder, WindowEncoder) else PlainBags(encoder)


def plain_optimizer(
    table: nn.Parameter, lr: float, weight_decay: float
) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Return a factory of torch's AdamW on everything; it does not decay `table`, as with row-sparse tables."""

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        others = [p for p in parameters if p is not table]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": [table], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)

    return make

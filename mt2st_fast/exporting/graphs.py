"""Encoders and heads in plain torch operators, for any batch size, for export to other runtimes.

Ragged inputs are given as the values of all units, one unit after the other, and the number of values of each unit, all
int64:

    words  rows (R,) of the table, rows_per_word (W,), words_per_unit (U,)
    bags   ids (R,), ids_per_unit (U,)
    types  windows (N, width), or types (R,) and types_per_unit (U,); -1 = none

A graph returns {task: logits (N, C)}.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.model.heads import MultiTaskHeads


class _Graph(nn.Module):
    """The heads of tasks; subclasses compute the features."""

    def __init__(self, heads: MultiTaskHeads, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.linears = nn.ModuleList(_still(heads.linear(task)) for task in tasks)

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        return {task: linear(features) for task, linear in zip(self.tasks, self.linears, strict=True)}


class WordTagger(_Graph):
    """A WindowEncoder over words, each the mean of its rows: one row of logits per word."""

    table: Tensor
    around: Tensor

    def __init__(self, encoder: WindowEncoder, heads: MultiTaskHeads, tasks: Sequence[str]) -> None:
        super().__init__(heads, tasks)
        self.register_buffer("table", _copy(encoder.table))
        self.register_buffer("around", torch.arange(encoder.width) - encoder.width // 2)
        self.hidden = None if encoder.hidden is None else _still(encoder.hidden)

    def forward(self, rows: Tensor, rows_per_word: Tensor, words_per_unit: Tensor) -> dict[str, Tensor]:
        vectors = _means(self.table[rows], rows_per_word)
        W = vectors.shape[0]
        unit = _units(words_per_unit, W)
        places = torch.arange(W).unsqueeze(1) + self.around
        near = places.clamp(0, W - 1)
        inside = (places == near) & (unit[near] == unit.unsqueeze(1))
        window = vectors[near] * inside.to(vectors.dtype).unsqueeze(2)
        return self.logits(_through(self.hidden, window.flatten(1)))


class _Bags(_Graph):
    """A BagEncoder: its table, and how it pools."""

    table: Tensor

    def __init__(self, encoder: BagEncoder, heads: MultiTaskHeads, tasks: Sequence[str]) -> None:
        super().__init__(heads, tasks)
        self.register_buffer("table", _copy(encoder.table))
        self.pool = _means if encoder.mode == "mean" else _sums


class WordBags(_Bags):
    """Bags of words, each the mean of its rows: one row of logits per unit."""

    def forward(self, rows: Tensor, rows_per_word: Tensor, words_per_unit: Tensor) -> dict[str, Tensor]:
        vectors = _means(self.table[rows], rows_per_word)
        return self.logits(self.pool(vectors, words_per_unit))


class IdBags(_Bags):
    """Bags of types that are the rows of the table: one row of logits per bag."""

    def forward(self, ids: Tensor, ids_per_unit: Tensor) -> dict[str, Tensor]:
        return self.logits(self.pool(self.table[ids], ids_per_unit))


class TypeWindows(_Graph):
    """A WindowEncoder with its usual inputs: windows of word types."""

    def __init__(self, encoder: WindowEncoder, heads: MultiTaskHeads, tasks: Sequence[str]) -> None:
        super().__init__(heads, tasks)
        self.types = _Types(encoder)
        self.hidden = None if encoder.hidden is None else _still(encoder.hidden)

    def forward(self, windows: Tensor) -> dict[str, Tensor]:
        return self.logits(_through(self.hidden, self.types(windows).flatten(1)))


class TypeBags(_Graph):
    """A BagEncoder with its usual inputs: bags of word types, of which those that are -1 do not count."""

    def __init__(self, encoder: BagEncoder, heads: MultiTaskHeads, tasks: Sequence[str]) -> None:
        super().__init__(heads, tasks)
        self.types = _Types(encoder)
        self.is_mean = encoder.mode == "mean"

    def forward(self, types: Tensor, types_per_unit: Tensor) -> dict[str, Tensor]:
        pooled = _sums(self.types(types), types_per_unit)
        if self.is_mean:
            known = (types >= 0).to(pooled.dtype).unsqueeze(1)
            pooled = pooled / _sums(known, types_per_unit).clamp_min(1)
        return self.logits(pooled)


class AnyEncoder(_Graph):
    """A custom encoder, called with its own inputs."""

    def __init__(self, encoder: nn.Module, heads: MultiTaskHeads, tasks: Sequence[str]) -> None:
        super().__init__(heads, tasks)
        self.encoder = copy.deepcopy(encoder).cpu().eval()

    def features(self, *inputs: Tensor) -> Tensor:
        """Return features (..., D), without the mask that an encoder may return beside them."""
        found = self.encoder(*inputs)
        features: Tensor = found[0] if isinstance(found, tuple) else found
        return features

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        return self.logits(self.features(*inputs))


class _Types(nn.Module):
    """Vectors (..., D) of word types (...): the mean of a type's rows; zeros for -1."""

    table: Tensor
    rows_of_type: Tensor | None

    def __init__(self, encoder: WindowEncoder | BagEncoder) -> None:
        super().__init__()
        self.register_buffer("table", _copy(encoder.table))
        rows = encoder.rows_of_type
        self.register_buffer("rows_of_type", None if rows is None else _copy(rows).long())

    def forward(self, types: Tensor) -> Tensor:
        table, of_types = self.table, self.rows_of_type
        if of_types is None:
            return table[types.clamp_min(0)] * (types >= 0).to(table.dtype).unsqueeze(-1)
        none = of_types.shape[0] - 1
        rows = of_types[types.masked_fill(types < 0, none)]
        known = (rows >= 0).to(table.dtype)
        sums = (table[rows.clamp_min(0)] * known.unsqueeze(-1)).sum(-2)
        return sums / known.sum(-1, keepdim=True).clamp_min(1)


def _sums(vectors: Tensor, counts: Tensor) -> Tensor:
    """Return sums (U, D) of vectors (R, D); unit u has the next counts[u] of them.

    They are differences of a running sum in float64. onnxruntime's scatter-add runs in several threads and loses
    updates where they collide; adding one element at a time takes four times as long.
    """
    none = vectors.new_zeros(1, vectors.shape[1], dtype=torch.float64)
    running = torch.cat([none, vectors.double().cumsum(0)])
    ends = counts.cumsum(0)
    sums = running.index_select(0, ends) - running.index_select(0, ends - counts)
    return sums.to(vectors.dtype)


def _means(vectors: Tensor, counts: Tensor) -> Tensor:
    """Return means (U, D), zeros for a unit without vectors."""
    return _sums(vectors, counts) / counts.clamp_min(1).to(vectors.dtype).unsqueeze(1)


def _units(counts: Tensor, total: int) -> Tensor:
    """Return numbers (total,) that are equal for places of the same unit only. counts (U,) sum to total."""
    begins = counts.cumsum(0) - counts
    # Empty units begin where another one does: both write the same value.
    marks = counts.new_zeros(total + 1).scatter(0, begins, torch.ones_like(counts))
    return marks.cumsum(0)[:-1]


def _through(hidden: nn.Module | None, window: Tensor) -> Tensor:
    return window if hidden is None else torch.relu(hidden(window))


def _still(linear: nn.Linear) -> nn.Linear:
    """Return a copy of a layer on the CPU, without gradients."""
    return copy.deepcopy(linear).cpu().requires_grad_(False)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()

"""The table before the layers of a stack, as in `nn.EmbeddingBag`, or in `nn.Embedding` with vectors side by side."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .dense_model import Dense

How = Literal["sum", "mean", "concat"]
HOWS: tuple[str, ...] = get_args(How)
MOST_ROWS = (1 << 31) - 1  # of a table, and of indices in a batch: they are numbered by 32 bits


class EmbeddingTable(NamedTuple):
    """A table (V, D) that is trained as a dense parameter: rows that a batch does not hold have gradient 0.

    how: the vectors of a row's L indices are added up, averaged, or lie side by side, L D numbers.
    padding: an index whose row has no gradient; it does not count in a sum or a mean either.
    """

    table: Dense
    how: How
    padding: int | None = None

    def check(self, n_inputs: int) -> None:
        """Raise ValueError for too many rows, a padding that is none of them, and if its outputs are no such inputs."""
        V, D = self.table.parameter.shape
        if V > MOST_ROWS:
            raise ValueError(f"the table has {V:,} rows, and its kernel takes at most {MOST_ROWS:,}")
        if self.padding is not None and not 0 <= self.padding < V:
            raise ValueError(f"the padding is {self.padding}, and the table has {V:,} rows")
        if n_inputs != D and (self.how != "concat" or n_inputs % D):
            raise ValueError(f"the table has rows of {D} numbers, and what follows it {n_inputs} inputs")


def indices_obstacle(embedding: EmbeddingTable, indices: Tensor, n_inputs: int) -> str | None:
    """Return why these are no indices (N, L) of the rows of a table, or None; the indices themselves are not read."""
    L = n_inputs // embedding.table.parameter.shape[1] if embedding.how == "concat" else None
    fits = indices.dim() == 2 and indices.shape[1] > 0 and L in (None, indices.shape[1])
    if not fits or indices.dtype not in (torch.int32, torch.int64):
        return f"its kernel takes indices (N, {L or 'L'}) of int64 or int32, not {described(indices)}"
    return f"its kernel takes at most {MOST_ROWS:,} indices" if indices.numel() > MOST_ROWS else None


def described(inputs: Tensor) -> str:
    """Return shape and dtype as text."""
    return f"{tuple(inputs.shape)} of {str(inputs.dtype).removeprefix('torch.')}"

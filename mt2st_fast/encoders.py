"""Text encoders: an embedding table and a gather. Any nn.Module that yields (N, D) serves as well."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _TypeEmbedding(nn.Module):
    """A table (V, D) and, for each word type, the rows whose mean is its vector.

    `rows_of_type` is (T, M), padded with `padding_row`: the word's own row and those of its hashed
    subwords, so that a word unseen in training still has a vector. None means that type t is row t + 1,
    and row 0 the padding.
    """

    rows_of_type: Tensor

    def __init__(
        self,
        num_types: int,
        dim: int,
        *,
        rows_of_type: Tensor | None = None,
        num_rows: int | None = None,
        padding_row: int = 0,
    ) -> None:
        super().__init__()
        if rows_of_type is None:
            rows_of_type = torch.arange(1, num_types + 1).unsqueeze(1)
            num_rows, padding_row = num_types + 1, 0
        elif num_rows is None:
            raise ValueError("num_rows must say how long the table is that rows_of_type points into")
        if rows_of_type.dim() != 2 or len(rows_of_type) != num_types:
            raise ValueError(
                f"rows_of_type must be (T, M) = ({num_types}, M), not {tuple(rows_of_type.shape)}"
            )
        if int(rows_of_type.min()) < 0 or int(rows_of_type.max()) >= num_rows:
            raise ValueError(f"rows_of_type points outside the table's {num_rows} rows")
        self.padding_row, self.dim, self.num_types = padding_row, dim, num_types
        self.table = nn.Parameter(torch.empty(num_rows, dim))
        # Mean pooling divides by the bag: this scale keeps the features of a window near unit variance.
        nn.init.normal_(self.table, std=0.5)
        with torch.no_grad():
            self.table[padding_row].zero_()
        # One more type at the end, all padding: id -1 (outside the sentence) indexes it.
        outside = torch.full((1, rows_of_type.shape[1]), padding_row)
        self.register_buffer("rows_of_type", torch.cat([rows_of_type.long(), outside]), persistent=False)

    def pool(self, types: Tensor) -> Tensor:
        """(..., D) vectors of word types (...), -1 = none (a zero vector)."""
        rows = self.rows_of_type[types.flatten()]
        pooled = F.embedding_bag(rows, self.table, mode="mean", padding_idx=self.padding_row)
        return pooled.view(*types.shape, self.dim)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """(T, D) the vector of every word type."""
        return self.pool(torch.arange(self.num_types, device=self.table.device))


class WindowEncoder(_TypeEmbedding):
    """The vectors of a window of words side by side, and a hidden layer over them.

    Input: (N, 2*window+1) integer word types, -1 outside the sentence. Output: (N, out_features); without
    a hidden layer that is (2*window+1) * dim. The vectors' dropout (probability) acts on the window.
    """

    def __init__(
        self,
        num_types: int,
        dim: int,
        *,
        window: int = 2,
        hidden: int | None = 128,
        dropout: float = 0.0,
        rows_of_type: Tensor | None = None,
        num_rows: int | None = None,
        padding_row: int = 0,
    ) -> None:
        super().__init__(
            num_types, dim, rows_of_type=rows_of_type, num_rows=num_rows, padding_row=padding_row
        )
        self.width = 2 * window + 1
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(self.width * dim, hidden) if hidden else None
        self.out_features = hidden or self.width * dim

    def forward(self, types: Tensor) -> Tensor:
        """(N, out_features) features of windows (N, 2*window+1). Raises ValueError for another width."""
        if types.dim() != 2 or types.shape[1] != self.width:
            raise ValueError(f"inputs must be (N, {self.width}) word types, not {tuple(types.shape)}")
        window = self.dropout(self.pool(types).flatten(1))
        return window if self.hidden is None else F.relu(self.hidden(window))


class BagEncoder(_TypeEmbedding):
    """The mean or sum of the vectors of a bag of words.

    Input: (types (total,), offsets (N+1,)), the bags one after another and where each begins, the last
    offset being `total`. Output: (N, dim); an empty bag is zero.
    """

    def __init__(
        self,
        num_types: int,
        dim: int,
        *,
        mode: Literal["mean", "sum"] = "mean",
        dropout: float = 0.0,
        rows_of_type: Tensor | None = None,
        num_rows: int | None = None,
        padding_row: int = 0,
    ) -> None:
        super().__init__(
            num_types, dim, rows_of_type=rows_of_type, num_rows=num_rows, padding_row=padding_row
        )
        if mode not in ("mean", "sum"):
            raise ValueError(f"mode must be mean or sum, not {mode}")
        self.mode = mode
        self.dropout = nn.Dropout(dropout)
        self.out_features = dim

    def forward(self, bags: tuple[Tensor, Tensor]) -> Tensor:
        """(N, dim) features of N bags."""
        types, offsets = bags
        vectors = self.pool(types)
        lengths = offsets.diff()
        bag_of = torch.repeat_interleave(
            torch.arange(len(lengths), device=types.device), lengths, output_size=len(types)
        )
        pooled = vectors.new_zeros(len(lengths), self.dim).index_add(0, bag_of, vectors)
        if self.mode == "mean":
            pooled = pooled / lengths.clamp_min(1).unsqueeze(1)
        return self.dropout(pooled)

"""Text encoders: an embedding table and a gather. Any nn.Module that returns (N, D) works as well."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mt2st_fast.errors import InputError
from mt2st_fast.huge_pages import prefer_huge_pages
from mt2st_fast.kernels import (
    DeviceBags,
    TypeRows,
    embedding_bag,
    embedding_bag_of_types,
    pools_types,
    prepare_on_device,
    prepared_embedding_bag,
    type_rows,
    unique_ids,
)
from mt2st_fast.table_limits import naming_table

NO_ROW = -1
# Mean pooling divides by the bag: this scale keeps the features of a window near unit variance.
TABLE_STD = 0.5


class _TypeEmbedding(nn.Module):
    """A table (V, D) and, for each word type, the rows whose mean is its vector; `BagEncoder` has the arguments."""

    rows_of_type: Tensor | None
    counts_of_type: Tensor | None  # (T + 1,): how many rows each type has

    def __init__(
        self,
        num_types: int,
        dim: int,
        *,
        rows_of_type: Tensor | None = None,
        num_rows: int | None = None,
        padding_row: int = 0,
        sparse: bool = False,
        backend: str = "auto",
        table_device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        if rows_of_type is not None:
            if num_rows is None:
                raise ValueError("rows_of_type requires num_rows, the number of rows of the table")
            rows_of_type = _with_none(rows_of_type, num_types, num_rows, padding_row)
        self.dim, self.num_types, self.padding_row = dim, num_types, padding_row
        self.sparse, self.backend = sparse, backend
        n_rows = num_types if num_rows is None else num_rows
        # Not if the whole encoder is made on this device, for code that fills it afterwards.
        self._waits_for_rows = table_device is not None and torch.device(table_device).type == "meta"
        with naming_table(n_rows, dim):
            self.table = nn.Parameter(torch.empty(n_rows, dim, device=table_device))
        prefer_huge_pages(self.table)
        nn.init.normal_(self.table, std=TABLE_STD)
        if rows_of_type is not None:
            with torch.no_grad():
                self.table[padding_row].zero_()
        self.register_buffer("rows_of_type", rows_of_type, persistent=False)
        counts = None if rows_of_type is None else type_rows(rows_of_type).counts
        self.register_buffer("counts_of_type", counts, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the module; raises InputError for a table without rows, which torch would fill with arbitrary values."""
        if self._waits_for_rows and self.table.is_meta:
            raise InputError(
                'the encoder was made with table_device="meta" and has no rows yet; call shard_rows(encoder) in '
                "every process before you create the Trainer, or omit table_device"
            )
        moved = super()._apply(fn, recurse)
        prefer_huge_pages(self.table)  # `to_empty` makes another one
        return moved

    def configuration(self) -> dict[str, Any]:
        """Return the arguments that make such an encoder."""
        rows = self.rows_of_type
        return {
            "num_types": self.num_types,
            "dim": self.dim,
            "rows_of_type": None if rows is None else rows[:-1].masked_fill(rows[:-1] < 0, self.padding_row),
            "num_rows": len(self.table),
            "padding_row": self.padding_row,
            "sparse": self.sparse,
            "backend": self.backend,
        }

    def pool(self, types: Tensor) -> Tensor:
        """(..., D) vectors of word types (...), -1 = none (a zero vector)."""
        if self._pools_types():
            return self._pool_types(types.flatten(), None, "sum").view(*types.shape, self.dim)
        source, ids = self._source(types.flatten())
        pooled = embedding_bag(
            source, ids.unsqueeze(1), mode="sum", sparse=self._is_sparse(source), backend=self.backend
        )
        return pooled.view(*types.shape, self.dim)

    def pool_each(self, types: Tensor) -> Tensor:
        """(n, D) the vectors of `pool` for types (n,) that mostly differ: it does not look for repeated types."""
        if self.rows_of_type is None or self._pools_types():
            return self.pool(types)
        self._check_range(types)
        return self.mean_of_rows(self.rows_of_type[types.long()])

    def pool_bags(self, types: Tensor, starts: Tensor, mode: Literal["mean", "sum"]) -> Tensor:
        """(N, D) mean or sum of the vectors in each bag of types (total,); starts are (N + 1,)."""
        if self._pools_types():
            return self._pool_types(types, starts, mode)
        source, ids = self._source(types)
        return embedding_bag(
            source, ids, starts, mode=mode, sparse=self._is_sparse(source), backend=self.backend
        )

    def _pools_types(self) -> bool:
        """Whether to read the table by type, in one launch: finding the unique types would make a GPU wait."""
        return not torch.compiler.is_compiling() and pools_types(
            self.table.device, self.table.dtype, self.backend
        )

    def _pool_types(self, types: Tensor, starts: Tensor | None, mode: Literal["mean", "sum"]) -> Tensor:
        return embedding_bag_of_types(
            self.table, self._type_rows(), types, starts, mode=mode, sparse=self.sparse, backend=self.backend
        )

    def _type_rows(self) -> TypeRows | None:
        rows, counts = self.rows_of_type, self.counts_of_type
        return None if rows is None or counts is None else TypeRows(rows, counts)

    def _source(self, types: Tensor) -> tuple[Tensor, Tensor]:
        """(vectors, ids): vectors[ids] are those of the types (n,); from the table, or means of subwords.

        The mean of a type is computed once, however often the batch holds it.
        """
        if self.rows_of_type is None:
            return self.table, types
        if torch.compiler.is_compiling():  # the number of unique types depends on the data
            means = embedding_bag(
                self.table, self.rows_of_type[types.long()], mode="mean", sparse=self.sparse
            )
            places = torch.arange(len(means), device=means.device)
            return means, places.masked_fill(types < 0, NO_ROW)
        if self.rows_of_type.shape[1] == 1:
            self._check_range(types)
            rows = self.rows_of_type[:, 0][types.long()]
            # A type without a row is a word with the vector 0, and counts in the mean of a bag.
            if torch.equal(rows < 0, types < 0):
                return self.table, rows
        unique, ids = unique_ids(types, self.num_types, self.backend)
        self._check_range(unique)
        return self.mean_of_rows(self.rows_of_type[unique.long()]), ids

    def mean_of_rows(self, rows: Tensor) -> Tensor:
        """(n, D) the mean of n times M rows of the table, -1 = none; also for words that are not types."""
        return embedding_bag(self.table, rows, mode="mean", sparse=self.sparse, backend=self.backend)

    def _is_sparse(self, source: Tensor) -> bool:
        # Every mean is in the batch: its gradient is dense.
        return self.sparse and source is self.table

    def _check_range(self, types: Tensor) -> None:
        """Check the range of word types, on a CPU only: on a device, the check would have to wait for it."""
        if types.device.type == "cpu" and types.numel() and not torch.compiler.is_compiling():
            smallest, largest = (int(bound) for bound in types.aminmax())
            if smallest < NO_ROW or largest >= self.num_types:
                wrong = largest if largest >= self.num_types else smallest
                raise ValueError(
                    f"inputs contain the word type {wrong}; valid are 0 up to, but not including, "
                    f"{self.num_types:,}, and -1 for none"
                )

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """(T, D) the vector of every word type."""
        if self.rows_of_type is None:
            return self.table[: self.num_types].clone()
        return self.mean_of_rows(self.rows_of_type[:-1])


def _with_none(rows_of_type: Tensor, num_types: int, num_rows: int, padding_row: int) -> Tensor:
    """(T + 1, M) int32: the rows of each type, without padding; the last entry, which -1 indexes, has none."""
    if rows_of_type.dim() != 2 or len(rows_of_type) != num_types:
        raise ValueError(f"rows_of_type must be (T, M) = ({num_types}, M), not {tuple(rows_of_type.shape)}")
    if int(rows_of_type.min()) < 0 or int(rows_of_type.max()) >= num_rows:
        raise ValueError(f"rows_of_type points outside the table's {num_rows} rows")
    rows = rows_of_type.to(torch.int32)
    outside = torch.full((1, rows.shape[1]), NO_ROW, dtype=torch.int32)
    return torch.cat([rows.masked_fill(rows == padding_row, NO_ROW), outside])


class WindowEncoder(_TypeEmbedding):
    """The vectors of a window of words side by side, and a hidden layer over them.

    Input: (N, 2*window+1) integer word types, -1 outside the sentence. Output: (N, out_features); without
    a hidden layer that is (2*window+1) * dim.

    window: words on each side. hidden: outputs of a linear layer with ReLU; None: no layer. dropout: a probability, of
    the vectors of the window. The other arguments and errors are those of `BagEncoder`.
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
        sparse: bool = False,
        backend: str = "auto",
        table_device: str | torch.device | None = None,
    ) -> None:
        super().__init__(
            num_types, dim, rows_of_type=rows_of_type, num_rows=num_rows, padding_row=padding_row, sparse=sparse,
            backend=backend, table_device=table_device,
        )  # fmt: skip
        self.width = 2 * window + 1
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(self.width * dim, hidden) if hidden else None
        self.out_features = hidden or self.width * dim

    def extra_repr(self) -> str:
        """Show what the layers do not."""
        return f"{self.num_types}, {self.dim}, window={self.width // 2}"

    def configuration(self) -> dict[str, Any]:
        """Return the arguments that make such an encoder."""
        hidden = None if self.hidden is None else self.hidden.out_features
        own = {"window": self.width // 2, "hidden": hidden, "dropout": self.dropout.p}
        return super().configuration() | own

    def forward(self, types: Tensor) -> Tensor:
        """(N, out_features) features of windows (N, 2*window+1). Raises ValueError for another width."""
        return self.adapted_part(self.shared_part(types))

    def shared_part(self, types: Tensor) -> Tensor:
        """(N, (2*window+1) * dim) the vectors of windows side by side: what a `TaskAdaptedEncoder` computes once."""
        if not isinstance(types, Tensor) or types.dim() != 2 or types.shape[1] != self.width:
            given = tuple(types.shape) if isinstance(types, Tensor) else f"a {type(types).__name__}"
            raise ValueError(f"inputs must be (N, {self.width}) word types, not {given}")
        return self.dropout(self.pool(types).flatten(1))  # type: ignore[no-any-return]

    def adapted_part(self, window: Tensor) -> Tensor:
        """(N, out_features) the features from the window's vectors: the part that tasks may adapt."""
        return window if self.hidden is None else F.relu(self.hidden(window))


class BagEncoder(_TypeEmbedding):
    """The mean or sum of the vectors of a bag of words.

    Input: (types (total,), offsets (N+1,)): the bags one after another, and where each begins; the last
    offset is `total`. Output: (N, dim); an empty bag gives zeros.

    num_types: T, how many word types there are. dim: D, of their vectors. mode: "mean" or "sum". dropout: a
    probability, of the pooled vectors. rows_of_type: (T, M) rows of the table whose mean is a type's vector, padded
    with `padding_row`: the word's own row and those of its hashed subwords (`subword_rows`), so that a word unseen in
    training has a vector, too; None: type t is row t. num_rows: V, the rows of that table; T without rows_of_type.
    sparse: the table's gradient is a sparse tensor of the batch's rows, so that the cost of a step with this package's
    LazyAdam, RowwiseAdagrad or SGD depends on the batch, not on V. backend: "auto", or the name of one that must pool.
    table_device: "meta" makes a table without memory; `shard_rows` then gives every process its rows.

    Raises ValueError for another mode, for rows_of_type of another shape, without num_rows or with rows outside of
    them, and InputError for a table that does not fit into memory.
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
        sparse: bool = False,
        backend: str = "auto",
        table_device: str | torch.device | None = None,
    ) -> None:
        super().__init__(
            num_types, dim, rows_of_type=rows_of_type, num_rows=num_rows, padding_row=padding_row, sparse=sparse,
            backend=backend, table_device=table_device,
        )  # fmt: skip
        if mode not in ("mean", "sum"):
            raise ValueError(f"mode must be mean or sum, not {mode}")
        self.mode: Literal["mean", "sum"] = mode
        self.dropout = nn.Dropout(dropout)
        self.out_features = dim

    def extra_repr(self) -> str:
        """Show what the layers do not."""
        return f"{self.num_types}, {self.dim}, mode={self.mode}"

    def configuration(self) -> dict[str, Any]:
        """Return the arguments that make such an encoder."""
        return super().configuration() | {"mode": self.mode, "dropout": self.dropout.p}

    def prepare(self, types: Tensor, offsets: Tensor) -> DeviceBags:
        """Sort a batch that will be used again, once, for `forward`; on a GPU only, see `prepare_on_device`."""
        return prepare_on_device(
            self.table, types, offsets, self.mode, types=self._type_rows(), backend=self.backend
        )

    def forward(self, bags: tuple[Tensor, Tensor] | DeviceBags) -> Tensor:
        """(N, dim) features of N bags."""
        if isinstance(bags, DeviceBags):
            pooled = prepared_embedding_bag(self.table, bags, sparse=self.sparse, backend=self.backend)
            return self.dropout(pooled)
        types, offsets = bag_parts(bags)
        return self.dropout(self.pool_bags(types, offsets, self.mode))


def bag_parts(bags: Any) -> tuple[Tensor, Tensor]:
    """Return types (total,) and offsets (N + 1,) of N bags. Raises ValueError for what is no such pair."""
    # A tensor of two rows would come apart into a pair as well.
    if isinstance(bags, Tensor):
        raise ValueError(
            f"inputs must be a pair of types and offsets, not one tensor {tuple(bags.shape)}; of rows of equal length, "
            "pass (x.flatten(), torch.arange(len(x) + 1) * x.shape[1])"
        )
    if not (isinstance(bags, tuple | list) and len(bags) == 2):
        said = f"{len(bags)} parts" if isinstance(bags, tuple | list) else f"a {type(bags).__name__}"
        raise ValueError(f"inputs must be a pair of types and offsets, not {said}")
    types, offsets = bags
    return types, offsets

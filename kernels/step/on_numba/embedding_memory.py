"""The memory of the table before a stack of layers, and a batch's indices, checked and copied to it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...bags.batch import NONE
from ...machine.simd import WIDTH
from ..embedding import HOWS, EmbeddingTable

SUM, MEAN, BESIDE = range(len(HOWS))
GROWTH = 1.25
INDICES_A_PIECE = 4096  # that are checked and copied at a time

# What comes before the first layer: inputs (N, F), copied to x (N, ld), or a table (V, D) and indices (N, L), from
# which x is made. Addresses; of float32, unless another type is stated; 0 for what is not there.
EMBEDDING = np.dtype(
    [
        ("x", np.int64),
        ("ld", np.int64),  # of x and d_x
        ("d_x", np.int64),
        ("F", np.int64),
        ("table", np.int64),  # 0: there is none
        ("V", np.int64),
        ("D", np.int64),
        ("how", np.int64),  # SUM, MEAN or BESIDE
        ("per_row", np.int64),
        ("first", np.int64),
        ("second", np.int64),
        ("rule", np.int64),
        ("L", np.int64),
        ("n", np.int64),  # N L
        ("given", np.int64),  # (N, L) indices of the batch, int64 if wide, else int32
        ("wide", np.int64),
        ("padding", np.int64),  # the index whose row is not trained, NONE without one
        ("outside", np.int64),  # (n / INDICES_A_PIECE,) int64: see `take_indices`
        ("ids", np.int64),  # (N, L) int32; NONE does not count
        ("trained", np.int64),  # the same, with NONE where the row has no gradient; often in the same memory
        ("scales", np.int64),  # (N,) the factor of the sum of a row's vectors
        (
            "d_vectors",
            np.int64,
        ),  # (N, D) gradients of the rows of all indices of a row; BESIDE: (N, L, D), of each
        # The batch by rows of the table: rows[r] has the gradients owners[begins[r] : begins[r + 1]] of d_vectors.
        ("n_rows", np.int64),  # R
        ("rows", np.int64),  # (R,) int32
        ("begins", np.int64),  # (R + 1,) int64
        ("owners", np.int64),  # int32
        ("slots", np.int64),  # (N, L) int32: the number r of each index
        ("slot_of_row", np.int64),  # (V,) int32: the number r of each row; NONE between steps
    ]
)


class EmbeddingMemory:
    """The record of what comes before the first layer, and the memory of a table's batches, which grows with them.

    x, d_x: addresses of (N, ld); F: how many of the ld numbers there are.
    """

    def __init__(self, embedding: EmbeddingTable | None, x: int, ld: int, F: int, d_x: int) -> None:
        self.record = np.zeros(1, EMBEDDING)
        self._of = self.record[0]  # the same memory
        self._embedding, self._sizes, self._held = embedding, (-1, -1), dict[str, np.ndarray]()
        self._counts_padding = False
        self._set(x=x, ld=ld, F=F, d_x=d_x)
        self._F = F
        if embedding is not None:
            table, state = embedding.table.parameter, embedding.table.state
            self._slot_of_row = np.full(len(table), NONE, np.int32)
            self._counts_padding = embedding.how == "concat" and embedding.padding is not None
            per_row, first, second = (0 if part is None else part.data_ptr() for part in state)
            self._set(
                table=table.data_ptr(), V=len(table), D=table.shape[1], how=HOWS.index(embedding.how), per_row=per_row,
                first=first, second=second, rule=embedding.table.rule, slot_of_row=self._slot_of_row.ctypes.data,
                padding=NONE if embedding.padding is None else embedding.padding,
            )  # fmt: skip

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            self._of[name] = value

    def hold(self, indices: Tensor) -> Tensor:
        """Take over a batch's indices (N, L); return what must be kept while a kernel reads them."""
        N, L = indices.shape
        self._grow(N * L, N * self._F)
        given = indices if indices.is_contiguous() else indices.contiguous()
        self._set(L=L, n=N * L, given=given.data_ptr(), wide=int(given.dtype is torch.int64))
        return given

    def refusal(self, given: Tensor, position: int) -> ValueError:
        """Return the error for the index at this position of what `hold` returned."""
        return ValueError(
            f"inputs contain the index {given.flatten()[position].item()}; valid are 0 up to, but not including, "
            f"{self._of['V']:,}"
        )

    def _grow(self, n: int, n_floats: int) -> None:
        """Make memory for n indices and so many numbers of gradients, unless there is enough."""
        if n <= self._sizes[0] and n_floats <= self._sizes[1]:
            return
        n, n_floats = (
            max(needed, int(GROWTH * held)) if needed > held else held
            for needed, held in zip((n, n_floats), self._sizes, strict=True)
        )
        R = min(n, int(self._of["V"]))
        sizes = {"trained": n, "owners": n, "slots": n, "rows": R}
        self._held = {name: np.empty(size, np.int32) for name, size in sizes.items()}
        self._held["ids"] = np.empty(n, np.int32) if self._counts_padding else self._held["trained"]
        self._held["begins"], self._held["outside"] = (
            np.empty(size, np.int64) for size in (R + 1, -(-n // INDICES_A_PIECE))
        )
        self._held["scales"], self._held["d_vectors"] = (
            np.empty(n, np.float32), np.empty(n_floats + WIDTH, np.float32)
        )  # fmt: skip
        self._sizes = n, n_floats
        self._set(**{name: array.ctypes.data for name, array in self._held.items()})

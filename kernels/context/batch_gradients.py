"""Loss and gradients of batches of context prediction in one call each, without autograd.

For a training step that makes its other gradients itself: the words' vectors are means of rows of a table, and
vectors and gradients are read and left where the step has them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .backends import OP, load_numba
from .batch import MODES, SPLIT_WORDS, LocalBatch
from .workspace import Workspace, floats, make_workspace

MOST_SPLITS = 2


class LossAndGradients(NamedTuple):
    """The loss of a batch, and gradients of a multiple of it, which the next batch overwrites."""

    loss: float  # the mean over the positive pairs
    d_inputs: Tensor  # (n_kept, D): of the vectors of types[:n_kept]
    d_outputs: Tensor  # (U, D): of the output vectors of all types


def gradients_obstacle(table: Tensor, outputs: Tensor, backend: str = "auto") -> str | None:
    """Return why `GradientsOfBatches` cannot read these tables, or None. Raises what `choose_backend` raises."""
    for each in (table, outputs):
        if (chosen := OP.choose(each.device.type, each.dtype, backend).name) != "numba":
            return f"its context prediction is computed by {chosen}"
        if each.dtype != torch.float32 or not each.is_contiguous():
            return "its tables are not contiguous float32"
    return None if table.shape[1:] == outputs.shape[1:] else "its output vectors have another length"


class GradientsOfBatches:
    """Computes what `context_loss` and its backward pass do, of one task, in memory that it keeps."""

    def __init__(self) -> None:
        self._kernels: Any = load_numba("batch_gradients", "GradientsOfBatches")
        self._for = (0, 0, 0, 0, 0)  # what the memory was made for
        self._memory: tuple[Workspace, np.ndarray, np.ndarray]

    def __call__(
        self, batch: LocalBatch, weight: float, table: Tensor, rows_of_type: Tensor | None, outputs: Tensor
    ) -> LossAndGradients:
        """Return the loss of a batch, and gradients of `weight` times the loss; change nothing.

        table (V, D), outputs (T, D): without `gradients_obstacle`. rows_of_type: (T + 1, M) int32, the rows whose mean
        is a type's vector, -1 = none; None: type t is row t.

        Raises ValueError for a type that is not in [0, T).
        """
        types, T, D = batch.types.numpy(), *outputs.shape
        N, M = len(batch.words), batch.drawn.shape[1]
        per_pair = batch.per_pair.item()
        w, d_x, d_y = self._memory_for(len(types), N, D, batch.window, M)
        P = MOST_SPLITS if N >= SPLIT_WORDS else 1
        wrong, loss = self._kernels.gradients_of_batch(
            MODES.index(batch.mode), types, batch.n_kept, batch.words.numpy(), batch.low.numpy(),
            batch.high.numpy(), batch.drawn.numpy().reshape(-1), float(batch.negatives), batch.window,
            np.float32(weight * per_pair), table.detach().numpy(), outputs.detach().numpy(),
            _EACH_ITS_OWN if rows_of_type is None else rows_of_type.numpy(), d_x[:P], d_y[:P], w,
        )  # fmt: skip
        if wrong >= 0:
            raise ValueError(f"a batch contains the word type {types[wrong]}; valid are 0 to {T - 1:,}")
        return LossAndGradients(loss * per_pair, _rows(d_x, batch.n_kept, D), _rows(d_y, len(types), D))

    def _memory_for(
        self, U: int, N: int, D: int, window: int, M: int
    ) -> tuple[Workspace, np.ndarray, np.ndarray]:
        """Return the workspace for U types and N words, and the gradients of each split (MOST_SPLITS, U, ld)."""
        *sizes, most_types, most_words = self._for
        if sizes != [D, window, M] or most_types < U or most_words < N:
            most_types, most_words = max(U, most_types), max(N, most_words)
            w = make_workspace(most_types, D, MOST_SPLITS, most_words, window, M)
            w.x[:] = 0  # what lies beyond D columns stays so
            of_split = MOST_SPLITS, most_types, w.x.shape[2]
            self._memory = w, floats(*of_split), floats(*of_split)
            self._for = (D, window, M, most_types, most_words)
        return self._memory


_EACH_ITS_OWN = np.zeros((0, 0), np.int32)


def _rows(sums: np.ndarray, n: int, D: int) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(sums[0, :n, :D]))

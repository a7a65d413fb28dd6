"""What a training step needs to know about a batch of bags before it starts, in a form that can be reused.

A batch of B bags of rows of a table (V, D) is a sparse matrix (B, V). A step reads it by bag in the forward pass and
by row in the backward pass. If the same batch comes once an epoch, its ids are checked and grouped only once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from .op import OP, Mode, checked_bags, serving

# A thread that pools only rows that it also updates never waits for another's cache, but makes a partial sum of its own
# for every bag. With 20 ids per bag and thread that pays off (python -m bench.bags documents); the limit is a guess.
LEAST_IDS = 8


class PreparedBags(NamedTuple):
    """A checked batch of B bags and U distinct rows: the input of `bag_step`."""

    n_rows: int  # of the tables that it fits
    scales: np.ndarray  # (B,) float32, the factor of the sum of a bag's rows
    ids: np.ndarray  # (total,) int32, by bag: pool p sums rows ids[starts[p, b] : starts[p, b + 1]] for bag b
    starts: np.ndarray  # (n_pools, B + 1) int64; one pool for all threads, or one for every part
    rows: np.ndarray  # (U,) int32, by row: rows[u] is in the bags bags[begins[u] : begins[u + 1]]
    begins: np.ndarray  # (U + 1,) int64
    bags: np.ndarray  # int32, one for each id that stands for a row
    parts: np.ndarray  # (n_parts + 1,) int64: a thread updates rows[parts[p] : parts[p + 1]]


def prepare_bags(table: Tensor, ids: Tensor, starts: Tensor, mode: Mode = "mean") -> PreparedBags:
    """Check a batch of bags, ids int32 (total,) and starts int64 (B + 1,) as in `embedding_bag`, and group its ids.

    The result may share memory with ids and starts: do not modify them while it is in use.

    Raises ValueError for an id outside [-1, V), and for starts that do not ascend from 0 to the number of ids.
    """
    ids, starts = checked_bags(table, ids, starts, mode, serving(table))
    # By name: this prepares what that backend's `bag_step` takes.
    kernels = OP.load("numba", "ids")
    from ..machine.team import PARALLEL_FLOATS, thread_count

    V, D = table.shape
    # Detached: a cache that holds the result by a weak reference to the tensor would otherwise keep the tensor alive.
    by_bag, B = (ids.detach().numpy(), starts.numpy()), len(starts) - 1
    scales = kernels.mean_scales(*by_bag) if mode == "mean" else np.ones(B, np.float32)
    n_parts = thread_count() if ids.numel() * D >= PARALLEL_FLOATS else 1
    one_pool = by_bag[0], by_bag[1][None]
    by_part = kernels.split_by_part(*by_bag, n_parts) if n_parts > 1 else one_pool
    pools = by_part if len(ids) >= LEAST_IDS * B * n_parts else one_pool
    return PreparedBags(V, scales, *pools, *kernels.transposed(*by_part, V - 1))

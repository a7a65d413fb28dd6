"""Bags of table rows in plain torch: the oracle of the embedding kernels, on any device and in any float dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import NONE, Bags
from .rules import RowRule, RowState

POOLS_TYPES = False


def first_outside(ids: Tensor, V: int) -> int:
    """Return the position of the first id that is neither NONE nor in [0, V); -1 if there is none."""
    outside = ((ids < NONE) | (ids >= V)).nonzero()
    return int(outside[0, 0]) if len(outside) else -1


def mean_scales(ids: Tensor, starts: Tensor, V: int) -> Tensor:
    """Return 1 over the number of ids in [0, V) of every bag (B,); 0 for a bag without any."""
    bags, known = _bag_of_position(starts, len(ids)), (ids > NONE) & (ids < V)
    counts = torch.zeros(len(starts) - 1, dtype=torch.float32, device=ids.device).index_add_(
        0, bags, known.float()
    )
    return torch.where(counts > 0, 1.0 / counts.clamp_min(1.0), 0.0)


def unique_ids(ids: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """Return (unique (U,) ascending, inverse (total,)): unique[inverse] are the ids; NONE stays NONE."""
    del V
    unique, inverse = torch.unique(ids, return_inverse=True)
    none = int((unique == NONE).any())
    return unique[none:].to(torch.int32), (inverse - none).to(torch.int32)


def pool(table: Tensor, bags: Bags) -> Tensor:
    """Return the sum of every bag's rows times its scale, (B, D)."""
    ids, starts, scales = bags.ids, bags.bounds, bags.scales
    if not len(table):  # the means of the types of a batch that has none
        table = table.new_zeros(1, table.shape[1])
    # Not selected by a mask of valid ids: the length would depend on data, which torch.compile cannot trace.
    rows = table[ids.long().clamp_min(0)] * (ids != NONE).to(table.dtype).unsqueeze(1)
    out = table.new_zeros(len(starts) - 1, table.shape[1]).index_add(
        0, _bag_of_position(starts, len(ids)), rows
    )
    return out if scales is None else out * scales.to(out.dtype).unsqueeze(1)


def pool_means(table: Tensor, bags: Bags) -> tuple[Tensor, Tensor]:
    """Return the mean of every bag's rows (B, D) and its scales (B,); does not read the scales of the bags."""
    scales = mean_scales(bags.ids, bags.bounds, len(table))
    return pool(table, bags._replace(scales=scales)), scales


def row_gradient(gradient: Tensor, bags: Bags, V: int) -> tuple[Tensor, Tensor]:
    """Return (rows (U,) int64 ascending, their gradients (U, D)) from the gradient of the bags (B, D)."""
    del V
    ids, starts, scales = bags.ids, bags.bounds, bags.scales
    known = ids != NONE
    if scales is not None:
        gradient = gradient * scales.to(gradient.dtype).unsqueeze(1)
    rows, inverse = torch.unique(ids[known].long(), return_inverse=True)
    sums = gradient.new_zeros(len(rows), gradient.shape[1])
    return rows, sums.index_add_(0, inverse, gradient[_bag_of_position(starts, len(ids))[known]])


def dense_gradient(gradient: Tensor, bags: Bags, V: int) -> Tensor:
    """Return the gradient of the whole table (V, D) from that of the bags (B, D)."""
    rows, sums = row_gradient(gradient, bags, V)
    return gradient.new_zeros(V, gradient.shape[1]).index_copy_(0, rows, sums)


def is_ascending(rows: Tensor) -> bool:
    """Whether the rows (U,) strictly ascend, so that each appears once."""
    return bool((rows.diff() > 0).all())


def sum_repeated(rows: Tensor, gradient: Tensor, V: int) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows: rows (M,), gradient (M, D) -> (rows ascending, gradients)."""
    return row_gradient(gradient, Bags(rows, torch.arange(len(rows) + 1, device=rows.device), None), V)


def sum_pieces(pieces: Sequence[tuple[Tensor, Tensor]], V: int) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows of several pieces, as `sum_pieces` in op.py does."""
    rows, values = zip(*pieces, strict=True)
    return sum_repeated(torch.cat(rows), torch.cat(values), V)


@torch.no_grad()
def update_rows(rule: RowRule, table: Tensor, rows: Tensor, gradient: Tensor, state: RowState) -> None:
    """Update the rows (U,), all distinct, by their gradients (U, D), in one step."""
    rows = rows.long()
    # States are float32; only the oracle uses float64.
    g = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    w, after = rule.kind.oracle(
        rule, table[rows], g, RowState(*(None if s is None else s[rows] for s in state))
    )
    for kept, value in zip(state, after, strict=True):
        if kept is not None and value is not None:
            kept[rows] = value.to(kept.dtype)
    table[rows] = w.to(table.dtype)


def update_all_rows(rule: RowRule, table: Tensor, gradient: Tensor, state: RowState) -> None:
    """Update every row of a table by its gradient (V, D), in one step."""
    update_rows(rule, table, torch.arange(len(table), device=table.device), gradient, state)


def update_from_bags(
    rule: RowRule,
    table: Tensor,
    bags: Bags,
    gradient: Tensor,
    state: RowState,
    steps: Tensor | None = None,
) -> None:
    """Update every row in the bags by the gradient of the bags (B, D): row_gradient and update_rows in one."""
    if steps is not None:
        steps += 1
    rows, sums = row_gradient(gradient, bags, len(table))
    update_rows(rule, table, rows, sums, state)


def _bag_of_position(starts: Tensor, total: int) -> Tensor:
    """Return the bag of every position, (total,)."""
    lengths = starts.diff()
    bags = torch.arange(len(lengths), device=starts.device)
    return torch.repeat_interleave(bags, lengths, output_size=total)

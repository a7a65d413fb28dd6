"""Sort the positions of a batch by row: with our own kernels or torch.sort, whichever is faster."""

from __future__ import annotations

import torch
import triton

from ...machine.launch import on_device_of
from ..batch import Bags, Order
from . import blocks as sizes
from . import ordering


def order_of(bags: Bags, V: int) -> Order:
    """Sort at least one id. Does not wait for the device, and no size depends on data."""
    if bags.order is not None:
        return bags.order
    ids, starts, scales, types = bags[:4]
    M = 1 if types is None else types.rows.shape[1]
    n, B = len(ids) * M, len(ids) if starts is None else len(starts) - 1
    form = {"HAS_STARTS": starts is not None, "HAS_TYPES": types is not None, "M": M}
    scaled = {**form, "HAS_SCALES": scales is not None}
    p_starts = ids if starts is None else starts
    rows, counts = (ids, ids) if types is None else types
    p_scales = ids if scales is None else scales
    T, halvings, options = len(rows), (B + 1).bit_length(), {"num_warps": sizes.WARPS}
    keys, in_bags = (torch.empty(n, dtype=torch.int32, device=ids.device) for _ in range(2))
    has_weights = scales is not None or types is not None
    weights = torch.empty(n, dtype=torch.float32, device=ids.device) if has_weights else None
    p_weights = in_bags if weights is None else weights
    with on_device_of(ids):
        if n > sizes.MOST_RANKED:
            grid = (triton.cdiv(n, sizes.POSITIONS["BLOCK"]),)
            ordering.key_kernel[grid](
                ids, p_starts, rows, keys, n, B, V, T, **form, **sizes.POSITIONS, **options
            )
            sorted_keys, positions = torch.sort(keys, stable=True)
            ordering.carry_kernel[grid](
                sorted_keys, positions, ids, p_starts, counts, p_scales, keys, in_bags, p_weights,
                n, B, V, halvings, **scaled, **sizes.POSITIONS, **options,
            )  # fmt: skip
            return Order(sorted_keys, positions, in_bags, weights)
        positions, one_chunk = torch.empty_like(keys), n <= sizes.CHUNK
        ordering.rank_kernel[(triton.cdiv(n, sizes.RANK_BLOCK),)](
            ids, p_starts, rows, counts, p_scales, keys, positions, in_bags, p_weights,
            n, B, V, T, halvings, **scaled, ONE_CHUNK=one_chunk, **sizes.rank_blocks(), **options,
        )  # fmt: skip
        if one_chunk:
            return Order(keys, positions, in_bags, weights)
        merged, all_positions = torch.empty_like(keys), torch.empty_like(keys)
        ordering.merge_kernel[(triton.cdiv(n, sizes.MERGE_BLOCK),)](
            keys, positions, ids, p_starts, counts, p_scales, merged, all_positions, in_bags, p_weights,
            n, B, V, halvings, **scaled, **sizes.merge_blocks(), **options,
        )  # fmt: skip
    return Order(merged, all_positions, in_bags, weights)

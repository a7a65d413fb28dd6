"""A reusable batch of bags on a GPU: sorted once, in one block of memory that a single copy moves."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .batch import Bags, DeviceBags, Order, TypeRows
from .op import Mode, as_int32, serving

ALIGNED = 16  # bytes; fresh memory has this alignment, and kernels are compiled for it


def prepare_on_device(
    table: Tensor,
    ids: Tensor,
    starts: Tensor,
    mode: Mode = "mean",
    *,
    types: TypeRows | None = None,
    backend: str = "auto",
) -> DeviceBags:
    """Sort a batch of bags for steps on a table (V, D).

    ids: int32 (total,), possibly in a buffer longer than the batch: ids from starts[B] on are ignored. With `types`,
    ids are word types.
    starts: int64 (B + 1,).

    Does not wait for the device. Raises RuntimeError unless `pools_types`, ValueError for an unknown mode.
    """
    if mode not in ("mean", "sum"):
        raise ValueError(f"mode must be mean or sum, not {mode}")
    module = cast(Any, serving(table, backend))
    if not module.POOLS_TYPES:
        raise RuntimeError(f"no kernel supports bags that are sorted on {table.device.type}")
    bags = Bags(as_int32(ids), starts.to(torch.int64).contiguous(), None, types)
    if mode == "mean":
        _, scales = module.pool_means(table.detach().contiguous(), bags)
        bags = bags._replace(scales=scales)
    if len(bags.ids):
        bags = module.in_order(bags, len(table))
    order = bags.order or Order(bags.ids, bags.ids, bags.ids, None)
    block, (bounds, copied, scales, keys, in_bags, weights) = _packed(
        [bags.starts, bags.ids, bags.scales, order.keys, order.bags, order.weights]
    )
    assert copied is not None
    assert keys is not None
    assert in_bags is not None
    return DeviceBags(
        block, Bags(copied, bounds, scales, types, Order(keys, keys, in_bags, weights)), len(table)
    )


def _packed(parts: list[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    """Copy the parts into one block; return it, and the views of the copies in it."""
    sizes = [0 if part is None else part.numel() * part.element_size() for part in parts]
    room = [-(-size // ALIGNED) * ALIGNED for size in sizes]
    block = torch.empty(sum(room), dtype=torch.uint8, device=next(p for p in parts if p is not None).device)
    views: list[Tensor | None] = []
    for part, place, size in zip(parts, block.split(room), sizes, strict=True):
        views.append(None if part is None else place[:size].view(part.dtype).copy_(part))
    return block, views

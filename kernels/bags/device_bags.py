"""A batch of bags on a GPU that comes again: sorted once, in one block of memory that one copy moves."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from .batch import Bags, DeviceBags, Order, TypeRows
from .op import Mode, serving

ALIGNED = 16  # bytes, as fresh memory is: kernels are compiled for it


def prepare_on_device(
    table: Tensor,
    ids: Tensor,
    starts: Tensor,
    mode: Mode = "mean",
    *,
    types: TypeRows | None = None,
    backend: str = "auto",
) -> DeviceBags:
    """Sort a batch of bags, ids int32 (total,) and starts int64 (B + 1,), for steps on a table (V, D).

    ids may lie in a buffer that is longer than the batch: from starts[B] on they count as none. With types the ids are
    word types. Nothing waits for the device.

    Raises RuntimeError where `pools_types` says no, ValueError for an unknown mode.
    """
    if mode not in ("mean", "sum"):
        raise ValueError(f"mode must be mean or sum, not {mode}")
    module = cast(Any, serving(table, backend))
    if not module.POOLS_TYPES:
        raise RuntimeError(f"no kernel takes bags that are sorted on {table.device.type}")
    bags = Bags(ids.to(torch.int32).contiguous(), starts.to(torch.int64).contiguous(), None, types)
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
    """One block with copies of the parts, and the views of it that are they."""
    sizes = [0 if part is None else part.numel() * part.element_size() for part in parts]
    room = [-(-size // ALIGNED) * ALIGNED for size in sizes]
    block = torch.empty(sum(room), dtype=torch.uint8, device=next(p for p in parts if p is not None).device)
    views: list[Tensor | None] = []
    for part, place, size in zip(parts, block.split(room), sizes, strict=True):
        views.append(None if part is None else place[:size].view(part.dtype).copy_(part))
    return block, views

"""Bags of table rows as an autograd op, and steps of row-sparse optimizers, on every backend.

The cost of a step depends on the batch, not on the table: the forward pass reads the rows in the bags, the gradient
holds each of them once (a row-sparse tensor), and an optimizer updates only those. With `fuse_update` the backward
pass itself updates the rows, and no gradient is made at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..machine.registry import Choice, Op
from . import reference as reference_embedding
from .batch import NONE, Bags, DeviceBags, Order, TypeRows
from .protocol import BagKernels
from .rules import RowRule, RowState

OP = Op("bags", __package__)

Mode = Literal["mean", "sum"]

MOST_ID = torch.iinfo(torch.int32).max  # no table has so many rows that this is one of them

# Attribute of a parameter whose rows the backward pass updates itself.
_FUSED_ATTRIBUTE = "_mt2st_fast_fused_update"


def embedding_bag(
    table: Tensor,
    ids: Tensor,
    starts: Tensor | None = None,
    *,
    mode: Mode = "mean",
    sparse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Return the mean or sum of the rows in every bag, (B, D); zeros for an empty bag.

    table: (V, D).
    ids: integers, either (B, L), one bag per row, or (total,) with starts (B + 1,), where each bag begins and the last
    one ends. An id of -1 stands for no row and does not count in a mean.
    sparse: make the table's gradient a coalesced sparse tensor of the rows in the batch; else it is dense.

    Raises ValueError for an id outside [-1, V) (on a GPU checking would wait for the device: such an id counts as
    none), for starts that do not ascend from 0 to the number of ids, and for an unknown mode; TypeError for ids that
    are not integers; RuntimeError for an explicit backend that does not support the table.
    """
    if torch.compiler.is_compiling():
        return _traced(table, *in_kernel_types(table, ids, starts, mode), mode, sparse)
    module = serving(table, backend)
    ids, starts = checked_bags(table, ids, starts, mode, module)
    return _EmbeddingBag.apply(table, Bags(ids, starts, None), mode, module, sparse)


def pools_types(device: torch.device, dtype: torch.dtype, backend: str = "auto") -> bool:
    """Whether `embedding_bag_of_types` supports such a table: on a GPU. Raises as `choose_embedding_backend` does."""
    choice = OP.choose(device.type, dtype, backend)
    return bool(_loaded(choice).POOLS_TYPES)


def embedding_bag_of_types(
    table: Tensor,
    types: TypeRows | None,
    ids: Tensor,
    starts: Tensor | None = None,
    *,
    mode: Mode = "mean",
    sparse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Return the mean or sum (B, D) of the vectors in every bag of word types; a type's vector is the mean of its rows.

    table: (V, D).
    types: the rows of each type; None: type t is row t.
    ids: (total,) types; an id out of range counts as none.
    starts: (B + 1,); None: every id is a bag.

    Otherwise like `embedding_bag`, but only where `pools_types` holds. Never waits for the device: the table is read
    through the types, and their means are never stored.

    Raises RuntimeError for a backend that does not support it.
    """
    module = serving(table, backend)
    if not module.POOLS_TYPES:
        raise RuntimeError(f"no kernel supports pooling of word types on {table.device.type}")
    ids = as_int32(ids)
    if starts is not None:
        starts = starts.to(torch.int64).contiguous()
    return _EmbeddingBag.apply(table, Bags(ids, starts, None, types), mode, module, sparse)


def prepared_embedding_bag(
    table: Tensor, bags: DeviceBags, *, sparse: bool = False, backend: str = "auto"
) -> Tensor:
    """Return the result (B, D) of `embedding_bag` for a batch already sorted by `prepare_on_device`.

    Raises ValueError if the table's length differs from the one that the batch was sorted for.
    """
    if len(table) != bags.n_rows:
        raise ValueError(f"the batch was sorted for a table of {bags.n_rows:,} rows, not {len(table):,}")
    return _EmbeddingBag.apply(table, bags.bags, "sum", serving(table, backend), sparse)


def take_bags(ids: np.ndarray, bounds: np.ndarray, bags: np.ndarray) -> tuple[Tensor, Tensor]:
    """Gather B bags (B,) one after another; return (ids int32 (total,), starts int64 (B + 1,)).

    Bag b is ids[bounds[b]:bounds[b + 1]]; ids are int32, bounds and bags int64. Bags out of range are not rejected.
    """
    # By name: ids of text are on a CPU, whichever backend pools them.
    taken, starts = OP.load("numba", "ids").take_bags(ids, bounds, bags)
    return torch.from_numpy(taken), torch.from_numpy(starts)


def unique_ids(ids: Tensor, V: int, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Return (unique (U,), inverse), int32, of ids in [-1, V).

    unique ascends, without -1; unique[inverse] = ids, and -1 stays -1.
    """
    module = _loaded(choose_embedding_backend(ids.device, backend))
    return module.unique_ids(as_int32(ids), V)


def choose_embedding_backend(device: torch.device, requested: str = "auto") -> Choice:
    """Choose the backend for bags of a float32 table on this device, with the reason.

    Raises as `choose_backend` does. "auto" falls back to plain torch if there is no kernel.
    """
    return OP.choose(device.type, torch.float32, requested)


def sum_pieces(
    pieces: Sequence[tuple[Tensor, Tensor]], V: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Return (rows (U,) int64 ascending, their gradients (U, D)): the sum of row-sparse gradients of a table (V, D).

    pieces: (rows (n,) integers, ascending, gradients (n, D)) each; a row's gradients are added in the order of pieces.
    """
    return serving(pieces[0][1], backend).sum_pieces(pieces, V)


# --- optimizer steps -------------------------------------------------------------------------------------


class FusedUpdate(NamedTuple):
    """How a backward pass updates a table: the current rule, and its state, which is updated in place.

    frozen: the rows that do not move now, (V,) bool; None: all move.
    steps: the count of the table's steps, () float32 on its device, to which the pass adds 1 before the rule reads it;
    None: nobody counts them.
    """

    rule: Callable[[], RowRule]
    state: RowState
    frozen: Callable[[], Tensor | None] = lambda: None
    steps: Callable[[], Tensor | None] = lambda: None


def fuse_update(table: Tensor, update: FusedUpdate | None) -> None:
    """Let the backward pass of `embedding_bag` with `sparse` update this table's rows, instead of leaving a gradient.

    update: None switches back to gradients. Incompatible with clipping, accumulation, and a second backward pass
    through the same graph. A table that is read twice before a backward pass would be stepped twice: the second update
    raises RuntimeError.
    """
    setattr(table, _FUSED_ATTRIBUTE, update)


def update_rows(
    rule: RowRule, table: Tensor, gradient: Tensor, state: RowState, backend: str = "auto"
) -> None:
    """Update the rows held by a row-sparse gradient (a sparse tensor (V, D)); the rest of the table is not touched."""
    rows, values = gradient._indices()[0], gradient._values()
    module = serving(table, backend)
    # Autograd drops the coalesced flag of a gradient on its way into .grad.
    if not (gradient.is_coalesced() or module.is_ascending(rows)):
        rows, values = module.sum_repeated(rows, values.contiguous(), len(table))
    module.update_rows(rule, table.detach(), rows, values.contiguous(), state)
    increment_version(table)


def update_distinct_rows(
    rule: RowRule, table: Tensor, rows: Tensor, values: Tensor, state: RowState, backend: str = "auto"
) -> None:
    """Update the rows (U,) of a table, int64 and all distinct, by their gradients (U, D)."""
    serving(table, backend).update_rows(rule, table.detach(), rows, values.contiguous(), state)
    increment_version(table)


def update_all_rows(
    rule: RowRule, parameter: Tensor, gradient: Tensor, state: RowState, backend: str = "auto"
) -> None:
    """Update all rows of a parameter by its dense gradient; rows are along the first axis."""
    n_rows = parameter.shape[0] if parameter.dim() else 1
    values = parameter.detach().contiguous()
    gradient = gradient.reshape(n_rows, -1).contiguous()
    serving(parameter, backend).update_all_rows(rule, values.view(n_rows, -1), gradient, state)
    if parameter.is_contiguous():
        increment_version(parameter)
    else:
        parameter.detach().copy_(values)


# --- autograd --------------------------------------------------------------------------------------------


class _EmbeddingBag(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, table: Tensor, bags: Bags, mode: Mode, module: BagKernels, sparse: bool
    ) -> Tensor:
        rows = table.detach().contiguous()
        if mode == "mean" and bags.starts is not None and bags.order is None:
            out, scales = module.pool_means(rows, bags)
            bags = bags._replace(scales=scales)
        else:  # a bag of one id is its own mean
            out = module.pool(rows, bags)
        ctx.save_for_backward(*bags[:3], *(bags.types or (None,) * 2), *(bags.order or (None,) * 4))
        ctx.table, ctx.module, ctx.sparse = table, module, sparse
        # Inference tensors have no version, and no backward pass.
        ctx.version = None if table.is_inference() else table._version
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError("embedding_bag has no second derivative (create_graph=True was asked for)")
        ids, starts, scales, *others = ctx.saved_tensors
        types, order = others[:2], others[2:]
        bags = Bags(
            ids,
            starts,
            scales,
            None if types[0] is None else TypeRows(*types),
            None if order[0] is None else Order(*order),
        )
        return _table_gradient(ctx, bags, gradient.contiguous()), None, None, None, None


def _table_gradient(ctx: Any, bags: Bags, gradient: Tensor) -> Tensor | None:
    """Return None if the rows are updated instead."""
    table, module = ctx.table, cast(BagKernels, ctx.module)
    fused: FusedUpdate | None = getattr(table, _FUSED_ATTRIBUTE, None) if ctx.sparse else None
    if fused is not None:
        if table._version != ctx.version:
            raise RuntimeError(
                "the backward pass steps a table for which an earlier read has already stepped it: read the table once "
                'a step, or train it by its gradient (the Trainer\'s backward="autograd")'
            )
        if (frozen := fused.frozen()) is not None:
            bags = bags.without(frozen)
        module.update_from_bags(fused.rule(), table.detach(), bags, gradient, fused.state, fused.steps())
        increment_version(table)
        return None
    if not ctx.sparse:
        return module.dense_gradient(gradient, bags, len(table))
    rows, values = module.row_gradient(gradient, bags, len(table))
    if not len(rows):  # torch accumulates in place into a gradient without rows, so torch must own its memory
        rows, values = rows.clone(), values.clone()
    return torch.sparse_coo_tensor(
        rows.unsqueeze(0), values, table.shape, is_coalesced=True, device=table.device, check_invariants=False
    )


def _traced(table: Tensor, ids: Tensor, starts: Tensor, mode: str, sparse: bool) -> Tensor:
    """Plain torch, for torch.compile to make its own kernels of."""
    if sparse:
        raise RuntimeError(
            "embedding_bag with sparse=True cannot be compiled: the length of its gradient varies from batch to batch"
        )
    scales = reference_embedding.mean_scales(ids, starts, len(table)) if mode == "mean" else None
    return reference_embedding.pool(table, Bags(ids, starts, scales))


# --- checks ----------------------------------------------------------------------------------------------


def checked_bags(
    table: Tensor, ids: Tensor, starts: Tensor | None, mode: str, module: BagKernels
) -> tuple[Tensor, Tensor]:
    """Convert as `in_kernel_types`; on a CPU also check the ids. Raises ValueError for ids outside the table."""
    ids, starts = in_kernel_types(table, ids, starts, mode)
    if table.device.type == "cpu":
        _check_range(module, ids, len(table))
    return ids, starts


def in_kernel_types(table: Tensor, ids: Tensor, starts: Tensor | None, mode: str) -> tuple[Tensor, Tensor]:
    """Return ids as int32 (total,) and starts as int64 (B + 1,), both contiguous."""
    if mode not in ("mean", "sum"):
        raise ValueError(f"mode must be mean or sum, not {mode}")
    if table.dim() != 2:
        raise ValueError(f"table must be (V, D), not {tuple(table.shape)}")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"ids must be integers, not {ids.dtype}")
    if starts is None:
        if ids.dim() != 2:
            raise ValueError(f"ids without starts must be (B, L), not {tuple(ids.shape)}")
        B, L = ids.shape
        starts = torch.arange(0, (B + 1) * L, L, device=ids.device) if L else ids.new_zeros(B + 1).long()
        ids = ids.flatten()
    elif ids.dim() != 1 or starts.dim() != 1 or len(starts) == 0:
        raise ValueError(
            f"ids and starts must be (total,) and (B + 1,), not {tuple(ids.shape)} and {tuple(starts.shape)}"
        )
    elif starts.device.type == "cpu" and not torch.compiler.is_compiling():
        bounds = starts.numpy()  # small numpy operations cost a fraction of torch's
        if bounds[0] != 0 or bounds[-1] != len(ids) or (bounds[1:] < bounds[:-1]).any():
            raise ValueError(f"starts must ascend from 0 to the number of ids, {len(ids)}")
    return as_int32(ids, len(table)), starts.to(torch.int64).contiguous()


def as_int32(ids: Tensor, V: int | None = None) -> Tensor:
    """Return ids as contiguous int32; an int64 id that would wrap around to another row stays out of range.

    Where that can be seen without waiting (on a CPU, not in a trace) it raises ValueError, if V is given.
    """
    if ids.dtype == torch.int64:
        if V is not None and ids.device.type == "cpu" and not torch.compiler.is_compiling():
            # Not by abs(), which is negative for the least int64: what a cast makes of NaN would become row 0.
            for end in ids.aminmax() if len(ids) else ():
                if not -MOST_ID <= (id_ := int(end)) <= MOST_ID:
                    raise ValueError(f"ids contain {id_}, but the table has {V:,} rows")
        else:
            ids = ids.clamp(NONE, MOST_ID)
    return ids.to(torch.int32).contiguous()


def _check_range(module: BagKernels, ids: Tensor, V: int) -> None:
    position = module.first_outside(ids, V)
    if position >= 0:
        raise ValueError(
            f"id {int(ids[position])} at position {position} lies outside the table's {V:,} rows ({NONE} means no row)"
        )


# --- backends --------------------------------------------------------------------------------------------


def serving(table: Tensor, backend: str = "auto") -> BagKernels:
    """Return the backend's module for a table. Raises as `choose_embedding_backend` does."""
    return _loaded(OP.choose(table.device.type, table.dtype, backend))


def _loaded(choice: Choice) -> BagKernels:
    return cast(BagKernels, OP.load(choice.name, "bags"))

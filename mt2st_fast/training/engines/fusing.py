"""Which row-sparse tables of a run the backward pass steps itself, without a gradient."""

from __future__ import annotations

from torch import nn

from mt2st_fast.model.called_heads import have_gradient_hooks
from mt2st_fast.model.encoders import BagEncoder, WindowEncoder
from mt2st_fast.training.engines.engine import StepParts
from mt2st_fast.training.optimizers.row_sparse import RowSparseOptimizer
from mt2st_fast.training.optimizers.upkeep import row_sparse_tables


def fuse(parts: StepParts, loaders: int, wants_gradients: bool) -> tuple[nn.Parameter, ...]:
    """Have the backward pass step the encoder's row-sparse tables if requested; returns those tables.

    By default, it does so on CUDA if nothing needs their gradient. loaders: the number of batches in a step.
    wants_gradients: whether the schedule uses gradients. Raises ValueError if it is requested and not possible.
    """
    if parts.options.backward == "auto":
        fits = (
            not parts.by_task
            and parts.device.type == "cuda"
            and _nothing_needs_gradients(parts, loaders, wants_gradients)
        )
    else:
        fits = parts.options.backward == "fused"
    if not fits:
        return ()
    tables = [table for table in row_sparse_tables(parts.encoder) if table.requires_grad]
    if not isinstance(parts.optimizer, RowSparseOptimizer):
        raise ValueError(
            'backward="fused" needs LazyAdam, RowwiseAdagrad or SGD of mt2st_fast, not '
            f"{type(parts.optimizer).__name__}"
        )
    if have_gradient_hooks(tables):
        raise ValueError(
            'backward="fused" makes no gradient of a table, but this one has hooks that take it: remove them, or leave '
            "backward= out"
        )
    parts.optimizer.fuse(tables)
    return tuple(tables)


def _nothing_needs_gradients(parts: StepParts, loaders: int, wants_gradients: bool) -> bool:
    """Return whether a step is one backward pass, through a table that is read once, whose gradient nobody needs."""
    optimizer, encoder = parts.optimizer, parts.encoder
    if parts.processes.are_several:  # these exchange gradients
        return False
    if not isinstance(optimizer, RowSparseOptimizer) or type(encoder) not in (BagEncoder, WindowEncoder):
        return False
    looked_at = parts.options.clip_norm is not None or parts.scaler.is_enabled() or wants_gradients
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    looked_at = looked_at or any(hooks) or have_gradient_hooks([encoder.table])  # type: ignore[list-item]
    return loaders == 1 and parts.options.accumulate == 1 and not looked_at

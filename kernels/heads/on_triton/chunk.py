"""A chunk of rows of logits on a GPU, and the arguments of every kernel that computes their losses."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..call import HeadsCall
from ..layout import HeadLayout
from .constants import constants_of
from .mean_scales import Scales
from .tables import HeadTables
from .targets import ADDRESSES, Targets

# Pointers and integers that such a kernel's parameters begin with, as in `Chunk.tensors` and `Chunk.integers`.
POINTERS = ("p_logits", "p_bias", "p_weights", "p_task_weights", "p_scale", "p_sums")
INTEGERS = ("N", "n_rows", "first_row", "row_stride", "row_floats", *ADDRESSES)


class Specialization(NamedTuple):
    """What a kernel is compiled for, besides its heads."""

    layout: HeadLayout
    has_bias: bool
    need_gradient: bool
    side_by_side: bool
    skip_zero_weights: bool

    @property
    def constexprs(self) -> dict[str, Any]:
        """The first of a kernel's compile-time arguments."""
        return {
            "HEADS": constants_of(self.layout), "N_HEADS": len(self.layout), "HAS_BIAS": self.has_bias,
            "NEED_GRADIENT": self.need_gradient, "SIDE_BY_SIDE": self.side_by_side,
            "SKIP_ZERO_WEIGHTS": self.skip_zero_weights,
        }  # fmt: skip


class Chunk(NamedTuple):
    """Rows first_row.. of a call: their logits without bias.

    The row stride is a multiple of 8, and of 16 beside wide heads. If a gradient is needed, kernels overwrite the
    logits with it, multiplied by the heads' scales if there are any, and the padding of a row up to n_columns with 0.
    """

    call: HeadsCall
    tables: HeadTables
    targets: Targets
    scales: Scales | None
    logits: Tensor  # (n_rows, n_columns)
    first_row: int
    sums: Tensor  # (n_blocks, K, 3) float32, zeros: loss, denominator and correct rows, by block of rows

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments for POINTERS. An argument that a variant never reads still needs a pointer."""
        bias, weights = self.call.bias, self.tables.column_weights
        return (
            self.logits, weights if bias is None else bias.contiguous(), weights, self.call.task_weights,
            weights if self.scales is None else self.scales.of_heads, self.sums,
        )  # fmt: skip

    @property
    def integers(self) -> tuple[int, ...]:
        """The arguments for INTEGERS."""
        return (
            self.call.features.shape[0], len(self.logits), self.first_row, self.logits.stride(0),
            self.targets.row_floats, *self.targets.addresses,
        )  # fmt: skip

    @property
    def specialization(self) -> Specialization:
        """What every kernel is compiled for."""
        call = self.call
        return Specialization(
            call.layout, call.bias is not None, any(call.needs), self.targets.side_by_side,
            call.skip_zero_weights,
        )  # fmt: skip


def chunk_types(dtype: str, of_bias: str | None = None) -> dict[str, str]:
    """Types of POINTERS and INTEGERS for logits of `dtype`, for compiling ahead of time."""
    own = {"p_logits": f"*{dtype}", "p_bias": f"*{of_bias or dtype}"}
    integers = {name: "i64" if name in ADDRESSES else "i32" for name in INTEGERS}
    return {**dict.fromkeys(POINTERS, "*fp32"), **own, **integers}

"""Some rows of logits on a GPU, and what every kernel that takes their losses is told."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..call import HeadsCall
from .mean_scales import Scales
from .tables import HeadTables
from .targets import ADDRESSES, Targets

# Pointers and integers that such a kernel begins with, as `Chunk.tensors` and `Chunk.integers` have them.
POINTERS = {
    "p_logits": "logits", "p_bias": "bias", "p_integers": "*i64", "p_floats": "*fp32", "p_weights": "*fp32",
    "p_task_weights": "*fp32", "p_scale": "*fp32", "p_sums": "*fp32",
}  # fmt: skip
INTEGERS = ("N", "n_rows", "first_row", "row_stride", "S", "K", "n_columns", "row_floats", *ADDRESSES)


class Chunk(NamedTuple):
    """Rows first_row.. of a call: their logits without bias, in a buffer whose rows begin a multiple of 16 apart.

    Where a gradient is needed kernels overwrite them with it, already multiplied by the heads' scales, and what pads
    a row up to n_columns with 0.
    """

    call: HeadsCall
    tables: HeadTables
    targets: Targets
    scales: Scales | None  # None where no gradient is needed
    logits: Tensor  # (n_rows, n_columns)
    first_row: int
    sums: Tensor  # (n_blocks, K, 3) float32, zeros: loss, denominator and correct rows of blocks of rows

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What POINTERS names. An argument that a variant never reads still needs a pointer."""
        bias, tables = self.call.bias, self.tables
        return (
            self.logits, tables.column_weights if bias is None else bias.contiguous(), tables.integers, tables.floats,
            tables.column_weights, self.call.task_weights,
            tables.floats if self.scales is None else self.scales.of_heads, self.sums,
        )  # fmt: skip

    @property
    def integers(self) -> tuple[int, ...]:
        """What INTEGERS names."""
        n_rows, n_columns = self.logits.shape
        layout = self.call.layout
        return (
            self.call.features.shape[0], n_rows, self.first_row, self.logits.stride(0), layout.width, len(layout),
            n_columns, self.targets.row_floats, *self.targets.addresses,
        )  # fmt: skip

    @property
    def constexprs(self) -> dict[str, bool]:
        """What every kernel is compiled for."""
        return {
            "HAS_BIAS": self.call.bias is not None,
            "NEED_GRADIENT": self.scales is not None,
            "SIDE_BY_SIDE": self.targets.side_by_side,
            "SKIP_ZERO_WEIGHTS": self.call.skip_zero_weights,
        }


def signature(dtype: str, of_bias: str | None = None) -> dict[str, str]:
    """Types of POINTERS and INTEGERS for logits of `dtype`, to compile ahead of time."""
    types = {"logits": f"*{dtype}", "bias": f"*{of_bias or dtype}"}
    pointers = {name: types.get(kind, kind) for name, kind in POINTERS.items()}
    return {**pointers, **{name: "i64" if name in ADDRESSES else "i32" for name in INTEGERS}}

"""Block sizes of the tile plan: rows and features per program, warps and stages, by shape and GPU family."""

from __future__ import annotations

from typing import NamedTuple

from ...machine.launch import ALL_REGISTERS, cdiv, launch_options, next_power_of_2
from ..layout import HeadLayout


class Blocks(NamedTuple):
    """Rows and features that a program of either direction holds at a time, and its warps and stages."""

    rows: int
    features: int
    warps: int
    stages: int
    registers: int | None = None  # most per thread on NVIDIA; None: as the compiler chooses

    @property
    def options(self) -> dict[str, int]:
        """Options for the compiler."""
        return {**launch_options(self.warps, self.registers), "num_stages": self.stages}


# If the row stride of the features is a multiple of 16 elements, they are read 16 bytes at a time; otherwise element by
# element, each with its own address, which takes registers.
ALIGNED_FEATURES = 16
MANY_HEADS = 8
FEW_HEADS = 4
PROGRAMS = 264  # that share the weight's gradient: two per multiprocessor


def is_heavy(layout: HeadLayout) -> bool:
    """Whether losses take many registers: those of values, of weighted classes, and of more heads than MANY_HEADS."""
    return layout.has_values or _is_weighted(layout) or len(layout) > MANY_HEADS


def _is_weighted(layout: HeadLayout) -> bool:
    return any(head.options.column_weights is not None for head in layout.heads)


def forward_blocks(N: int, D: int, itemsize: int, layout: HeadLayout, family: str) -> Blocks:
    """As many rows as leave a tile for every multiprocessor of a large GPU, but at least 16, as matrix units require.

    From 64 rows on, Blackwell keeps products in a dedicated memory, for which Triton 3.7 cannot lay out the sums.
    """
    if family == "amd":
        return Blocks(16, 32, 4, 2)
    heavy = is_heavy(layout)
    rows = 64 if N >= 6144 else 32 if N >= 3072 else 16
    if family == "blackwell":
        rows = min(32, rows)
    # Measured on an H100 at 64 outputs of 768 features.
    warps = 8 if rows > 16 and heavy else 4
    if itemsize == 4:
        is_several = heavy and len(layout) > FEW_HEADS
        # On an A100, float32 products of 64 rows leave too few registers for unaligned addresses or many heads.
        if D % ALIGNED_FEATURES or (family == "ampere" and is_several):
            rows = min(32, rows)
        # Targets that are values do without.
        limited = rows == 32 and warps == 8 and (is_several or _is_weighted(layout))
        return Blocks(rows, 32, warps, 3, ALL_REGISTERS if limited else None)
    if D % ALIGNED_FEATURES:
        return Blocks(min(32, rows), 64, 8, 2)
    return Blocks(rows, 256 if rows == 16 else 128, warps, 3)


def backward_blocks(D: int, itemsize: int, family: str) -> Blocks:
    """Blocks for a tile (rows, features) of the features' gradient, and for a step along the rows of the weight's."""
    if family == "amd":
        return Blocks(32, 32, 4, 2)
    if itemsize == 4:
        return Blocks(32, 64, 4, 2)
    return Blocks(64, 128, 8, 2) if D % ALIGNED_FEATURES else Blocks(64, 128, 4, 3)


def rows_per_part(N: int, D: int, blocks: Blocks) -> int:
    """Number of rows whose part of the weight's gradient one program sums."""
    wanted = max(1, PROGRAMS // cdiv(D, blocks.features))
    return max(1, cdiv(cdiv(N, wanted), blocks.rows)) * blocks.rows


def columns_of(S: int) -> int:
    """BLOCK_S: the padded width of a tile."""
    return max(16, next_power_of_2(S))


def precision_of(is_float32: bool, family: str) -> str:
    """How blocks are multiplied: on NVIDIA's matrix units, three products of tf32 parts are as accurate as float32."""
    return "tf32x3" if is_float32 and family != "amd" else "ieee"

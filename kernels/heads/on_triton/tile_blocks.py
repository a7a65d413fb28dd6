"""How the tile plan cuts up its work: rows and features of a program, warps and stages, by shape and family of GPU."""

from __future__ import annotations

from typing import NamedTuple

from ...machine.launch import cdiv, next_power_of_2


class Blocks(NamedTuple):
    """Rows and features that a program of either direction holds at a time, and its warps and stages."""

    rows: int
    features: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# Rows of features that begin at a multiple of 16 elements are read 16 bytes at a time; others an element, each by an
# address of its own, which takes registers.
ALIGNED_FEATURES = 16
PROGRAMS = 264  # that share the weight's gradient: two a multiprocessor


def forward_blocks(N: int, D: int, itemsize: int, has_values: bool, family: str) -> Blocks:
    """As many rows as leave every multiprocessor of a large GPU a tile, 16 at least: a matrix unit's.

    From 64 rows on Blackwell's products lie in a memory of their own, where Triton 3.7 cannot lay out the sums.
    """
    if family == "amd":
        return Blocks(16, 32, 4, 2)
    rows = 64 if N >= 6144 else 32 if N >= 3072 else 16
    if family == "blackwell":
        rows = min(32, rows)
    # Measured on an H100 at 64 outputs of 768 features; heads of values take twice the registers.
    warps = 8 if rows > 16 and has_values else 4
    if itemsize == 4:
        # Products of float32 leave no registers for the addresses of 64 rows that are not aligned, on an A100.
        return Blocks(min(32, rows) if D % ALIGNED_FEATURES else rows, 32, warps, 3)
    if D % ALIGNED_FEATURES:
        return Blocks(min(32, rows), 64, 8, 2)
    return Blocks(rows, 256 if rows == 16 else 128, warps, 3)


def backward_blocks(D: int, itemsize: int, family: str) -> Blocks:
    """Of a tile (rows, features) of the features' gradient, and of a step along the rows of the weight's."""
    if family == "amd":
        return Blocks(32, 32, 4, 2)
    if itemsize == 4:
        return Blocks(32, 64, 4, 2)
    return Blocks(64, 128, 8, 2) if D % ALIGNED_FEATURES else Blocks(64, 128, 4, 3)


def rows_per_part(N: int, D: int, blocks: Blocks) -> int:
    """Rows whose part of the weight's gradient one program sums."""
    wanted = max(1, PROGRAMS // cdiv(D, blocks.features))
    return max(1, cdiv(cdiv(N, wanted), blocks.rows)) * blocks.rows


def columns_of(S: int) -> int:
    """BLOCK_S: what the width of a tile is padded to."""
    return max(16, next_power_of_2(S))


def precision_of(is_float32: bool, family: str) -> str:
    """How blocks are multiplied: three products of tf32 parts are as accurate as float32, on NVIDIA's matrix units."""
    return "tf32x3" if is_float32 and family != "amd" else "ieee"
